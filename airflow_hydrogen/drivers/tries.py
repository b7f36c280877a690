"""A driver on a standalone cluster, from one try of a task to the next."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_hydrogen.clusters.drivers import Driver, end_driver, log_tail, look
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.contract.errors import (
    ApplicationError,
    ClusterError,
    InvalidJobError,
    SharedStorageError,
)
from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.contract.reports import Report
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.hooks import report_files
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context


@dataclass(frozen=True)
class SubmittedDriver:
    """What a later try, or the same task after its deferral, has to know of a driver.

    Attributes:
        driver_id: the master's name for it.
        report_uri: where it writes its report: another place for each submission.
    """

    driver_id: str
    report_uri: str


class DriverNotes:
    """A task's note of its driver, in Airflow's task state store, which outlives tries.

    It outlives clears as well, after which the task is to run anew: the clear's number is in the key.

    Args:
        store: `context["task_state_store"]`; None where Airflow has none (before 3.3) or it is not wanted.
        run: the run that all tries share.
    """

    def __init__(self, store: Any, run: Run) -> None:
        self._store = store
        self._key = f"airflow_hydrogen_driver.{run.clear_number}"

    def read(self) -> SubmittedDriver | None:
        """The driver that an earlier try submitted."""
        value = self._store.get(self._key) if self._store is not None else None
        return SubmittedDriver(**value) if value else None

    def write(self, driver: SubmittedDriver) -> None:
        """Remember a driver."""
        if self._store is not None:
            self._store.set(self._key, dataclasses.asdict(driver))

    def forget(self) -> None:
        """The next try has to submit anew."""
        if self._store is not None:
            self._store.delete(self._key)


def notes_of(context: Context, run: Run, durable: bool) -> DriverNotes:
    """The notes of a task; of one that is not durable they are empty and stay so."""
    return DriverNotes(context.get("task_state_store") if durable else None, run)


def require_mode(hook: HydrogenSparkSubmitHook, deferrable: bool | None, supervise: bool) -> bool:
    """Find options that do not fit where the driver runs. Returns whether the task is to be deferred.

    Args:
        hook: it knows where the driver runs.
        deferrable: None: as `[operators] default_deferrable` says, where it is possible.

    Raises:
        InvalidJobError: an option that would do nothing, or half of what it says.
    """
    standalone = hook.is_standalone_cluster
    where = f"{hook.master} in {'cluster' if hook.is_cluster_mode else 'client'} mode"
    if supervise and not standalone:
        raise InvalidJobError(
            "supervise=True lets a standalone cluster start a driver again, in cluster mode only; this one "
            f"runs on {where}: leave supervise out"
        )
    if deferrable and not standalone:
        if hook.is_cluster_mode:
            reason = "only drivers on standalone clusters can be waited for on the triggerer so far"
        else:
            reason = (
                "the driver is a process of the task, and would end with it; set deploy_mode='cluster', or "
                "deploy-mode in the connection"
            )
        raise InvalidJobError(f"deferrable=True is not possible on {where}: {reason}; or leave it out")
    if deferrable is None:
        return standalone and conf.getboolean("operators", "default_deferrable", fallback=False)
    return deferrable


def look_for_earlier(
    endpoint: ClusterEndpoint,
    earlier: SubmittedDriver | None,
    s3: S3Access | None,
    say: Callable[..., None],
) -> SubmittedDriver | None:
    """What a new try makes of the driver of the one before: the driver, if it is worth waiting for.

    Args:
        endpoint: the master. It is asked in any case: that it does not answer is found before submission.
        earlier: the driver, if there was one.
        s3: what opens the store with its report.
        say: called with a format and its values: what is found.

    Raises:
        ClusterError: the master does not say.
    """
    driver = asyncio.run(look(endpoint, earlier.driver_id if earlier else ""))
    if earlier is None:
        return None
    if driver.waits:
        # It would fetch its bundle from a server that ended with the try before.
        say("Driver %s of an earlier try still waits for a worker: submitting another", driver.driver_id)
        asyncio.run(end_driver(endpoint, driver.driver_id))
        return None
    if driver.active:
        say("An earlier try submitted driver %s, which runs: waiting for it", driver.driver_id)
        return earlier
    report = report_files.read(earlier.report_uri, s3)
    if report is not None and (report.failure is None or not report.failure.retryable):
        say("An earlier try submitted driver %s, which has ended: reading its report", driver.driver_id)
        return earlier
    say("An earlier try's %s: submitting another", driver.explanation)
    return None


def read_report(
    submitted: SubmittedDriver,
    notes: DriverNotes,
    s3: S3Access | None,
    explanation: str,
    log_url: str | None,
) -> Report:
    """The report of a driver that has ended.

    Args:
        submitted: the driver.
        notes: forgotten where the next try has to submit anew.
        s3: what opens the store with the report.
        explanation: what the master says of the driver.
        log_url: where the driver's log is, if that is known.

    Raises:
        ApplicationError: the application failed, or ended without a report.
    """
    report = report_files.read(submitted.report_uri, s3)
    report_files.remove_nonce(submitted.report_uri, s3)
    if report is None:
        notes.forget()
        tail = asyncio.run(log_tail(log_url)) if log_url else ""
        raise ApplicationError(
            f"the application ended without a report; {explanation}"
            + (f". Its last lines:\n{tail}" if tail else ""),
            retryable=not SharedStorageError.is_told_in(tail),
        )
    if report.failure is not None:
        notes.forget()
        raise report.failure.to_error()
    return report


def wait_here(
    hook: HydrogenSparkSubmitHook,
    driver_id: str,
    until: Callable[[Driver], bool],
    say: Callable[[str], None],
) -> Driver:
    """Wait in this process until a driver is as wanted.

    Raises:
        ApplicationError: the master refuses to say how it is.
    """
    # It imports a part of Airflow that parsing a DAG does not need.
    from airflow_hydrogen.triggers.spark_driver import wait_for_driver

    try:
        return asyncio.run(
            wait_for_driver(hook.cluster_endpoint(), driver_id, hook.poll_interval_s, until=until, say=say)
        )
    except ClusterError as error:
        raise unfollowable(driver_id, str(error)) from None


def unfollowable(driver_id: str, message: str) -> ApplicationError:
    """The error for a driver that runs, but that nothing is heard of."""
    return ApplicationError(
        f"driver {driver_id} was submitted, but cannot be followed: {message}. It may still run, and then "
        "the next try waits for it (durable=True)"
    )
