"""The images as they are built, and what Docker Compose runs in them. Its own target: `make images`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from airflow_hydrogen.horovod_build.__main__ import cache_folder
from tests.images.images import Buildah, Container, build_images, missing_means
from tests.integration.daemons import free_port

pytestmark = [pytest.mark.images, pytest.mark.timeout(5400)]

START_S = 120.0
# A gang of two ranks in barrier mode, under Horovod, with what the image has.
GANG = """
from pyspark.sql import SparkSession
from airflow_hydrogen.runtime import HorovodRunner

def main():
    import horovod.tensorflow as hvd
    import tensorflow as tf
    hvd.init()
    return float(hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum))

SparkSession.builder.getOrCreate()
print("the sum is", HorovodRunner(np=2).run(main))
"""


@pytest.fixture(scope="module")
def buildah() -> Buildah:
    if why := missing_means():
        pytest.fail(why)
    log = cache_folder() / "logs" / "images.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    return Buildah(log)


@pytest.fixture(scope="module")
def images(buildah: Buildah) -> dict[str, str]:
    return build_images(buildah)


@pytest.fixture(scope="module")
def spark(buildah: Buildah, images: dict[str, str]) -> Iterator[Container]:
    with buildah.container(images["spark"]) as container:
        yield container


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.5)


def test_spark_trains_a_gang_on_a_master_and_a_worker_of_the_image(
    buildah: Buildah, spark: Container, tmp_path: Path
) -> None:
    port, pages, worker_pages = (free_port("127.0.0.1") for _ in range(3))
    master_url = f"spark://127.0.0.1:{port}"

    def workers() -> list[dict[str, object]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{pages}/json/", timeout=5) as answer:
                found: list[dict[str, object]] = json.load(answer)["workers"]
                return found
        except OSError:
            return []

    def start(stack: ExitStack, name: str, *command: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = tmp_path / f"{name}.log"
        process = buildah.start(spark, *command, log=log)
        stack.callback(process.wait)
        stack.callback(os.killpg, process.pid, signal.SIGKILL)
        return process, log

    with ExitStack() as stack:
        master = ("org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(port))
        start(stack, "master", "spark-class", *master, "--webui-port", str(pages))
        worker = (
            "org.apache.spark.deploy.worker.Worker",
            "--host",
            "127.0.0.1",
            "--cores",
            "2",
            "--memory",
            "2g",
        )
        process, log = start(
            stack,
            "worker",
            *(
                "spark-class",
                *worker,
                "--webui-port",
                str(worker_pages),
                "--work-dir",
                "/tmp/work",
                master_url,
            ),
        )
        wait_for(lambda: any(worker["state"] == "ALIVE" for worker in workers()), process, log)
        health = ("python", "/opt/hydrogen/health.py", f"http://127.0.0.1:{pages}/json/", "status=ALIVE")
        buildah.run(spark, *health)
        submit = ("spark-submit", "--master", master_url, "--conf", "spark.driver.host=127.0.0.1")
        write = f"cat > /tmp/gang.py <<'END'\n{GANG}\nEND\nexec {' '.join(submit)} /tmp/gang.py"
        assert "the sum is 3.0" in buildah.run(spark, "bash", "-c", write)


def test_spark_has_no_airflow_and_runs_as_nobody_of_importance(buildah: Buildah, spark: Container) -> None:
    code = "import importlib.util, os; print(importlib.util.find_spec('airflow'), os.getuid())"
    assert buildah.run(spark, "python", "-c", code).split() == ["None", "1000"]


def test_spark_has_what_reads_s3(buildah: Buildah, spark: Container) -> None:
    listed = buildah.run(spark, "bash", "-c", "ls $SPARK_HOME/jars")
    assert "hadoop-aws-" in listed


def test_airflow_makes_its_database_and_knows_the_provider(buildah: Buildah, images: dict[str, str]) -> None:
    with buildah.container(images["airflow"]) as airflow:
        script = "airflow db migrate && airflow db check && airflow providers list --output plain"
        assert "airflow-hydrogen" in buildah.run(airflow, "bash", "-c", script)
