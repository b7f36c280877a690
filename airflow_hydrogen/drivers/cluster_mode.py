"""The part of the operators that runs a driver on a standalone cluster and waits for it, here or deferred."""

from __future__ import annotations

import secrets
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.common.compat.sdk import AirflowException

from airflow_hydrogen.contract import jobs
from airflow_hydrogen.contract.errors import ApplicationError
from airflow_hydrogen.contract.jobs import Job, Run
from airflow_hydrogen.contract.reports import Report
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.drivers import tries
from airflow_hydrogen.drivers.bundle_server import BundleServer
from airflow_hydrogen.drivers.bundles import pack_bundle
from airflow_hydrogen.drivers.hook import (
    PYTHON_RUNNER,
    USER_JAR,
    kill_driver,
    open_bundle_server,
)
from airflow_hydrogen.drivers.tries import DriverNotes, SubmittedDriver
from airflow_hydrogen.hooks import report_files
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context


class ClusterModeOperator(SparkSubmitOperator):
    """A SparkSubmitOperator whose Python driver may run on a worker of a standalone cluster.

    Args:
        deferrable: wait on the triggerer, without a worker slot. None: as `[operators] default_deferrable`
            says, where the driver runs on a standalone cluster.
        supervise: let Spark start a driver again that died.
        kwargs: options of SparkSubmitOperator.
    """

    def __init__(self, *, deferrable: bool | None = None, supervise: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self.supervise = supervise
        self._killed = False
        self._driver_options: dict[str, Any] = {}
        self._end_driver: Callable[[], None] | None = None

    @abstractmethod
    def _prepare(self, context: Context, run: Run, hook: HydrogenSparkSubmitHook, report_uri: str) -> Job:
        """The job, once it is known that it and the means to submit it are sound."""

    @abstractmethod
    def _pack_code(self, folder: Path) -> list[Path]:
        """Zips of the code that the driver imports."""

    @abstractmethod
    def _scripts(self) -> list[Path]:
        """Scripts that the job names."""

    @abstractmethod
    def _shared_report_uri(self, run: Run, submission: str = "") -> str:
        """Where a driver on the cluster writes its report."""

    @abstractmethod
    def _s3_access(self) -> S3Access | None:
        """What opens S3, where reports may lie."""

    @abstractmethod
    def _tell_spark_log(self, context: Context, report_uri: str) -> None:
        """Say where the driver that writes a report puts Spark's log."""

    def execute_resumable(self, context: Context) -> Any:
        """Submit: SparkSubmitOperator calls it where it would also wait, over Spark's REST gateway."""
        if not self._driver_options:
            return super().execute_resumable(context)
        assert self._hook is not None
        return self._hook.submit(self._driver_options["server"].bundle_url)

    def on_kill(self) -> None:
        """End the application, on the cluster and on this machine."""
        self._killed = True
        if self._end_driver is not None:
            self._end_driver()
        elif self._hook is not None:
            super().on_kill()

    def _run_driver(self, context: Context, run: Run, hook: HydrogenSparkSubmitHook, defers: bool) -> Report:
        """Submit a driver unless an earlier try did, and wait for its report.

        Raises:
            TaskDeferred: it is waited for on the triggerer; `_resume_driver` goes on.
            HydrogenError: nothing could be submitted, or the application failed.
        """
        self._end_driver = None
        notes = tries.notes_of(context, run, self.durable)
        endpoint = hook.cluster_endpoint()
        earlier, s3 = notes.read(), self._s3_access()
        submitted = tries.look_for_earlier(endpoint, earlier, s3, self.log.info)
        if submitted is None:
            if earlier is not None:
                report_files.delete(earlier.report_uri, s3)
            submitted = self._submit_driver(context, run, hook, notes)
        else:
            self._tell_spark_log(context, submitted.report_uri)
        driver_id = submitted.driver_id
        self._end_driver = lambda: kill_driver(endpoint, driver_id, self.log.info)
        if defers:
            self._defer(submitted, hook.poll_interval_s)
        driver = tries.wait_here(hook, submitted.driver_id, lambda driver: not driver.active, self._say)
        self._end_driver = None
        hook._run_post_submit_commands()
        if self._killed:
            raise AirflowException("The task was ended while the application ran")
        return tries.read_report(submitted, notes, s3, driver.explanation, driver.log_url)

    def _resume_driver(self, context: Context, run: Run, event: Mapping[str, Any]) -> Report:
        """The report, after a deferral.

        Raises:
            HydrogenError: the application failed, or was ended.
        """
        notes = tries.notes_of(context, run, self.durable)
        submitted, s3 = SubmittedDriver(event["driver_id"], event["report_uri"]), self._s3_access()
        # A report tells more than the master does: the driver may have ended while it was asked about.
        silent = report_files.read(submitted.report_uri, s3) is None
        if silent and event["status"] == "error":
            raise tries.unfollowable(submitted.driver_id, event["message"])
        if self.post_submit_commands:
            self._get_hook()._run_post_submit_commands()
        if silent and event["status"] == "timeout":
            report_files.remove_nonce(submitted.report_uri, s3)
            raise ApplicationError(
                f"driver {submitted.driver_id} did not end within "
                f"execution_timeout={self.execution_timeout}, and was ended"
            )
        return tries.read_report(submitted, notes, s3, event.get("explanation", ""), event.get("log_url"))

    def _submit_driver(
        self, context: Context, run: Run, hook: HydrogenSparkSubmitHook, notes: DriverNotes
    ) -> SubmittedDriver:
        """Submit a driver and serve it until it has all that it needs of this machine."""
        report_uri = self._shared_report_uri(run, secrets.token_hex(4))
        submitted: list[SubmittedDriver] = []

        def on_driver(driver_id: str) -> None:
            submitted.append(SubmittedDriver(driver_id, report_uri))
            notes.write(submitted[0])
            server.release(driver_id)

        with (
            tempfile.TemporaryDirectory(prefix="airflow-hydrogen-") as folder,
            open_bundle_server(hook) as server,
        ):
            job = self._prepare(context, run, hook, report_uri)
            self._offer(server, Path(folder), job)
            self._driver_options = {
                "server": server,
                "supervise": self.supervise,
                "on_driver": on_driver,
                # The application and its files are in the bundle.
                "java_class": PYTHON_RUNNER,
                "application_args": [USER_JAR, ""],
                "files": None,
                "py_files": None,
                "archives": None,
            }
            self._hook = None
            super().execute(context)
            tries.wait_here(
                hook,
                submitted[0].driver_id,
                lambda driver: server.job_fetched or not driver.active,
                self._say,
            )
        if self._killed:
            raise AirflowException("The task was ended while the application ran")
        return submitted[0]

    def _offer(self, server: BundleServer, folder: Path, job: Job) -> None:
        bundle = pack_bundle(
            folder,
            server.job_url,
            self._pack_code(folder),
            self._scripts(),
            py_files=self.py_files,
            files=self.files,
            spark_archives=self._archives,
            supervise=self.supervise,
        )
        server.offer(bundle, jobs.dumps(job).encode())

    def _defer(self, submitted: SubmittedDriver, poll_interval_s: float) -> NoReturn:
        # It imports a part of Airflow that parsing a DAG does not need.
        from airflow_hydrogen.triggers.spark_driver import SparkDriverTrigger

        timeout = self.execution_timeout
        trigger = SparkDriverTrigger(
            conn_id=self._conn_id,
            driver_id=submitted.driver_id,
            report_uri=submitted.report_uri,
            poll_interval_s=poll_interval_s,
            end_at=None if timeout is None else time.time() + timeout.total_seconds(),
        )
        self.defer(trigger=trigger, method_name="execute_complete")

    def _say(self, news: str) -> None:
        self.log.info("%s", news)
