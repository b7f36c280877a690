"""What the running Spark application has: task slots, and the cores of one task."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.errors import NotEnoughSlotsError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_POLL_S = 0.5


def is_local(spark: SparkSession) -> bool:
    """Whether the application runs inside the driver's own JVM."""
    return str(spark.sparkContext.master).startswith("local")


def task_slots(spark: SparkSession) -> int:
    """Tasks that the executors registered now can run at the same time: what Spark's own check counts."""
    context = spark.sparkContext._jsc.sc()
    return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))


def require_slots(spark: SparkSession, np: int, timeout_s: float) -> int:
    """Find the size of the gang, waiting for executors to register where the master is not local.

    Args:
        spark: the session.
        np: ranks; 0 for one on every slot.
        timeout_s: how long executors may take to register, in seconds.

    Returns:
        The number of ranks.

    Raises:
        NotEnoughSlotsError: at once on a local master, which never gets more; else after the time-out.
    """
    deadline = time.monotonic() + (0 if is_local(spark) else timeout_s)
    while (slots := task_slots(spark)) < max(np, 1):
        if time.monotonic() >= deadline:
            waited = "" if is_local(spark) else f", after waiting {timeout_s:g} s for executors"
            raise NotEnoughSlotsError(np, slots, f"master {spark.sparkContext.master}{waited}")
        time.sleep(_POLL_S)
    return np or slots


def threads_per_task(spark: SparkSession, tasks: int) -> int:
    """Math threads of one task: its CPUs; on a local master, whose tasks own none, an equal share.

    Args:
        spark: the session.
        tasks: how many run at the same time.
    """
    if is_local(spark):
        return max(1, len(os.sched_getaffinity(0)) // tasks)
    return int(spark.sparkContext.getConf().get("spark.task.cpus", "1") or 1)
