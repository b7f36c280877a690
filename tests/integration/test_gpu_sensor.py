"""GPUClusterSensor against a real standalone cluster: an application takes its GPUs and gives them back.

Every worker here has two GPUs and two cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG

from airflow_hydrogen.clusters.requirement import Requirement
from airflow_hydrogen.sensors.gpu_cluster import GPUClusterSensor
from airflow_hydrogen.triggers.gpu_cluster import GPUClusterTrigger
from tests.integration.cluster import StandaloneCluster, standalone_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MIB = 1 << 20

# One executor with one GPU and one core on each worker; it holds them until its input ends.
HOLDER = """
import sys
from pyspark.sql import SparkSession
builder = SparkSession.builder.master(sys.argv[1]).appName("holder")
for name, value in {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.executor.memory": "512m",
    "spark.executor.cores": "1",
    "spark.cores.max": "2",
    "spark.executor.resource.gpu.amount": "1",
    "spark.task.resource.gpu.amount": "1",
}.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
sys.stdin.read()
spark.stop()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandaloneCluster]:
    with standalone_cluster(workers=2, cores=2, memory="1g", gpus=2) as started:
        yield started


@pytest.fixture(autouse=True)
def connection(cluster: StandaloneCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", cluster.connection())


@contextmanager
def application(cluster: StandaloneCluster, folder: Path) -> Iterator[Callable[[], None]]:
    """A running application that holds two GPUs; yields what makes it end."""
    log = folder / "application.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, cluster.master_url],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        )

        def end() -> None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)

        try:
            yield end
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
            if process.stdin is not None:
                process.stdin.close()


def sensor(**arguments: Any) -> GPUClusterSensor:
    with DAG("d"):
        return GPUClusterSensor(task_id="gpus", **arguments)


def trigger(interval_s: float = 0.5, **requirement: Any) -> GPUClusterTrigger:
    return GPUClusterTrigger("spark_default", Requirement(**requirement).to_dict(), interval_s, max_wait_s=2)


async def fire(waiting: GPUClusterTrigger) -> Any:
    async for event in waiting.run():
        return event.payload


def test_an_idle_cluster_has_everything_on_two_hosts(cluster: StandaloneCluster) -> None:
    found = sensor(gpus=4, cores=4, memory="2g", hosts=2, deferrable=True).execute({})
    assert found["total"] == found["free"]
    assert found["free"] == {"cores": 4, "memory_bytes": 2048 * MIB, "resources": {"gpu": 4}}
    assert {host["host"] for host in found["hosts"]} == {"127.0.0.2", "127.0.0.3"}
    assert not sensor(gpus=5).poke({})
    assert sensor(np=2, gpus_per_process=2).poke({})
    assert not sensor(np=2, gpus_per_process=1, executor_memory="2g").poke({})
    assert not sensor(np=4, gpus_per_process=1).poke({})  # 1 GiB each, where a worker has one
    assert not sensor(np=1, gpus_per_process=3).poke({})
    assert sensor(gpus_per_task=1, num_executors=2).poke({})
    assert sensor(gpus_per_task=0.5, num_executors=2).poke({})  # each takes a worker's memory and two cores
    assert not sensor(gpus_per_task=0.25, executor_memory="512m").poke(
        {}
    )  # four cores, where a worker has two
    assert not sensor(gpus_per_task=0.5, num_executors=3, executor_memory="512m").poke({})


def test_gpus_that_an_application_takes_are_waited_for_until_it_ends(
    cluster: StandaloneCluster, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with application(cluster, tmp_path) as end:
        eventually(lambda: cluster.free() == 2, "the application has two GPUs", timeout_s=120)
        assert not sensor(gpus=4).poke({})
        found = sensor(gpus=2).poke({})
        assert found.xcom_value["free"] == {
            "cores": 2,
            "memory_bytes": 1024 * MIB,
            "resources": {"gpu": 2},
        }
        # One GPU is free on each worker: two processes of one, none of two.
        assert sensor(np=2, gpus_per_process=1, executor_memory="512m").poke({})
        assert not sensor(np=1, gpus_per_process=2).poke({})
        assert sensor(np=2, gpus_per_process=2, free_now=False).poke({})
        with pytest.raises(TaskDeferred) as deferred:
            sensor(gpus=4, deferrable=True, poke_interval=0.5).execute({})

        async def wait() -> Any:
            waiting = [asyncio.ensure_future(fire(deferred.value.trigger)) for _ in range(3)]
            _, pending = await asyncio.wait(waiting, timeout=2)
            assert len(pending) == 3
            await asyncio.to_thread(end)
            return await asyncio.wait_for(asyncio.gather(*waiting), 60)

        for event in asyncio.run(wait()):
            assert event["status"] == "success"
            assert event["snapshot"]["free"]["resources"] == {"gpu": 4}
            json.dumps(event)
    assert sensor(gpus=4).poke({})


def test_a_lost_worker_takes_its_gpus_along(
    cluster: StandaloneCluster, eventually: Callable[..., None]
) -> None:
    cluster.kill_worker(1)
    eventually(lambda: len(cluster.alive_workers()) == 1, "the master misses the worker", timeout_s=70)
    assert not sensor(gpus=4, free_now=False).poke({})
    cluster.start_worker(1)
    assert sensor(gpus=4).poke({})


def test_a_master_that_is_down_is_waited_for_until_it_is_back(cluster: StandaloneCluster) -> None:
    """Last in the file: the master forgets its workers, and they come back to it by themselves."""

    async def wait() -> Any:
        waiting = asyncio.ensure_future(fire(trigger(resources={"gpu": 4})))
        await asyncio.sleep(2)
        assert not waiting.done()
        await asyncio.to_thread(cluster.start_master)
        return await asyncio.wait_for(waiting, 120)

    cluster.kill_master()
    assert not sensor(gpus=4).poke({})
    assert asyncio.run(wait())["snapshot"]["free"]["resources"] == {"gpu": 4}
