"""The application that spark-submit starts: read the job, carry it out, write the report."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.errors import SharedStorageError
from airflow_hydrogen.contract.jobs import TrainJob
from airflow_hydrogen.runtime import spark_log
from airflow_hydrogen.runtime.connect import sessions
from airflow_hydrogen.runtime.spark_errors import without_java_stack
from airflow_hydrogen.runtime.storage import filesystems, s3

_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run a job and exit: 0 when it succeeded, 1 when its report holds a failure.

    Args:
        argv: the path of the job file, alone.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 1:
        raise SystemExit("usage: python -m airflow_hydrogen.runtime JOB_FILE")
    if sys.platform == "linux":
        # spark-submit's JVM is the parent of a client-mode driver, which must not outlive it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    job = jobs.loads(Path(arguments[0]).read_text())
    open_store(job)
    require_shared_report(job, exit_code=1)
    report = carry_out(job, Path(arguments[0]).resolve().parent)
    if report.failure is not None:
        raise SystemExit(1)


def open_store(job: jobs.Job) -> None:
    """Have this process, which is the job's alone, reach S3 as the job says, and what `prepare` calls too."""
    if job.s3 is not None:
        s3.use(job.s3)
        job.s3.set_variables(os.environ)


def require_shared_report(job: jobs.Job, exit_code: int) -> None:
    """End, before anything is done, where Airflow would not find the report.

    A report could not say so: the last line of the log does, and no report.

    Args:
        job: with a nonce that Airflow wrote beside where it looks for the report; without one there is
            nothing to prove.
        exit_code: to end with.
    """
    if job.report_nonce is None:
        return
    try:
        found = filesystems.read_bytes(jobs.nonce_uri(job.report_uri)).decode(errors="replace")
        problem = "" if found == job.report_nonce else f"it reads {found!r}"
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among these
        problem = f"reading it failed: {str(error) or repr(error)}"
    if not problem:
        return
    reason = SharedStorageError(
        job.report_uri,
        f"the driver on host {socket.gethostname()} does not find there what Airflow has just written: "
        f"{problem}. Name storage that both see by this URI, and give both its credentials",
    )
    print(f"airflow-hydrogen: {type(reason).__name__}: {reason}", flush=True)
    raise SystemExit(exit_code)


def carry_out(job: jobs.Job, folder: Path, prepare: Callable[[], None] | None = None) -> reports.Report:
    """Run a job, write its report, and keep Spark's log of both.

    Args:
        job: what to do.
        folder: of this process's own.
        prepare: see `run`.
    """
    with spark_log.kept(job.spark_log_uri, folder):
        report = run(job, prepare)
        write_report(job, report)
    return report


def write_report(job: jobs.Job, report: reports.Report) -> None:
    """Write a report where the job wants it."""
    filesystems.write_bytes(job.report_uri, reports.dumps(report).encode())


def run(job: jobs.Job, prepare: Callable[[], None] | None = None) -> reports.Report:
    """Carry out a job; a failure is part of the report.

    Args:
        job: what to do.
        prepare: called first; its failure is the job's.
    """
    try:
        if prepare is not None:
            prepare()
        with sessions.joining(job.connect):
            return _dispatch(job)
    except Exception as error:
        traceback.print_exc()
        return failed(job, error)


def _dispatch(job: jobs.Job) -> reports.Report:
    if isinstance(job, TrainJob):
        from airflow_hydrogen.runtime.training import run_training

        return run_training(job)
    if job.stream is not None:
        from airflow_hydrogen.runtime.scoring.streams import run_stream

        return run_stream(job)
    from airflow_hydrogen.runtime.scoring.application import run_inference

    return run_inference(job)


def failed(job: jobs.Job, error: Exception) -> reports.Report:
    """The report of a failure."""
    report = reports.TrainReport if isinstance(job, TrainJob) else reports.InferenceReport
    failure = reports.Failure.of(error)
    return report(failure=replace(failure, message=without_java_stack(failure.message)))


if __name__ == "__main__":
    main()
