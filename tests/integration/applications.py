"""Trainings on a real cluster, started with spark-submit as the operators do, for tests that break them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.jobs import Entrypoint, Source, TrainJob
from airflow_hydrogen.contract.reports import TrainReport
from tests.integration.cluster import StandaloneCluster
from tests.integration.daemons import spark_home

ROOT = Path(__file__).resolve().parents[2]
_START_S = 240.0
_END_S = 300.0


# Runs one job after the other: a driver takes longer to start than most of the trainings.
_MAIN = """
import sys
from pathlib import Path
from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.runtime.storage import filesystems
from airflow_hydrogen.runtime.__main__ import run

while True:
    with open(sys.argv[1]) as queue:
        for line in queue:
            job = jobs.loads(Path(line.strip()).read_text())
            filesystems.write_bytes(job.report_uri, reports.dumps(run(job)).encode())
"""


@dataclass
class Driver:
    """A Spark application on a cluster that carries out jobs, one after the other.

    Attributes:
        folder: its log, and the pipe through which it gets its jobs.
    """

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What spark-submit and the driver have written."""
        return (self.folder / "driver.log").read_text(errors="replace")

    def submit(self, job: Path) -> None:
        """Hand over a job file."""
        with (self.folder / "queue").open("w") as queue:
            queue.write(f"{job}\n")

    def is_alive(self) -> bool:
        """Whether spark-submit still runs."""
        return self.process.poll() is None

    def python(self) -> psutil.Process:
        """The driver's own process, below spark-submit's Java."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if any(argument.endswith("main.py") for argument in child.cmdline()):
                    return child
        raise AssertionError(f"spark-submit has started no driver\n{self.log}")

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def start_driver(cluster: StandaloneCluster, folder: Path, conf: dict[str, str] | None = None) -> Driver:
    """Start an application with spark-submit, as the operators do.

    Args:
        conf: Spark settings.
    """
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text(_MAIN)
    os.mkfifo(folder / "queue")
    settings = {
        **cluster.driver_settings(),
        "spark.executorEnv.PYTHONPATH": str(ROOT),
        "spark.executor.cores": "1",
        "spark.executor.memory": "512m",
        "spark.driver.memory": "512m",
        "spark.ui.enabled": "false",
        "spark.network.timeout": "20s",
        "spark.network.timeoutInterval": "5s",
        "spark.executor.heartbeatInterval": "3s",
        **(conf or {}),
    }
    command = [str(spark_home() / "bin" / "spark-submit"), "--master", cluster.master_url]
    for name, value in settings.items():
        command += ["--conf", f"{name}={value}"]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
    }
    with (folder / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(folder / "main.py"), str(folder / "queue")],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Driver(folder, process)


@contextmanager
def shared_driver(
    cluster: StandaloneCluster, folder: Path, conf: dict[str, str] | None = None
) -> Iterator[Callable[[], Driver]]:
    """A driver for the tests of a module; the function starts another where the last one is gone."""
    drivers: list[Driver] = []

    def current() -> Driver:
        if not drivers or not drivers[-1].is_alive():
            drivers.append(start_driver(cluster, folder / f"driver-{len(drivers)}", conf))
        return drivers[-1]

    folder.mkdir(exist_ok=True)
    try:
        yield current
    finally:
        for driver in drivers:
            driver.kill()


@dataclass
class Application:
    """A training that runs.

    Attributes:
        folder: where its ranks say where they are (`gang_apps.arrive`), its model and its report.
        driver: who runs it.
        log_from: where its part of the driver's log begins.
    """

    folder: Path
    driver: Driver
    log_from: int

    @property
    def log(self) -> str:
        """What the driver has written since it got the job."""
        return self.driver.log[self.log_from :]

    def ended(self) -> bool:
        """Whether there is a report, or nobody who could write one."""
        return (self.folder / "report.json").exists() or not self.driver.is_alive()

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = _START_S) -> None:
        """Wait for a condition, and fail with the log when it does not come or the training ends."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = self.ended() and not condition()
            assert not ended, f"{what}: the training ended\n{self.log}"
            assert time.monotonic() < deadline, f"{what}: not after {timeout_s} s\n{self.log}"
            time.sleep(0.05)

    def ranks(self, size: int, attempt: int = 0) -> list[dict[str, Any]]:
        """What the ranks of an attempt say of themselves, once all have arrived."""
        files = [self.folder / f"rank-{rank}.{attempt}.json" for rank in range(size)]
        self.until(lambda: all(file.exists() for file in files), f"{size} ranks of attempt {attempt}")
        return [json.loads(file.read_text()) for file in files]

    def epoch(self) -> int:
        """The last epoch of `gang_apps.count` that has a checkpoint."""
        file = self.folder / "epoch"
        return int(file.read_text() or 0) if file.exists() else 0

    def finish(self) -> TrainReport:
        """Let a training that waits for it finish, and read its report."""
        (self.folder / "finish").touch()
        return self.report()

    def report(self) -> TrainReport:
        """The report, once the training has ended."""
        self.until(self.ended, "the training ends", _END_S)
        file = self.folder / "report.json"
        assert file.exists(), f"no report\n{self.log}"
        report = reports.loads(file.read_text())
        assert isinstance(report, TrainReport)
        return report


@contextmanager
def application(
    driver: Driver,
    folder: Path,
    entrypoint: str,
    *,
    np: int = 2,
    train: str | None = None,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Iterator[Application]:
    """Run a training of `tests.integration.gang_apps`.

    Args:
        entrypoint: name of the function; it gets `folder` and `kwargs`.
        train: Parquet of the dataset "train".
        options: of the gang.
    """
    folder.mkdir(exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)
    job = TrainJob(
        entrypoint=Entrypoint.parse(f"tests.integration.gang_apps:{entrypoint}"),
        entrypoint_kwargs={"folder": str(folder), **kwargs},
        np=np,
        datasets={"train": Source.parquet(train)} if train else {},
        model_uri=str(folder / "model"),
        report_uri=str(folder / "report.json"),
        gang=GangOptions(**{"start_timeout_s": 60.0, "max_restarts": 2, **(options or {})}),
    )
    (folder / "job.json").write_text(jobs.dumps(job))
    running = Application(folder, driver, len(driver.log))
    driver.submit(folder / "job.json")
    try:
        yield running
    finally:
        if not running.ended():
            driver.kill()  # nobody else knows how to end what the test has left running


def executor_of(rank: dict[str, Any]) -> psutil.Process:
    """The executor's JVM above a rank."""
    for parent in psutil.Process(rank["parent"]).parents():
        if any("CoarseGrainedExecutorBackend" in argument for argument in parent.cmdline()):
            return parent
    raise AssertionError(f"rank {rank['rank']} has no executor above it")
