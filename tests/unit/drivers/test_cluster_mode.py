"""Drivers on a standalone cluster: what is submitted, what a retry does, and what a deferral leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred
from airflow.sdk import DAG, Asset, Connection

from airflow_hydrogen.clusters.drivers import Driver, StandaloneDrivers
from airflow_hydrogen.contract import reports
from airflow_hydrogen.contract.errors import NullValueError, SharedStorageError
from airflow_hydrogen.contract.jobs import Sink, Source, nonce_uri
from airflow_hydrogen.contract.reports import Failure, TrainReport
from airflow_hydrogen.drivers import tries
from airflow_hydrogen.drivers.bundle_server import KEY_VARIABLE
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.testing import fake_spark_submit, run_task
from airflow_hydrogen.triggers.spark_driver import SparkDriverTrigger


def connection(deploy_mode: str = "cluster", host: str = "spark://master:7077", **extra: Any) -> Connection:
    extra = {"deploy-mode": deploy_mode, **extra}
    return Connection(conn_id="spark_default", conn_type="spark", host=host, extra=json.dumps(extra))


CLUSTER = connection()


class Store(dict[str, Any]):
    """Airflow's task state store: it holds JSON, and outlives tries and clears."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


def operator(tmp_path: Path, **arguments: Any) -> HorovodTrainOperator:
    defaults: dict[str, Any] = {
        "entrypoint": "json:loads",
        "np": 2,
        "model_uri": str(tmp_path / "models" / "{{ run_id }}"),
        "status_poll_interval": 0.1,
    }
    return HorovodTrainOperator(task_id="train", **{**defaults, **arguments})


@contextmanager
def showing(look: Callable[[list[str]], Driver | None]) -> Iterator[list[str]]:
    """Inside `fake_spark_submit`: let the master show another driver than those that were submitted.

    Args:
        look: told who was killed so far, it says what the master shows; None: what was submitted.

    Yields:
        The ids of drivers that were to be killed.
    """
    killed: list[str] = []
    submitted = StandaloneDrivers.snapshot

    async def snapshot(master: StandaloneDrivers, session: Any) -> dict[str, Driver]:
        driver = look(killed)
        return await submitted(master, session) if driver is None else {driver.driver_id: driver}

    async def kill(master: StandaloneDrivers, session: Any, driver_id: str) -> None:
        killed.append(driver_id)

    with (
        mock.patch.object(StandaloneDrivers, "snapshot", snapshot),
        mock.patch.object(StandaloneDrivers, "kill", kill),
    ):
        yield killed


# --- what is submitted -------------------------------------------------------------------------------


def test_driver_and_all_that_it_needs_are_one_bundle(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import helper")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "mine.zip").write_bytes(b"zip")
    (tmp_path / "data.csv").write_text("a,b")
    dag = DAG("flights")
    dag.fileloc = str(tmp_path / "flights_dag.py")
    task = operator(
        tmp_path,
        entrypoint="train.py",
        entrypoint_args=["--token", "s3cret"],
        py_files=f"{tmp_path}/mine.zip,s3a://lake/theirs.zip",
        files=f"{tmp_path}/data.csv",
        archives="hdfs:///env.tar.gz#env",
        env_vars={"REGION": "eu"},
        supervise=True,
        conf={"spark.ui.enabled": "false"},
        dag=dag,
    )
    with fake_spark_submit(connection=CLUSTER) as submissions:
        ran = run_task(task)
    submission = submissions[0]
    assert ran.return_value == submission.job.model_uri
    command = list(submission.command)
    assert command[-3:] == ["http://airflow/the-token/application.jar", "{{USER_JAR}}", ""]
    assert submission.option("--class") == "org.apache.spark.deploy.PythonRunner"
    assert submission.option("--deploy-mode") == "cluster"
    assert "--supervise" in command
    assert not {"--files", "--py-files", "--archives"} & set(command)
    assert not any("s3cret" in part for part in command)
    assert submission.conf == {"spark.ui.enabled": "false", "spark.dynamicAllocation.enabled": "false"}
    assert submission.environment == {"REGION": "eu"}
    settings = json.loads(submission.files["bundle.json"])
    assert settings["job_url"] == "http://airflow/the-token/job"
    assert settings["supervise"] is True
    assert settings["py_files"] == ["py/mine.zip", "s3a://lake/theirs.zip"]
    assert settings["files"] == ["files/data.csv"]
    assert settings["spark_archives"] == ["hdfs:///env.tar.gz#env"]
    assert b"def main" in submission.files["__main__.py"]
    assert submission.files["files/train.py"] == b"import helper"
    assert {"py/mine.zip", "files/data.csv", "helper.py", "airflow_hydrogen/runtime/bundle.py"} < set(
        submission.files
    )
    assert not any(b"s3cret" in content for content in submission.files.values())
    assert submission.job.entrypoint.value == "train.py"
    assert list(submission.job.entrypoint_args) == ["--token", "s3cret"]
    assert KEY_VARIABLE not in submission.environment


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": "/no/such.csv"}, r"files: '/no/such.csv' does not exist on this machine"),
        ({"py_files": "{a}/x.py,{b}/x.py"}, r"py_files: .*/b/x.py and .*/a/x.py have the same name"),
    ],
)
def test_files_that_cannot_travel(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text("")
    given = {key: value.format(a=tmp_path / "a", b=tmp_path / "b") for key, value in arguments.items()}
    with (
        fake_spark_submit(connection=CLUSTER) as submissions,
        pytest.raises(AirflowFailException, match=message),
    ):
        run_task(operator(tmp_path, **given))
    assert submissions == []


def test_failure_of_the_application_is_the_tasks(tmp_path: Path) -> None:
    error = NullValueError("late", 3, 10, "int64")
    with (
        fake_spark_submit(error, connection=CLUSTER),
        pytest.raises(AirflowFailException, match="^NullValueError: column 'late'"),
    ):
        run_task(operator(tmp_path))


def test_driver_that_dies_is_explained_by_its_state(tmp_path: Path) -> None:
    with (
        fake_spark_submit(None, connection=CLUSTER, driver_state="ERROR"),
        pytest.raises(
            AirflowException, match="without a report; driver .* is ERROR: the worker could not"
        ) as e,
    ):
        run_task(operator(tmp_path))
    assert type(e.value) is AirflowException  # a retry may help


# --- the report's place ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [CLUSTER, connection(host="yarn")])
def test_a_driver_on_the_cluster_finds_airflows_nonce_which_is_gone_afterwards(
    tmp_path: Path, where: Connection
) -> None:
    found: list[str] = []

    def look(job: Any) -> TrainReport:
        found.append(Path(nonce_uri(job.report_uri)).read_text())
        assert found == [job.report_nonce]
        return TrainReport(model_uri=job.model_uri)

    with fake_spark_submit(look, connection=where) as submissions:
        run_task(operator(tmp_path, durable=False))
    assert len(found) == 1
    assert not Path(nonce_uri(submissions[0].job.report_uri)).exists()


def test_a_driver_on_this_machine_has_nothing_to_prove(tmp_path: Path) -> None:
    with fake_spark_submit(connection=connection("client")) as submissions:
        run_task(operator(tmp_path))
    assert submissions[0].job.report_nonce is None


@pytest.mark.parametrize("where", [CLUSTER, connection(host="yarn")])
def test_a_store_that_airflow_cannot_speak_is_found_before_submission(
    tmp_path: Path, where: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    with (
        fake_spark_submit(connection=where) as submissions,
        pytest.raises(AirflowFailException, match=r"cannot speak s3://.*install s3fs"),
    ):
        run_task(operator(tmp_path, model_uri="s3://models/m", durable=False), task_state_store=Store())
    assert submissions == []


def test_a_driver_that_does_not_see_the_place_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tail(log_url: str) -> str:
        return f"airflow-hydrogen: SharedStorageError: {SharedStorageError('/m', 'it is not there')}"

    monkeypatch.setattr(tries, "log_tail", tail)
    ended = {"status": "ended", "explanation": "driver-0 is FAILED", "log_url": "http://worker/logPage/"}
    with pytest.raises(AirflowFailException, match="both have to reach that place, but it is not there"):
        resume(tmp_path, noted(tmp_path), ended)


# --- durable -----------------------------------------------------------------------------------------

DRIVER_ID = "driver-20260101000000-0009"
KEY = "airflow_hydrogen_driver.0"


def running(**changes: Any) -> Driver:
    return Driver(**{"driver_id": DRIVER_ID, "state": "RUNNING", "active": True, **changes})


def ended(state: str = "FINISHED") -> Driver:
    return Driver(DRIVER_ID, state, active=False)


def noted(tmp_path: Path, report: TrainReport | None = None) -> Store:
    """What a try that was killed has left: its note, and the report of its driver if that has ended."""
    uri = tmp_path / "m.report-0.json"
    if report is not None:
        uri.write_text(reports.dumps(report))
    return Store({KEY: {"driver_id": DRIVER_ID, "report_uri": str(uri)}})


def test_a_retry_waits_for_the_driver_of_the_try_before(tmp_path: Path) -> None:
    store = noted(tmp_path, TrainReport(model_uri="/the/earlier/one"))
    shown = [running(), running(), ended()]
    with (
        fake_spark_submit(connection=CLUSTER) as submissions,
        showing(lambda _killed: shown.pop(0)) as killed,
    ):
        ran = run_task(operator(tmp_path), task_state_store=store)
    assert ran.return_value == "/the/earlier/one"
    assert ran.xcoms["_link_spark_log"].startswith("file:///"), "the earlier driver's"
    assert (submissions, killed, shown) == ([], [], [])


def test_a_retry_reads_the_report_of_a_driver_that_has_ended(tmp_path: Path) -> None:
    store = noted(tmp_path, TrainReport(model_uri="/the/earlier/one"))
    with (
        fake_spark_submit(connection=CLUSTER) as submissions,
        showing(lambda _killed: ended("GONE")),
    ):
        ran = run_task(operator(tmp_path), task_state_store=store)
    assert ran.return_value == "/the/earlier/one"
    assert submissions == []


@pytest.mark.parametrize("failure", [None, Failure(error_type="X", message="lost", retryable=True)])
def test_a_retry_submits_again_after_a_failure_that_it_can_mend(
    tmp_path: Path, failure: Failure | None
) -> None:
    store = noted(tmp_path, TrainReport(failure=failure) if failure else None)
    before = store[KEY]["report_uri"]
    with fake_spark_submit(connection=CLUSTER) as submissions:
        run_task(operator(tmp_path), task_state_store=store)
    assert len(submissions) == 1
    assert store[KEY] == {
        "driver_id": submissions[0].driver_id,
        "report_uri": submissions[0].job.report_uri,
    }
    assert submissions[0].job.report_uri != before
    assert not Path(before).exists()


def test_a_failure_that_is_final_is_not_tried_again(tmp_path: Path) -> None:
    failure = Failure(error_type="NullValueError", message="column 'late'", retryable=False)
    store = noted(tmp_path, TrainReport(failure=failure))
    with (
        fake_spark_submit(connection=CLUSTER) as submissions,
        pytest.raises(AirflowFailException, match="NullValueError: column 'late'"),
    ):
        run_task(operator(tmp_path), task_state_store=store)
    assert submissions == []
    assert KEY not in store


def test_a_driver_that_still_waits_for_a_worker_has_lost_its_bundle(tmp_path: Path) -> None:
    """The try that served the bundle is dead."""
    with (
        fake_spark_submit(connection=CLUSTER) as submissions,
        showing(lambda killed: None if killed else running(state="SUBMITTED")) as killed,
    ):
        run_task(operator(tmp_path), task_state_store=noted(tmp_path))
    assert killed == [DRIVER_ID]
    assert len(submissions) == 1


def test_a_cleared_task_submits_again(tmp_path: Path) -> None:
    store = noted(tmp_path, TrainReport(model_uri="/the/earlier/one"))
    with fake_spark_submit(connection=CLUSTER) as submissions:
        run_task(operator(tmp_path), task_state_store=store, max_tries=1)
    assert len(submissions) == 1
    assert set(store) == {KEY, "airflow_hydrogen_driver.1"}


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_editing_retries_between_two_tries_submits_no_second_driver(tmp_path: Path, retries: int) -> None:
    store = Store()
    with fake_spark_submit(connection=CLUSTER) as submissions:
        run_task(operator(tmp_path, retries=3), task_state_store=store)
        run_task(operator(tmp_path, retries=retries), task_state_store=store, max_tries=3)
        assert len(submissions) == 1
        run_task(operator(tmp_path, retries=retries), task_state_store=store, max_tries=1 + 3)  # cleared
    assert len(submissions) == 2


def test_a_task_that_is_not_durable_submits_again(tmp_path: Path) -> None:
    store = noted(tmp_path, TrainReport(model_uri="/the/earlier/one"))
    with fake_spark_submit(connection=CLUSTER) as submissions:
        run_task(operator(tmp_path, durable=False), task_state_store=store)
    assert len(submissions) == 1
    assert store[KEY]["driver_id"] == DRIVER_ID


def test_killing_a_task_that_waits_ends_the_driver(tmp_path: Path) -> None:
    store, task = noted(tmp_path, TrainReport(model_uri="/m")), operator(tmp_path)

    def look(killed: list[str]) -> Driver:
        if task._end_driver is not None and not killed:
            task.on_kill()  # a signal, in the middle of the wait
        return ended("KILLED") if killed else running()

    with (
        fake_spark_submit(connection=CLUSTER),
        showing(look) as killed,
        pytest.raises(AirflowException, match="ended while the application ran"),
    ):
        run_task(task, task_state_store=store)
    assert killed == [DRIVER_ID]


# --- deferrable --------------------------------------------------------------------------------------


def test_a_deferred_task_leaves_what_another_leaves(tmp_path: Path) -> None:
    asset = Asset("model")

    def run(**arguments: Any) -> Any:
        with fake_spark_submit(
            lambda job: TrainReport(model_uri=job.model_uri, metrics={"loss": 0.5}), connection=CLUSTER
        ):
            return run_task(operator(tmp_path, outlets=[asset], **arguments), task_state_store=Store())

    deferred, waited = run(deferrable=True), run()
    logs = [ran.xcoms.pop("_link_spark_log") for ran in (deferred, waited)]
    assert logs[0] != logs[1], "each driver has its own"
    assert deferred == waited
    assert deferred.outlet_extra[asset]["metrics"] == {"loss": 0.5}
    assert deferred.xcoms["report"]["metrics"] == {"loss": 0.5}


def test_scoring_can_be_deferred_as_well(tmp_path: Path) -> None:
    task = ArrowInferenceOperator(
        task_id="score",
        model_uri="/m",
        source=Source.parquet("/lake"),
        sink=Sink.parquet(str(tmp_path / "scores"), partition={"ds": "2013-01-01"}),
        deferrable=True,
    )
    with fake_spark_submit(connection=CLUSTER) as submissions:
        assert run_task(task).return_value == f"{tmp_path}/scores/ds=2013-01-01"
    assert submissions[0].job.report_uri.startswith(f"{tmp_path}/scores.report-")


def test_what_the_trigger_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deferred: list[TaskDeferred] = []
    task = operator(tmp_path, deferrable=True, execution_timeout=timedelta(hours=1), status_poll_interval=7)
    real = task.defer

    def defer(**arguments: Any) -> None:
        try:
            real(**arguments)
        except TaskDeferred as raised:
            deferred.append(raised)
            raise

    monkeypatch.setattr(task, "defer", defer)
    with fake_spark_submit(connection=CLUSTER) as submissions:
        run_task(task)
    trigger = deferred[0].trigger
    assert isinstance(trigger, SparkDriverTrigger)
    assert deferred[0].method_name == "execute_complete"
    assert deferred[0].kwargs is None  # dag.test() drops them
    assert (trigger.driver_id, trigger.report_uri) == (
        submissions[0].driver_id,
        submissions[0].job.report_uri,
    )
    assert trigger.poll_interval_s == 7
    assert trigger.end_at is not None


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"status": "error", "message": "status 403"}, "cannot be followed: status 403. It may still run"),
        ({"status": "timeout"}, "did not end within execution_timeout=1:00:00, and was ended"),
        (
            {"status": "ended", "explanation": "driver-0 is KILLED", "log_url": None},
            "without a report; driver-0 is KILLED",
        ),
    ],
)
def test_what_a_deferral_may_end_with(tmp_path: Path, event: dict[str, str], message: str) -> None:
    store = noted(tmp_path)
    with pytest.raises(AirflowException, match=message) as caught:
        resume(tmp_path, store, event)
    assert type(caught.value) is AirflowException


def resume(tmp_path: Path, store: Store, event: dict[str, Any]) -> Any:
    """Go on after a deferral of which only a note and an event are left."""
    task = operator(tmp_path, execution_timeout=timedelta(hours=1))
    came = {**store[KEY], **event}
    task.execute = lambda context, **_: task.execute_complete(context, came)  # type: ignore[method-assign]
    return run_task(task, task_state_store=store).return_value


REPORT_WINS = [{"status": "timeout"}, {"status": "error", "message": "status 403"}]


@pytest.mark.parametrize("event", REPORT_WINS)
def test_a_success_in_the_report_wins_over_the_event(tmp_path: Path, event: dict[str, Any]) -> None:
    store = noted(tmp_path, TrainReport(model_uri="/trained/in/time"))
    assert resume(tmp_path, store, event) == "/trained/in/time"


@pytest.mark.parametrize("event", REPORT_WINS)
def test_a_failure_in_the_report_says_more_than_the_event(tmp_path: Path, event: dict[str, Any]) -> None:
    failure = Failure(error_type="NullValueError", message="column 'late'", retryable=False)
    store = noted(tmp_path, TrainReport(failure=failure))
    with pytest.raises(AirflowFailException, match="NullValueError: column 'late'"):
        resume(tmp_path, store, event)
    assert KEY not in store


@pytest.mark.parametrize(
    ("where", "arguments", "message"),
    [
        (
            None,
            {"deferrable": True},
            r"deferrable=True is not possible on local\[\*\] in client mode: the driver",
        ),
        (
            connection("client"),
            {"deferrable": True},
            r"the driver is a process of the task.*deploy_mode='cluster'",
        ),
        (
            connection(host="yarn"),
            {"deferrable": True, "durable": False},
            r"deferrable=True is not possible on yarn in cluster mode: only drivers on standalone clusters",
        ),
        (
            connection("client"),
            {"supervise": True},
            r"supervise=True lets a standalone cluster start a driver",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_before_submission(
    tmp_path: Path, where: Connection | None, arguments: dict[str, Any], message: str
) -> None:
    with (
        fake_spark_submit(connection=where) as submissions,
        pytest.raises(AirflowFailException, match=message),
    ):
        run_task(operator(tmp_path, **arguments))
    assert submissions == []


def test_airflows_default_defers_only_where_it_is_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
    for where, defers in ((CLUSTER, True), (connection("client"), False), (None, False)):
        task = operator(tmp_path)
        deferred: list[bool] = []
        real = task.defer
        monkeypatch.setattr(task, "defer", lambda **kw: (deferred.append(True), real(**kw)))  # noqa: B023
        with fake_spark_submit(connection=where):
            run_task(task)
        assert bool(deferred) is defers
    with fake_spark_submit(connection=CLUSTER):
        task = operator(tmp_path, deferrable=False)
        monkeypatch.setattr(task, "defer", None)
        run_task(task)
