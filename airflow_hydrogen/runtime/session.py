"""What both Spark applications share: the session, and errors that come back through Spark."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import errors
from airflow_hydrogen.contract.jobs import Job, TrainJob
from airflow_hydrogen.runtime.log_groups import log_group

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

SPARK_UI_PREFIX = "airflow-hydrogen: spark-ui "

# Used where the user's own configuration says nothing.
_DEFAULTS = {
    "spark.ui.showConsoleProgress": "false",  # the driver's output is a log, not a terminal
    # At INFO nine lines of ten are Spark's. What submits a driver to a cluster does not read this: it goes on
    # to say where the driver is, which Airflow's hooks look for.
    "spark.log.level": "WARN",
}
_LOCAL_DEFAULTS = {
    # A web server for an application of seconds, on a machine whose port nobody has opened.
    "spark.ui.enabled": "false",
    # Folders of one machine are listed faster by the driver than by a Spark job with a task for each.
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "100000",
}

_ERROR_LINE = re.compile(r"airflow_hydrogen\.contract\.errors\.(\w+): (.+)")


def spark_session(
    job: Job, more: Callable[[SparkConf], Mapping[str, str]] = lambda _given: {}
) -> SparkSession:
    """The application's session. The operator reads the line that names its UI.

    Args:
        job: what it is for. Spark's settings for it hold where the user's own configuration says nothing.
        more: called with the user's configuration; gives settings that heed it.
    """
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession

    SparkContext._ensure_initialized()  # without its JVM a SparkConf knows nothing of what was submitted
    given = SparkConf()
    defaults = {**_DEFAULTS, **(_gang_settings(job) if isinstance(job, TrainJob) else {})}
    if given.get("spark.master", "local").startswith("local"):
        defaults.update(_LOCAL_DEFAULTS)
    builder = SparkSession.builder
    for key, value in defaults.items():
        if not given.contains(key):
            builder = builder.config(key, value)
    for key, value in more(given).items():
        builder = builder.config(key, value)
    with log_group("Spark", folded=job.run is not None):
        spark = builder.getOrCreate()
    if spark.sparkContext.uiWebUrl:
        print(f"{SPARK_UI_PREFIX}{spark.sparkContext.uiWebUrl}", flush=True)
    return spark


def _gang_settings(job: TrainJob) -> dict[str, str]:
    """Limits in place of Spark's own blind waits: ten minutes for slots, a year for a barrier."""
    return {
        "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "2s",
        "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "5",
        "spark.barrier.sync.timeout": f"{max(60, round(job.gang.start_timeout_s))}s",
        "spark.dynamicAllocation.enabled": "false",
    }


def original_error(error: Exception) -> Exception:
    """The error of ours that a Python worker raised, which Spark passes on as text in one of its own."""
    found = _ERROR_LINE.search(str(error))
    if found is None:
        return error
    kind = getattr(errors, found.group(1), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.HydrogenError)):
        return error
    rebuilt = kind.__new__(kind, found.group(2))
    rebuilt.args = (found.group(2),)
    return rebuilt
