"""Drivers on workers of a real standalone cluster: submitted, followed, found again, started again and ended.
And, at the end, what a task leaves whose driver runs beside it.

The trainings here use no framework: what they do between two epochs is to wait for a file of the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred
from airflow.sdk import DAG

from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.runtime.storage import filesystems, s3
from airflow_hydrogen.testing import run_task
from airflow_hydrogen.triggers.spark_driver import SparkDriverTrigger
from tests.integration.cluster import StandaloneCluster, processes_below, standalone_cluster
from tests.integration.object_store import BUCKET, object_store

pytestmark = [pytest.mark.integration, pytest.mark.large, pytest.mark.timeout(900)]

START_TIMEOUT_S = 180.0  # two JVMs, Spark's executors and the ranks, on a busy machine
END_TIMEOUT_S = 10.0
DRIVER_MEMORY = "512m"

# Code beside the DAG. It reaches driver, executors and ranks in the bundle alone.
PROJECT = Path(__file__).with_name("clusterproject.py")


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandaloneCluster]:
    with standalone_cluster(workers=2, cores=2, memory="2g", gpus=0) as started:
        yield started


@pytest.fixture(autouse=True)
def connection(cluster: StandaloneCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", cluster.connection(**{"deploy-mode": "cluster"}))


@pytest.fixture
def project(tmp_path: Path) -> DAG:
    """A DAG with code beside it."""
    folder = tmp_path / "dags"
    folder.mkdir()
    shutil.copy(PROJECT, folder)
    dag = DAG("cluster_mode")
    dag.fileloc = str(folder / "dag.py")
    return dag


class Store(dict[str, Any]):
    """Airflow's task state store, as a file, so that it outlives a process."""

    def __init__(self, file: Path) -> None:
        super().__init__(json.loads(file.read_text()) if file.exists() else {})
        self._file = file

    def set(self, key: str, value: Any) -> None:
        self[key] = value
        self._file.write_text(json.dumps(self))

    def delete(self, key: str) -> None:
        self.pop(key, None)
        self._file.write_text(json.dumps(self))


def train(dag: DAG, tmp_path: Path, **arguments: Any) -> HorovodTrainOperator:
    defaults: dict[str, Any] = {
        "task_id": "train",
        "dag": dag,
        "entrypoint": "clusterproject:train",
        "entrypoint_kwargs": {"folder": str(tmp_path), "epochs": 3, "waits": True},
        "np": 2,
        "model_uri": str(tmp_path / "model"),
        "conf": {"spark.ui.enabled": "false"},
        "driver_memory": DRIVER_MEMORY,
        "executor_memory": "512m",
        "start_timeout_s": START_TIMEOUT_S,
    }
    return HorovodTrainOperator(**{**defaults, **arguments})


def drivers(cluster: StandaloneCluster) -> dict[str, str]:
    """State by id of all drivers that the master has seen."""
    page = cluster.state()
    return {entry["id"]: entry["state"] for entry in [*page["activedrivers"], *page["completeddrivers"]]}


def driver_processes(cluster: StandaloneCluster, driver_id: str, name: str = "") -> list[psutil.Process]:
    """The JVM (`java`) and the Python (`python`) of a driver."""
    (folder,) = cluster.folder.glob(f"worker-*/{driver_id}")
    return [process for process in processes_below(folder) if process.name().startswith(name)]


def test_a_training_and_a_scoring_with_drivers_on_workers(
    cluster: StandaloneCluster, project: DAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "s3cret-of-airflow")
    pq.write_table(pa.table({"x": pa.array([1.0, 2.0, 3.0], pa.float32())}), tmp_path / "rows.parquet")
    (tmp_path / "note.txt").write_text("a file of the author's")
    submit_folder = tmp_path / "submit"
    submit_folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(submit_folder))
    monkeypatch.setattr("tempfile.tempdir", str(submit_folder))
    trained = run_task(
        train(
            project,
            tmp_path,
            entrypoint_kwargs={"folder": str(tmp_path), "epochs": 1},
            train_data=Source.parquet(str(tmp_path / "rows.parquet")),
            prepare="clusterproject:prepare",
            prepare_kwargs={"look": str(tmp_path / "look.json"), "token": "s3cret-of-the-job"},
            files=str(tmp_path / "note.txt"),
            env_vars={"REGION": "s3cret-of-the-author"},
        )
    )
    assert trained.return_value == str(tmp_path / "model")
    assert (tmp_path / "model" / "manifest.json").exists()
    assert trained.xcoms["report"]["np"] == 2
    assert trained.xcoms["report"]["rows"] == 3

    seen = json.loads((tmp_path / "look.json").read_text())
    (driver_id,) = drivers(cluster)
    (folder,) = cluster.folder.glob(f"worker-*/{driver_id}")
    assert seen["cwd"] == str(folder / "airflow-hydrogen" / "files")
    assert (seen["mode"], seen["job"]) == ("0o700", "0o600")
    assert seen["file"] == "a file of the author's"
    assert seen["python"] == sys.executable  # the worker's PYSPARK_PYTHON
    # Nothing was left where the driver could have found it, and nothing of it was there.
    assert list(submit_folder.iterdir()) == []
    assert str(submit_folder) not in json.dumps(seen)
    environment = seen["environment"]
    assert environment["REGION"] == "s3cret-of-the-author"
    assert not [name for name in environment if name.startswith("AIRFLOW__")]
    assert "spark.jars" not in seen["conf"]
    # What the daemons keep and show.
    logs = cluster.logs(lines=100_000) + (folder / "stderr").read_text() + json.dumps(cluster.state())
    (whole_log,) = tmp_path.glob(".model.spark-*.log")
    assert trained.xcoms["_link_spark_log"] == f"file://{whole_log}"
    assert " INFO DAGScheduler: " in whole_log.read_text()
    assert "s3cret" not in logs + whole_log.read_text()

    scored = run_task(
        ArrowInferenceOperator(
            task_id="score",
            dag=project,
            model_uri=trained.return_value,
            source=Source.parquet(str(tmp_path / "rows.parquet")),
            sink=Sink.parquet(str(tmp_path / "scores"), partition={"ds": "2013-01-01"}),
            predictor="clusterproject:load",
            conf={"spark.ui.enabled": "false"},
            driver_memory=DRIVER_MEMORY,
            executor_memory="512m",
        )
    )
    assert scored.return_value == str(tmp_path / "scores" / "ds=2013-01-01")
    assert scored.xcoms["report"]["rows"] == 3
    assert sorted(pq.read_table(scored.return_value).column("y").to_pylist()) == [2.0, 4.0, 6.0]
    assert set(drivers(cluster).values()) == {"FINISHED"}


def test_a_driver_and_a_deferred_task_meet_on_s3_by_the_tasks_connection(
    cluster: StandaloneCluster, project: DAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "objects").mkdir()
    before = set(drivers(cluster))
    with object_store(tmp_path / "objects") as store:
        monkeypatch.setenv("AIRFLOW_CONN_LAKE", store.connection())
        with s3.using(store.access):
            filesystem, path = filesystems.resolve(f"s3://{BUCKET}/rows/x.parquet")
            pq.write_table(
                pa.table({"x": pa.array([1.0, 2.0, 3.0], pa.float32())}), path, filesystem=filesystem
            )
        trained = run_task(
            train(
                project,
                tmp_path,
                entrypoint_kwargs={"folder": str(tmp_path), "epochs": 1},
                train_data=Source.parquet(f"s3://{BUCKET}/rows"),
                model_uri=f"s3://{BUCKET}/model",
                aws_conn_id="lake",
                deferrable=True,
            )
        )
    assert trained.return_value == f"s3://{BUCKET}/model"
    assert trained.xcoms["report"]["rows"] == 3
    left = {file.name for file in (tmp_path / "objects" / BUCKET).rglob("*") if file.is_file()}
    assert "manifest.json" in left and not [name for name in left if "nonce" in name], left
    (driver_id,) = set(drivers(cluster)) - before
    (folder,) = cluster.folder.glob(f"worker-*/{driver_id}")
    shown = cluster.logs(lines=100_000) + (folder / "stderr").read_text() + json.dumps(cluster.state())
    assert str(store.access.secret_key) not in shown


SUBMITTER = """
import sys
from pathlib import Path
from tests.integration.test_cluster_mode import DAG, Store, run_task, train
folder = Path(sys.argv[1])
dag = DAG("cluster_mode")
dag.fileloc = str(folder / "dags" / "dag.py")
run_task(train(dag, folder), task_state_store=Store(folder / "store.json"))
"""


def kill_submitter_at(tmp_path: Path, file: str, eventually: Callable[..., None]) -> None:
    """Run the task in a process of its own, and kill that once the training has written a file."""
    with (tmp_path / "submitter.log").open("wb") as log:
        submitter = subprocess.Popen(
            [sys.executable, "-c", SUBMITTER, str(tmp_path)], stdout=log, stderr=log, cwd=os.getcwd()
        )
    try:
        eventually(lambda: (tmp_path / file).exists() or submitter.poll() is not None, file, START_TIMEOUT_S)
        assert submitter.poll() is None, (tmp_path / "submitter.log").read_text()
    finally:
        submitter.send_signal(signal.SIGKILL)
        submitter.wait(10)


def test_a_retry_finds_the_driver_of_a_try_that_was_killed(
    cluster: StandaloneCluster, project: DAG, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    before = set(drivers(cluster))
    kill_submitter_at(tmp_path, "in-epoch-0-rank-1", eventually)
    for epoch in range(3):
        (tmp_path / f"after-epoch-{epoch}").touch()
    ran = run_task(train(project, tmp_path), task_state_store=Store(tmp_path / "store.json"))
    assert ran.return_value == str(tmp_path / "model")
    assert ran.xcoms["report"]["epochs"] == 3
    (driver_id,) = set(drivers(cluster)) - before
    assert drivers(cluster)[driver_id] == "FINISHED"


def test_a_deferred_training_goes_on_after_its_driver_died_twice(
    cluster: StandaloneCluster, project: DAG, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    before = set(drivers(cluster))
    task = train(project, tmp_path, deferrable=True, supervise=True)
    deferred = defer(task)
    (driver_id,) = set(drivers(cluster)) - before
    assert deferred.trigger.driver_id == driver_id
    path, kwargs = deferred.trigger.serialize()
    assert path.endswith("SparkDriverTrigger")
    trigger = SparkDriverTrigger(**json.loads(json.dumps(kwargs)))

    def live_through_two_deaths() -> None:
        (tmp_path / "after-epoch-0").touch()
        in_second_epoch = tmp_path / "in-epoch-1-rank-0"
        for victim in ("java", "python"):
            eventually(in_second_epoch.exists, "the second epoch", START_TIMEOUT_S)
            in_second_epoch.unlink()
            (process,) = driver_processes(cluster, driver_id, victim)
            process.kill()
        eventually(in_second_epoch.exists, "the second epoch for the third time", START_TIMEOUT_S)
        for epoch in (1, 2):
            (tmp_path / f"after-epoch-{epoch}").touch()

    async def wait() -> Any:
        waiting = asyncio.ensure_future(first_event(trigger))
        await asyncio.to_thread(live_through_two_deaths)
        return await asyncio.wait_for(waiting, START_TIMEOUT_S)

    event = asyncio.run(wait())
    assert event["status"] == "ended"
    # Airflow makes the operator anew for what comes after a deferral.
    dag = DAG("cluster_mode")
    resumed = train(dag, tmp_path, deferrable=True, supervise=True)
    resumed.execute = lambda context, **_: resumed.execute_complete(context, event)  # type: ignore[method-assign]
    ran = run_task(resumed)
    assert ran.return_value == str(tmp_path / "model")
    assert ran.xcoms["report"]["resumed_from_epoch"] == 1
    assert set(drivers(cluster)) - before == {driver_id}
    (stdout,) = cluster.folder.glob(f"worker-*/{driver_id}/stdout")
    assert "airflow-hydrogen: start 3 of this driver" in stdout.read_text()


@pytest.mark.parametrize("deferrable", [False, True])
def test_ending_a_task_ends_driver_executors_and_ranks(
    cluster: StandaloneCluster,
    project: DAG,
    tmp_path: Path,
    deferrable: bool,
    eventually: Callable[..., None],
    rank_processes: Callable[[], list[psutil.Process]],
) -> None:
    before = set(drivers(cluster))
    task = train(project, tmp_path, deferrable=deferrable, supervise=True)
    errors: list[Exception] = []

    def run() -> None:
        try:
            run_task(task)
        except AirflowException as error:
            errors.append(error)

    running = threading.Thread(target=run)
    if deferrable:
        trigger = defer(task).trigger
    else:
        running.start()
    eventually(
        lambda: (tmp_path / "in-epoch-0-rank-0").exists() and (tmp_path / "in-epoch-0-rank-1").exists(),
        "both ranks train",
        START_TIMEOUT_S,
    )
    (driver_id,) = set(drivers(cluster)) - before
    assert len(rank_processes()) == 2
    # The driver's JVM and Python, an executor on each worker, and their Python workers.
    assert len(processes_below(cluster.folder)) >= 4
    if deferrable:
        asyncio.run(trigger.on_kill())
    else:
        task.on_kill()
    eventually(
        lambda: not (processes_below(cluster.folder) or rank_processes()),
        "driver, executors and ranks are gone",
        END_TIMEOUT_S,
    )
    eventually(lambda: drivers(cluster)[driver_id] == "KILLED", "the master knows", END_TIMEOUT_S)
    if not deferrable:
        running.join(30)
        assert "ended while the application ran" in str(errors[0])


def test_a_killed_task_takes_its_driver_along_and_the_retry_resumes(
    cluster: StandaloneCluster,
    project: DAG,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
    rank_processes: Callable[[], list[psutil.Process]],
) -> None:
    """Client mode: spark-submit, the driver, the executors and the ranks have lost who would collect them."""
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", cluster.connection())
    (tmp_path / "after-epoch-0").touch()
    kill_submitter_at(tmp_path, "in-epoch-1-rank-0", eventually)
    eventually(
        lambda: not (processes_below(cluster.folder) or rank_processes()),
        "executors and ranks are gone",
        END_TIMEOUT_S,
    )
    eventually(
        lambda: all(worker["coresused"] == 0 for worker in cluster.alive_workers()),
        "the cores are free",
        END_TIMEOUT_S,
    )
    for epoch in (1, 2):
        (tmp_path / f"after-epoch-{epoch}").touch()
    ran = run_task(train(project, tmp_path))
    assert ran.return_value == str(tmp_path / "model")
    assert ran.xcoms["report"]["resumed_from_epoch"] == 1


def defer(task: HorovodTrainOperator) -> TaskDeferred:
    """Execute a task until it defers."""
    deferred: list[TaskDeferred] = []
    real = task.defer

    def keep(**arguments: Any) -> None:
        try:
            real(**arguments)
        except TaskDeferred as raised:
            deferred.append(raised)
            raise AirflowException("deferred") from None

    task.defer = keep  # type: ignore[method-assign, assignment]
    with pytest.raises(AirflowException, match="deferred"):
        run_task(task)
    return deferred[0]


async def first_event(trigger: SparkDriverTrigger) -> Any:
    """What the trigger fires with."""
    async for event in trigger.run():
        return event.payload
