"""The session that both applications work in: of a driver's own, or of a Spark Connect server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import spark_defaults
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import Job, TrainJob
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.runtime.connect import sessions
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.log_groups import log_group
from airflow_hydrogen.runtime.spark_log import quiet_console

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

SPARK_UI_PREFIX = "airflow-hydrogen: spark-ui "

_REDACTION = "spark.redaction.regex"
_KEYS = r"(?:(?i)fs\.s3a\..*(access\.key|secret|token))"

# How sessions of this process were told to reach S3, by the application's id.
_stores: dict[str, S3Access | None] = {}


def spark_session(
    job: Job, more: Callable[[SparkConf], Mapping[str, str]] = lambda _given: {}
) -> SparkSession:
    """The application's session. The operator reads the line that names its UI.

    Args:
        job: what it is for. Spark's settings for it hold where the user's own configuration says nothing.
        more: called with the user's configuration; gives settings that heed it.

    Raises:
        InvalidJobError: the session is there, with the keys of another connection to S3.
    """
    if job.connect is not None:
        return sessions.session(job.connect, touched=_is_touched(job))
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession

    SparkContext._ensure_initialized()  # without its JVM a SparkConf knows nothing of what was submitted
    given = SparkConf()
    defaults = {**spark_defaults.OF_ALL, **(spark_defaults.OF_GANGS if isinstance(job, TrainJob) else {})}
    if given.get("spark.master", "local").startswith("local"):
        defaults.update(spark_defaults.OF_ONE_MACHINE)
    builder = SparkSession.builder
    for key, value in defaults.items():
        if not given.contains(key):
            builder = builder.config(key, value)
    running = SparkContext._active_spark_context
    if running is not None:
        _require_same_store(str(running.applicationId), job.s3)
    elif job.s3 is not None or any(_stores.values()):
        _close_clients()
    of_store = _store_settings(job.s3, given) if running is None else {}
    for key, value in {**more(given), **of_store}.items():
        builder = builder.config(key, value)
    quiet_console()
    with log_group("Spark", folded=job.run is not None):
        spark = builder.getOrCreate()
    if running is None:
        _stores[spark.sparkContext.applicationId] = job.s3
    if spark.sparkContext.uiWebUrl:
        print(f"{SPARK_UI_PREFIX}{spark.sparkContext.uiWebUrl}", flush=True)
    return spark


def is_local(spark: SparkSession) -> bool:
    """Whether the application runs inside the driver's own JVM."""
    return master_of(spark).startswith("local")


def master_of(spark: SparkSession) -> str:
    """Spark's master URL."""
    return str(spark.conf.get("spark.master") if is_connect(spark) else spark.sparkContext.master)


def _is_touched(job: Job) -> bool:
    """Whether a job makes views in its session, or hands it to code of the user's."""
    if isinstance(job, TrainJob):
        return True
    return job.prepare is not None or any(place.where_args or place.tables for place in job.sources)


def _store_settings(access: S3Access | None, given: SparkConf) -> dict[str, str]:
    """Settings that open S3 to Spark, and hide the keys where the user has said what else is to be hidden."""
    if access is None:
        return {}
    hidden = given.get(_REDACTION)
    hiding = {_REDACTION: f"{hidden}|{_KEYS}"} if hidden and access.secret_key else {}
    return {**access.spark_settings(), **hiding}


def _close_clients() -> None:
    """Have Hadoop forget its clients of stores, which it keeps, with their keys, as long as the JVM lives.

    A session before this one, or spark-submit itself, may have opened the same bucket with other keys.
    """
    from pyspark import SparkContext

    jvm: Any = SparkContext._jvm
    jvm.org.apache.hadoop.fs.FileSystem.closeAll()


def _require_same_store(application: str, access: S3Access | None) -> None:
    """Refuse a job that would read and write with the keys of another one: Hadoop keeps its clients."""
    before = _stores.get(application)
    if before == access:
        return
    by = [f"the connection {found.conn_id!r}" if found else "no connection" for found in (before, access)]
    raise InvalidJobError(
        f"this Spark session reaches S3 by {by[0]}, and the job by {by[1]}, or with other keys: stop the "
        "session first (spark.stop()), so that the job starts one of its own"
    )
