"""Fakes for tests of your own DAGs: run the operators without Spark, and look at what they would submit.

```python
from airflow_hydrogen.contract.reports import TrainReport
from airflow_hydrogen.testing import fake_spark_submit, run_task

def test_training_asks_for_four_processes():
    with fake_spark_submit() as submissions:
        ran = run_task(dag.get_task("train"), params={"epochs": 3})
    assert submissions[0].job.np == 4
    assert ran.return_value == submissions[0].job.model_uri
```

`fake_spark_submit` serves `dag.test()` as well, which runs tasks in this process.
"""

from __future__ import annotations

import asyncio
import copy
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowNotFoundException,
    BaseHook,
    TaskDeferred,
)

from airflow_hydrogen.clusters.drivers import Driver, StandaloneDrivers
from airflow_hydrogen.contract import jobs, reports, uris
from airflow_hydrogen.contract.jobs import Job, TrainJob
from airflow_hydrogen.contract.reports import Failure, InferenceReport, Report, TrainReport
from airflow_hydrogen.drivers import cluster_mode
from airflow_hydrogen.drivers.hook import ClusterDriverHook
from airflow_hydrogen.hooks import buckets, report_files
from airflow_hydrogen.hooks.spark_submit import SPARK_UI_LINE, HydrogenSparkSubmitHook
from airflow_hydrogen.operators import local_sessions

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Connection

Answer = Report | Exception | Callable[[Job], Report | None] | None


@dataclass(frozen=True)
class Submission:
    """What an operator handed to spark-submit.

    Attributes:
        job: the job file's content.
        command: spark-submit's command line, or of a client of Spark Connect the application and its job.
        files: name -> content of the Python files in the zips of `--py-files`, of the bundle, or of what a
            session of Spark Connect is sent.
        environment: variables that the operator set for spark-submit, beyond its own environment; for a
            driver on a standalone cluster: those of the driver.
        driver_id: of a driver on a standalone cluster.
    """

    job: Any
    command: Sequence[str]
    files: Mapping[str, bytes] = field(repr=False)
    environment: Mapping[str, str]
    driver_id: str | None = None

    def option(self, name: str) -> str | None:
        """The value of an option of spark-submit, such as `--master`; the last one if it is repeated."""
        values = [
            value for option, value in zip(self.command, self.command[1:], strict=False) if option == name
        ]
        return values[-1] if values else None

    @property
    def conf(self) -> dict[str, str]:
        """The Spark settings of the command line."""
        pairs = zip(self.command, self.command[1:], strict=False)
        settings = [value for option, value in pairs if option == "--conf"]
        return dict(setting.partition("=")[::2] for setting in settings)


def success(job: Job) -> Report:
    """The report of an application that did what the job asked."""
    if isinstance(job, TrainJob):
        return TrainReport(model_uri=job.model_uri, np=abs(job.np) or 1, epochs=1, seconds={"total": 1.0})
    return InferenceReport(
        output_uri=job.sink.output,
        model_uri=job.model_uri,
        rows=0,
        partitions={uris.partition_folders(partition): 0 for partition in job.sink.partitions},
        seconds={"total": 1.0},
    )


@contextmanager
def fake_spark_submit(
    report: Answer = success,
    *,
    connection: Connection | None = None,
    connections: Sequence[Connection] = (),
    log: Sequence[str] = (),
    exit_code: int | None = None,
    driver_state: str | None = None,
) -> Iterator[list[Submission]]:
    """Let the operators run without Spark; everything else they do, they do.

    A driver on a standalone cluster has ended when it is first looked at.

    Args:
        report: what the application answers: a report, an exception that it fails with, a function of the job
            that returns the report, or None for an application that dies without a report.
        connection: the only Spark connection there is; None: there is none, so that the job is local.
        connections: others, such as those of the databases that sources name.
        log: lines that the application prints.
        exit_code: of spark-submit; None: 0 when the report is a success, 1 otherwise.
        driver_state: of drivers on a standalone cluster; None: FINISHED when the report is a success, else
            FAILED.

    Yields:
        The submissions, in their order.
    """
    submissions: list[Submission] = []
    drivers: dict[str, Driver] = {}

    def run(hook: HydrogenSparkSubmitHook, submission: Submission, printed: Sequence[str]) -> int:
        submissions.append(submission)
        hook._submit_sp = _NoProcess()
        hook._process_spark_submit_log(iter([f"{line}\n" for line in printed]))
        answer = report(submission.job) if callable(report) else report
        if isinstance(answer, Exception):
            failed = TrainReport if isinstance(submission.job, TrainJob) else InferenceReport
            answer = failed(failure=Failure.of(answer))
        if answer is not None:
            report_files.write(submission.job.report_uri, reports.dumps(answer), submission.job.s3)
        return exit_code if exit_code is not None else int(answer is None or answer.failure is not None)

    def submit(hook: HydrogenSparkSubmitHook, application: str = "", **kwargs: Any) -> None:
        if hook._on_submit is not None:
            hook._on_submit()
        submission = _read_submission(hook, application)
        if code := run(hook, submission, log):
            raise AirflowException(f"Cannot execute: {' '.join(submission.command)}. Error code is: {code}.")

    def submit_driver(hook: ClusterDriverHook, application: str = "", **kwargs: Any) -> None:
        if hook._on_submit is not None:
            hook._on_submit()
        driver_id = f"driver-20260101000000-{len(drivers):04}"
        submission = _read_driver(hook, application, driver_id)
        code = run(hook, submission, [f"Driver successfully submitted as {driver_id}", *log])
        drivers[driver_id] = Driver(
            driver_id, driver_state or ("FAILED" if code else "FINISHED"), active=False
        )

    async def snapshot(master: StandaloneDrivers, session: Any) -> dict[str, Driver]:
        return drivers

    by_id = {other.conn_id: other for other in connections}

    def get_connection(conn_id: str) -> Connection:
        if conn_id in by_id:
            return by_id[conn_id]
        if connection is None:
            raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")
        return connection

    async def aget_connection(conn_id: str) -> Connection:
        return get_connection(conn_id)

    with (
        mock.patch.object(HydrogenSparkSubmitHook, "submit", submit),
        mock.patch.object(ClusterDriverHook, "submit", submit_driver),
        mock.patch.object(cluster_mode, "open_bundle_server", side_effect=lambda hook: _NoServer()),
        mock.patch.object(StandaloneDrivers, "snapshot", snapshot),
        mock.patch.object(BaseHook, "aget_connection", side_effect=aget_connection),
        mock.patch.object(HydrogenSparkSubmitHook, "get_connection", side_effect=get_connection),
        mock.patch.object(HydrogenSparkSubmitHook, "require_launcher"),
        mock.patch.object(buckets, "require_open"),
        mock.patch.object(local_sessions, "are_wanted", return_value=False),
        mock.patch.object(HydrogenSparkSubmitHook, "_end_session"),
        mock.patch.object(
            HydrogenSparkSubmitHook, "_get_spark_binary_path", side_effect=lambda: ["spark-submit"]
        ),
    ):
        yield submissions


class _NoProcess:
    """In the place of spark-submit's process: it has ended. It has no pid that anything could be sent to."""

    stdout = None

    def poll(self) -> int:
        """Its exit code."""
        return 0


class _NoServer:
    """In the place of the server of bundle and job."""

    key, token = "the-key", "the-token"
    bundle_url, job_url = "http://airflow/the-token/application.jar", "http://airflow/the-token/job"
    job_fetched = True

    def __enter__(self) -> _NoServer:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def offer(self, bundle: Path, job: bytes) -> None:
        """Keep what would be served."""
        self.bundle, self.job = bundle.read_bytes(), job

    def release(self, driver_id: str) -> None:
        """Nobody waits."""


@dataclass
class TaskRun:
    """What a task left behind.

    Attributes:
        return_value: what `execute` returned.
        xcoms: what it pushed, by key, besides the return value.
        outlet_extra: outlet asset -> the extra of its event.
        alias_events: name of an outlet asset alias -> URI of the asset that got an event through it -> extra.
        partition_keys: outlet asset -> the partitions of which it got an event each; empty: one event.
    """

    return_value: Any
    xcoms: dict[str, Any]
    outlet_extra: dict[Any, dict[str, Any]]
    alias_events: dict[str, dict[str, dict[str, Any]]]
    partition_keys: dict[Any, set[str]]


def run_task(
    operator: BaseOperator,
    *,
    run_id: str = "test_run",
    map_index: int = -1,
    max_tries: int | None = None,
    xcoms: dict[str, Any] | None = None,
    **context: Any,
) -> TaskRun:
    """Render an operator's templates and execute it, without a database; a deferral is waited for.

    Args:
        operator: a task; it is rendered in place, as Airflow does.
        run_id: the DAG run's.
        map_index: of a mapped task.
        max_tries: of the task instance; None: the operator's retries, as for a task that was never cleared.
        xcoms: filled with what the task pushes; useful where it raises.
        context: further variables for templates: `ds`, `params`, ...
    """
    from airflow.sdk import Asset
    from airflow.sdk.execution_time.context import OutletEventAccessors

    pushed = {} if xcoms is None else xcoms
    dag_id = operator.dag_id if operator.has_dag() else "test_dag"  # type: ignore[no-untyped-call]
    ti = SimpleNamespace(
        task=operator,
        dag_id=dag_id,
        task_id=operator.task_id,
        run_id=run_id,
        map_index=map_index,
        max_tries=operator.retries if max_tries is None else max_tries,
        try_number=1,
        stats_tags={},
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
    )
    events = OutletEventAccessors()
    variables: Any = {
        "ti": ti,
        "task_instance": ti,
        "task": operator,
        "run_id": run_id,
        "outlet_events": events,
        "task_instance_key_str": f"{dag_id}__{operator.task_id}__{run_id}",
        **context,
    }
    operator.render_template_fields(variables)
    # The name under which Airflow's safeguard looks for the sign that a task runner calls.
    from airflow.sdk.bases.operator import ExecutorSafeguard

    sentinel = {f"{type(operator).__name__}__sentinel": ExecutorSafeguard.sentinel_value}
    # Another process goes on after a deferral: what `execute` leaves on the operator is not there.
    resumed = copy.copy(operator)
    try:
        value = operator.execute(variables, **sentinel)
    except TaskDeferred as deferred:
        event = asyncio.run(_first_event(deferred.trigger.run()))
        value = getattr(resumed, deferred.method_name)(variables, event=event)
    through_aliases: dict[str, dict[str, dict[str, Any]]] = {}
    for event in events.values():
        for through in event.asset_alias_events:
            assets = through_aliases.setdefault(through.source_alias_name, {})
            assets[through.dest_asset_key.uri] = through.extra
    of_assets = {key: event for key, event in events.items() if isinstance(key, Asset)}
    return TaskRun(
        value,
        pushed,
        {key: event.extra for key, event in of_assets.items()},
        through_aliases,
        {key: getattr(event, "partition_keys", set()) for key, event in of_assets.items()},
    )


def _read_submission(hook: HydrogenSparkSubmitHook, application: str) -> Submission:
    command = hook._build_spark_submit_command(application)
    job_file = Path((hook._application_args or [""])[0])
    if not job_file.is_absolute():  # in cluster mode, one of --files
        job_file = next(Path(file) for file in (hook._files or "").split(",") if file.endswith(job_file.name))
    job = jobs.loads(job_file.read_text())
    sent = (hook._py_files or "").split(",") if job.connect is None else job.connect.py_files
    contents: dict[str, bytes] = {}
    for file in sent:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents |= {name: archive.read(name) for name in archive.namelist()}
    return Submission(
        job=job,
        command=command[command.index("spark-submit" if "spark-submit" in command else application) :],
        files=contents,
        environment={name: str(value) for name, value in (hook._env or {}).items()},
    )


def _read_driver(hook: ClusterDriverHook, application: str, driver_id: str) -> Submission:
    command = hook._build_spark_submit_command(application)
    server: Any = hook._server
    with zipfile.ZipFile(io.BytesIO(server.bundle)) as bundle:
        contents = {name: bundle.read(name) for name in bundle.namelist()}
    for name in [name for name in contents if name.startswith("airflow_hydrogen_")]:
        with zipfile.ZipFile(io.BytesIO(contents.pop(name))) as archive:
            contents |= {inner: archive.read(inner) for inner in archive.namelist()}
    return Submission(
        job=jobs.loads(server.job.decode()),
        command=command[command.index("spark-submit") :],
        files=contents,
        environment=dict(hook._driver_environment),
        driver_id=driver_id,
    )


async def _first_event(events: AsyncIterator[Any]) -> Any:
    async for event in events:
        return event.payload
    raise AssertionError("the trigger ended without an event")


def spark_ui_line(url: str) -> str:
    """The line of the log with which an application tells the address of its Spark UI."""
    return f"{SPARK_UI_LINE}{url}"
