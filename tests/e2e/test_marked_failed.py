"""Trainings under a real scheduler and triggerer: one defers and ends well; some that a user fails."""

from __future__ import annotations

import shutil
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.airflow_processes import AirflowProcesses
from tests.e2e.conftest import Home
from tests.integration.cluster import StandaloneCluster, processes_below, standalone_cluster
from tests.processes import living

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

START_TIMEOUT_S = 240.0  # a task's process, spark-submit, the driver, executors and ranks, on a busy machine
END_TIMEOUT_S = 10.0
HEARTBEAT_S = 5.0  # so often a running task learns from Airflow what became of it
PROJECT = Path(__file__).parents[1] / "integration" / "clusterproject.py"
DAG_FILE = """
from airflow.sdk import DAG

from airflow_hydrogen.operators.train import HorovodTrainOperator

for name, conn_id in (("client", "client"), ("cluster", "cluster"), ("deferred", "cluster")):
    with DAG(name, schedule=None, params={"folder": ""}) as dag:
        HorovodTrainOperator(
            task_id="train",
            entrypoint="clusterproject:train",
            entrypoint_kwargs={"folder": "{{ params.folder }}", "epochs": 2, "waits": True},
            np=2,
            model_uri="{{ params.folder }}/model",
            conn_id=conn_id,
            conf={"spark.ui.enabled": "false"},
            driver_memory="512m",
            executor_memory="512m",
            start_timeout_s=180,
            deferrable=name == "deferred",
        )
    globals()[name] = dag
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandaloneCluster]:
    with standalone_cluster(workers=2, cores=2, memory="2g", gpus=0) as started:
        yield started


@pytest.fixture(scope="module")
def airflow(
    modules_home: Home, cluster: StandaloneCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowProcesses]:
    dags = tmp_path_factory.mktemp("dags")
    (dags / "trainings.py").write_text(DAG_FILE)
    shutil.copy(PROJECT, dags)
    environment = {
        **modules_home.environment,
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW_CONN_CLIENT": cluster.connection(),
        "AIRFLOW_CONN_CLUSTER": cluster.connection(**{"deploy-mode": "cluster"}),
    }
    with AirflowProcesses(modules_home.airflow, environment, parallelism=2, triggerer=True) as running:
        yield running


class Run:
    """A run of one of the DAGs, both ranks of which are in their first epoch."""

    def __init__(self, airflow: AirflowProcesses, dag: str, folder: Path) -> None:
        self._airflow = airflow
        self._folder = folder
        airflow.wait(lambda: self._is_known(dag), "the DAG is parsed", START_TIMEOUT_S)
        asked = {"logical_date": None, "conf": {"folder": str(folder)}}
        run = airflow.ask("POST", f"/api/v2/dags/{dag}/dagRuns", asked)
        self._path = f"/api/v2/dags/{dag}/dagRuns/{run['dag_run_id']}"
        airflow.wait(self._trains, "both ranks train", START_TIMEOUT_S)

    def _is_known(self, dag: str) -> bool:
        try:
            self._airflow.ask("GET", f"/api/v2/dags/{dag}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True

    def _trains(self) -> bool:
        assert self.task_state != "failed", f"the training failed; see {self._airflow.folder}/logs"
        return all((self._folder / f"in-epoch-0-rank-{rank}").exists() for rank in (0, 1))

    @property
    def task_state(self) -> str:
        return str(self._airflow.ask("GET", f"{self._path}/taskInstances/train")["state"])

    def xcom(self, key: str) -> Any:
        path = f"{self._path}/taskInstances/train/xcomEntries/{key}?deserialize=true"
        return self._airflow.ask("GET", path)["value"]

    def mark_failed(self) -> None:
        """As the button of Airflow's UI does."""
        self._airflow.ask("PATCH", f"{self._path}/taskInstances/train", {"new_state": "failed"})


def test_a_deferred_training_waits_on_the_triggerer_and_ends_well(
    airflow: AirflowProcesses, tmp_path: Path
) -> None:
    run = Run(airflow, "deferred", tmp_path)
    airflow.wait(lambda: run.task_state == "deferred", "the task is deferred", 60)
    waiting = "select classpath from trigger where triggerer_id is not null"
    airflow.wait(lambda: airflow.query(waiting), "the triggerer has it", 60)
    assert airflow.query(waiting) == [("airflow_hydrogen.triggers.spark_driver.SparkDriverTrigger",)]
    for epoch in (0, 1):
        (tmp_path / f"after-epoch-{epoch}").touch()
    airflow.wait(lambda: run.task_state in ("success", "failed"), "the task ends", START_TIMEOUT_S)
    assert run.task_state == "success"
    assert run.xcom("return_value") == str(tmp_path / "model")
    assert run.xcom("report")["epochs"] == 2


@pytest.mark.parametrize("dag", ["client", "cluster", "deferred"])
def test_a_training_that_a_user_marks_failed_is_gone_within_seconds(
    airflow: AirflowProcesses,
    cluster: StandaloneCluster,
    tmp_path: Path,
    rank_processes: Callable[[], list[psutil.Process]],
    dag: str,
) -> None:
    def what_runs() -> list[psutil.Process]:
        return [*submissions(airflow), *processes_below(cluster.folder), *rank_processes()]

    run = Run(airflow, dag, tmp_path)
    state = "deferred" if dag == "deferred" else "running"
    airflow.wait(lambda: run.task_state == state, f"the task is {state}", 60)
    assert len(rank_processes()) == 2
    assert processes_below(cluster.folder), "executors"
    assert bool(submissions(airflow)) == (dag == "client")
    run.mark_failed()
    began = time.monotonic()
    airflow.wait(lambda: not what_runs(), "nothing runs any more", HEARTBEAT_S + END_TIMEOUT_S)
    print(f"{dag}: all gone after {time.monotonic() - began:.1f} s")
    airflow.wait(
        lambda: all(worker["coresused"] == 0 for worker in cluster.alive_workers()), "cores are free", 10
    )
    assert run.task_state == "failed"
    assert not (tmp_path / "model" / "manifest.json").exists()


def submissions(airflow: AirflowProcesses) -> list[psutil.Process]:
    """spark-submit and a driver beside it, which inherit the environment of this Airflow."""

    def is_one(process: psutil.Process) -> bool:
        words = " ".join(process.cmdline())
        return ("SparkSubmit" in words or "airflow_hydrogen_job.py" in words) and (
            process.environ().get("AIRFLOW_HOME") == str(airflow.folder)
        )

    return living(is_one)
