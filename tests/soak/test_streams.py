"""kill -9 over a stream, twenty times in mid-batch: of its driver, of a worker, of the broker."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import psutil
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.sinks import SinkKind
from airflow_hydrogen.contract.streams import StreamOptions
from airflow_hydrogen.runtime.scoring.positions import newest
from scripts.jars import jars
from tests.integration.broker import Kafka, kafka_broker
from tests.integration.conftest import EXTENSION, SESSION
from tests.soak import events

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20
EVENTS = 200
_WAIT_S = 240.0
_DRAIN_S = 900.0


class Driver:
    """The application, in a process of its own, on a Spark in local mode that tries tasks four times."""

    def __init__(self, folder: Path, job: InferenceJob) -> None:
        file = folder / "job.json"
        file.write_text(jobs.dumps(job))
        connectors = ",".join(map(str, jars("kafka", "delta")))
        settings = {"spark.ui.enabled": "false", "spark.sql.extensions": EXTENSION, **SESSION}
        confs = " ".join(f"--conf {name}={value}" for name, value in settings.items())
        submit = f"--master local[2,4] --jars {connectors} {confs}"
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_SUBMIT_ARGS": f"{submit} pyspark-shell",
        }
        self.log = folder / "driver.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airflow_hydrogen.runtime", str(file)],
                env=environ,
                cwd=folder,
                stdout=log,
                stderr=log,
            )

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """Python processes that score: children of Spark's daemon."""
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("python") and process.parent().name().startswith("python"):
                        found.append(process)
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _until(condition: Callable[[], object], what: str, driver: Driver) -> bool:
    """Wait for a condition; False where the driver has ended before."""
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if not driver.is_alive():
            return False
        assert time.monotonic() < deadline, f"{what}: not after {_WAIT_S} s\n{driver.log.read_text()[-5000:]}"
        time.sleep(0.02)
    return True


def _drain(driver: Driver) -> None:
    """Wait until a stream has scored what is there: all that came while it was killed may be left to it."""
    try:
        assert driver.process.wait(timeout=_DRAIN_S) == 0, driver.log.read_text()[-5000:]
    finally:
        driver.kill()


def _hurt(kind: str, driver: Driver, kafka: Kafka) -> bool:
    if kind == "driver":
        driver.kill()
    elif kind == "broker":
        kafka.kill()
        kafka.start()
    elif not (workers := driver.workers()):
        return False
    else:
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGKILL)
    return True


def _ids(sink: Sink) -> Counter[int]:
    """The ids at the sink: of a Delta table those in the files that its log names."""
    found: Counter[int] = Counter()
    for place in _files_of_delta(Path(str(sink.uri))) if sink.kind == "delta" else [Path(str(sink.uri))]:
        found.update(pq.read_table(place, columns=["id"])["id"].to_pylist())
    return found


def _files_of_delta(table: Path) -> set[Path]:
    files: set[Path] = set()
    for commit in sorted((table / "_delta_log").glob("*.json")):
        for action in map(json.loads, commit.read_text().splitlines()):
            if "add" in action:
                files.add(table / unquote(action["add"]["path"]))
            if "remove" in action:
                files.remove(table / unquote(action["remove"]["path"]))
    return files


def test_a_driver_that_is_killed_between_two_commits_has_committed_its_batch_once(tmp_path: Path) -> None:
    """Delta has the batch, and Spark's checkpoint does not."""
    events.publish(str(tmp_path / "model"), tmp_path / "staged")
    (tmp_path / "broker").mkdir()
    with kafka_broker(tmp_path / "broker") as kafka:
        topic = kafka.topic(partitions=2)
        job = InferenceJob(
            model_uri=str(tmp_path / "model"),
            source=Source.kafka(kafka.bootstrap, topic, schema="id BIGINT, a DOUBLE"),
            sink=Sink.delta(str(tmp_path / "scores")),
            report_uri=str(tmp_path / "report.json"),
            stream=StreamOptions(trigger="available_now", checkpoint_uri=str(tmp_path / "checkpoint")),
        )
        _produce(kafka, topic, 0)
        dying = Driver(tmp_path, replace(job, prepare="tests.soak.events:deadly"))
        assert dying.process.wait(timeout=_WAIT_S) == -signal.SIGKILL, dying.log.read_text()[-5000:]
        assert _ids(job.sink) == Counter(range(EVENTS))
        assert newest(str(tmp_path / "checkpoint"), "commits") is None
        _produce(kafka, topic, EVENTS)
        driver = Driver(tmp_path, job)
        _drain(driver)
    assert "batch 0 is left out" in driver.log.read_text()
    assert _ids(job.sink) == Counter(range(2 * EVENTS))


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_after_twenty_kills_in_mid_batch_every_key_is_there_once(tmp_path: Path, kind: SinkKind) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    moments = random.Random(seed)
    events.publish(str(tmp_path / "model"), tmp_path / "staged")
    checkpoint, sink = str(tmp_path / "checkpoint"), Sink(kind=kind, uri=str(tmp_path / "scores"))
    counts: Counter[str] = Counter()
    made = 0
    (tmp_path / "broker").mkdir()
    with kafka_broker(tmp_path / "broker") as kafka:
        topic = kafka.topic(partitions=2)

        def job(trigger: str) -> InferenceJob:
            return InferenceJob(
                model_uri=str(tmp_path / "model"),
                source=Source.kafka(kafka.bootstrap, topic, schema="id BIGINT, a DOUBLE"),
                sink=sink,
                report_uri=str(tmp_path / "report.json"),
                batch_rows=50,
                on_bad_row="quarantine",
                stream=StreamOptions(trigger=trigger, checkpoint_uri=checkpoint, max_rows_per_trigger=150),
            )

        def in_mid_batch() -> bool:
            begun, done = newest(checkpoint, "offsets"), newest(checkpoint, "commits")
            return begun is not None and begun > (-1 if done is None else done)

        driver = Driver(tmp_path, job("1 second"))
        try:
            for victim in [("broker", "worker", "driver")[number % 3] for number in range(KILLS)]:
                made += _produce(kafka, topic, made)
                while True:
                    if not driver.is_alive():
                        driver = Driver(tmp_path, job("1 second"))
                        counts["drivers started again"] += 1
                    if _until(in_mid_batch, "a batch begins", driver):
                        time.sleep(moments.random())
                        if _hurt(victim, driver, kafka):
                            break
                    elif not in_mid_batch():  # it has ended, with nothing left to do for the next one
                        made += _produce(kafka, topic, made)
                counts[f"{victim} killed"] += 1
        finally:
            driver.kill()
        _drain(Driver(tmp_path, job("available_now")))
    report = reports.loads((tmp_path / "report.json").read_text())
    found = _ids(sink)
    print(f"{sum(found.values())} rows of {made} events, {dict(counts)}, last batch {report.stream}")
    assert found == Counter(range(made))


def _produce(kafka: Kafka, topic: str, first: int) -> int:
    values = [json.dumps({"id": n, "a": float(n)}).encode() for n in range(first, first + EVENTS)]
    kafka.produce(topic, [(str(first + n).encode(), value) for n, value in enumerate(values)])
    return EVENTS
