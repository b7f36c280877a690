"""The application of a driver on a standalone cluster: what `bootstrap` has unpacked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import jobs
from airflow_hydrogen.contract.errors import ApplicationError
from airflow_hydrogen.runtime.__main__ import (
    carry_out,
    failed,
    open_store,
    require_shared_report,
    write_report,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MAX_STARTS = 10
"""A supervised driver that dies every time is given up after so many starts; Spark itself never does."""

_JARS = "spark.jars"


def run_bundle(folder: Path, job_file: Path, settings: Mapping[str, Any]) -> None:
    """Run the job and exit: 0 when it succeeded, 1 when its report holds a failure.

    A supervised driver exits with 0 whenever it has written a report: Spark would start it again for ever,
    and whether a failure is worth another try is Airflow's business.

    Args:
        folder: where the bundle was unpacked.
        job_file: the job that was fetched.
        settings: the bundle's: `archives`, `py_files`, `files`, `spark_archives`, `supervise`.
    """
    job = jobs.loads(job_file.read_text())
    open_store(job)
    # Before the starts are counted: the tenth would say something else.
    require_shared_report(job, exit_code=0 if settings["supervise"] else 1)
    starts = _count_start(folder / "starts")
    if starts > MAX_STARTS:
        error = ApplicationError(
            f"the driver died {MAX_STARTS} times without a report, and Spark started it again each time "
            "(supervise=True); its log is on the worker that ran it"
        )
        report = failed(job, error)
        write_report(job, report)
    else:
        if starts > 1:
            print(f"airflow-hydrogen: start {starts} of this driver", flush=True)
        report = carry_out(job, folder, prepare=lambda: ship(job, folder, settings))
    if report.failure is not None and not settings["supervise"]:
        raise SystemExit(1)


def ship(job: jobs.Job, folder: Path, settings: Mapping[str, Any]) -> None:
    """Start Spark and give its executors the code and files of the bundle: all but the job."""
    _forget_bundle(settings["bundle"])
    context = _session(job).sparkContext
    for name in (*settings["archives"], *settings["py_files"]):
        context.addPyFile(_local(folder, name))
    for name in settings["files"]:
        context.addFile(_local(folder, name))
    for name in settings["spark_archives"]:
        context.addArchive(_local(folder, name))


def _session(job: jobs.Job) -> SparkSession:
    if isinstance(job, jobs.TrainJob):
        from airflow_hydrogen.runtime.session import spark_session

        return spark_session(job)
    from airflow_hydrogen.runtime.scoring.application import manifest_of, scoring_session

    return scoring_session(job, manifest_of(job))


def _forget_bundle(name: str) -> None:
    """Take the bundle out of `spark.jars`, where spark-submit put it: executors would ask for it in vain."""
    from pyspark import SparkContext

    SparkContext._ensure_initialized()
    assert SparkContext._jvm is not None
    system = SparkContext._jvm.java.lang.System
    jars = [jar for jar in (system.getProperty(_JARS) or "").split(",") if jar]
    kept = [jar for jar in jars if jar.rpartition("/")[2] != name]
    if kept:
        system.setProperty(_JARS, ",".join(kept))
    else:
        system.clearProperty(_JARS)


def _local(folder: Path, name: str) -> str:
    """A file of the bundle by its path; what the cluster fetches by itself as it is."""
    return name if ":" in name else str(folder / name)


def _count_start(file: Path) -> int:
    starts = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(starts))
    return starts
