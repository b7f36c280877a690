"""Retries, clears and kills of a training, with the real spark-submit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_hydrogen.contract.jobs import Source
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.testing import TaskRun, run_task

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

RETRIES = 1


@pytest.fixture(autouse=True)
def two_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark on this machine, whatever connections it has."""
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[2]"}))
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


class Training:
    """One task instance, whose tries are run one by one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        points = folder / "points.parquet"
        x = [step / 500 for step in range(1_000)]
        pq.write_table(pa.table({"x": pa.array(x, "float32"), "y": pa.array(x, "float32")}), points)
        self._points = str(points)

    def run(self, *, clears: int = 0) -> dict[str, Any]:
        """One try, after so many clears; returns the report."""
        operator = HorovodTrainOperator(
            task_id="train",
            entrypoint="tests.e2e.trainings:fit_line",
            entrypoint_kwargs={"epochs": 4, "die_after_epoch": 2, "marker": str(self._folder / "died")},
            np=1,
            train_data=Source.parquet(self._points),
            model_uri=str(self._folder / "model"),
            max_restarts=0,  # so that it is Airflow that tries again
            retries=RETRIES,
        )
        # Airflow counts a clear by allowing more tries.
        ran: TaskRun = run_task(operator, max_tries=RETRIES + clears)
        report: dict[str, Any] = ran.xcoms["report"]
        return report

    @property
    def created(self) -> str:
        """When the published model was made, from its manifest."""
        manifest = json.loads((self._folder / "model" / "manifest.json").read_text())
        return str(manifest["run"]) + str(manifest["created"])


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def resumed(training: Training) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[2]"}))
        with pytest.raises(AirflowException, match="SIGKILL") as failure:
            training.run()
        assert "Fail" not in type(failure.value).__name__, "a killed rank is worth a retry"
        return training.run()


def test_a_retry_goes_on_from_the_last_checkpoint(resumed: dict[str, Any]) -> None:
    assert resumed["resumed_from_epoch"] == 2
    assert resumed["epochs"] == 4
    assert not resumed["reused"]


def test_a_finished_model_is_not_trained_again_on_retry(training: Training, resumed: dict[str, Any]) -> None:
    before = training.created
    report = training.run()
    assert report["reused"]
    assert report["model_uri"] == resumed["model_uri"]
    assert training.created == before


def test_a_cleared_task_trains_again_from_the_start(training: Training, resumed: dict[str, Any]) -> None:
    before = training.created
    report = training.run(clears=1)
    assert not report["reused"]
    assert report["resumed_from_epoch"] is None
    assert report["epochs"] == 4
    assert training.created != before


def test_a_kill_ends_jvm_driver_and_ranks(tmp_path: Path, eventually: Callable[..., None]) -> None:
    operator = HorovodTrainOperator(
        task_id="train",
        entrypoint="tests.e2e.trainings:wait_for_ever",
        entrypoint_kwargs={"folder": str(tmp_path)},
        np=2,
        model_uri=str(tmp_path / "model"),
    )
    outcome: list[BaseException] = []
    others = set(psutil.Process().children(recursive=True))

    def execute() -> None:
        try:
            run_task(operator)
        except BaseException as error:
            outcome.append(error)

    task = threading.Thread(target=execute)
    task.start()
    try:
        eventually(lambda: outcome or len(list(tmp_path.glob("rank-*"))) == 2, "both ranks run", 120)
        assert not outcome, outcome
        started = [child for child in psutil.Process().children(recursive=True) if child not in others]
        commands = {process.pid: _command(process) for process in started}
        ranks = {int(file.read_text()) for file in tmp_path.glob("rank-*")}
        assert ranks <= set(commands)
        assert any("org.apache.spark.deploy.SparkSubmit" in command for command in commands.values())
        assert any("airflow_hydrogen_job.py" in command for command in commands.values())
    finally:
        killed = time.monotonic()
        operator.on_kill()
        task.join(60)
    _, alive = psutil.wait_procs(started, timeout=max(0.0, killed + 10 - time.monotonic()))
    assert not alive, [commands[process.pid] for process in alive]
    assert not task.is_alive()
    assert isinstance(outcome[0], AirflowException)
    assert not (tmp_path / "model" / "manifest.json").exists()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return ""
