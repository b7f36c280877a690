"""Tasks that hold GPUs, in an application whose other tasks hold none: Spark's stage-level scheduling.

Executors have their GPUs for as long as they live. That a task needs some is said for the stage that uses
them, and not for the application (`spark.task.resource.gpu.amount`): other stages run on all cores. Without
dynamic allocation Spark gives such a stage the executors that are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.gpus import EXECUTOR_GPUS, TASK_GPUS, WORKER_REUSE, whole_gpus
from airflow_hydrogen.runtime.session import is_local

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

# Spark keeps every profile that it was shown, and shows each in its UI.
_profiles: dict[tuple[str, float], ResourceProfile] = {}


def of_gang(spark: SparkSession, gpus: int) -> ResourceProfile | None:
    """The profile of ranks with GPUs; None where the application's own tasks are what ranks run on.

    Args:
        spark: the session.
        gpus: GPUs of a rank.
    """
    if not gpus:
        return None
    conf = spark.sparkContext.getConf()
    if conf.contains(TASK_GPUS) or is_local(spark) or _executor_gpus(conf) < gpus:
        return None
    return _profile(spark, gpus)


def of_scoring(spark: SparkSession, gpus: float) -> ResourceProfile | None:
    """The profile of tasks that score on GPUs; None for those that hold none.

    Args:
        spark: the session.
        gpus: GPUs of a task, or 1/n.

    Raises:
        InvalidJobError: this application cannot have such tasks.
    """
    if not gpus:
        return None
    conf = spark.sparkContext.getConf()
    problem = _why_not(spark, conf, gpus)
    if problem is not None:
        raise InvalidJobError(f"gpus_per_task={gpus:g}, but {problem}")
    return _profile(spark, gpus)


def _why_not(spark: SparkSession, conf: SparkConf, gpus: float) -> str | None:
    if is_local(spark):
        return f"master {spark.sparkContext.master} schedules no GPUs: take a cluster, or leave it out"
    if conf.get("spark.dynamicAllocation.enabled", "false").lower() == "true":
        return (
            "spark.dynamicAllocation.enabled is true, with which Spark starts executors without GPUs for "
            "its tasks: set it to false for this application"
        )
    found, needed = _executor_gpus(conf), whole_gpus(gpus)
    if found < needed:
        return f"executors have {found} GPUs: set {EXECUTOR_GPUS} to {needed}, or leave that to the operator"
    if found > needed and conf.get(WORKER_REUSE, "true").lower() == "true":
        return (
            f"{EXECUTOR_GPUS} is {found}, so that a Python worker would get tasks with GPUs other than those "
            f"that hold its model: set it to {needed}, or {WORKER_REUSE} to false"
        )
    return None


def _executor_gpus(conf: SparkConf) -> int:
    return int(conf.get(EXECUTOR_GPUS, "0"))


def _profile(spark: SparkSession, gpus: float) -> ResourceProfile:
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    context = spark.sparkContext
    key = (str(context.applicationId), gpus)
    if key not in _profiles:
        # Cores are named although they are the application's: Spark counts no slots of a profile without.
        cores = int(context.getConf().get("spark.task.cpus", "1"))
        requests = TaskResourceRequests().cpus(cores).resource("gpu", gpus)
        profile = ResourceProfileBuilder().require(requests).build
        context._jsc.sc().resourceProfileManager().addResourceProfile(profile._java_resource_profile)
        _profiles[key] = profile
    return _profiles[key]
