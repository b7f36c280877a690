"""What the running Spark application has: task slots, and the cores of one task."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.errors import InvalidJobError, NotEnoughSlotsError
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.runtime.connect import plans
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.gang import profiles
from airflow_hydrogen.runtime.gang.rendezvous import OMP_THREADS
from airflow_hydrogen.runtime.session import is_local, master_of

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

_POLL_S = 0.1
_SAY_EVERY_S = 15.0


@dataclass(frozen=True)
class Slots:
    """Task slots of the executors that are registered now.

    Attributes:
        total: tasks that can run at the same time: what Spark's own check counts.
        busy: tasks that run, those of a stage that was cancelled among them.
        executors: executors.
    """

    total: int
    busy: int
    executors: int

    @property
    def free(self) -> int:
        """What a gang could start on now. Spark counts in the busy ones, and then waits without end."""
        return max(0, self.total - self.busy)

    def __str__(self) -> str:
        return f"{self.free} of {self.total} task slots are free, on {self.executors} executors"


def gang_slots(spark: SparkSession, options: GangOptions) -> Slots:
    """The slots of the application now on which ranks can run."""
    return task_slots(spark, profiles.of_gang(spark, options.gpus_per_process))


def task_slots(spark: SparkSession, profile: ResourceProfile | None = None) -> Slots:
    """The slots of the application now.

    Args:
        spark: the session.
        profile: of the tasks that are to run on them; None: the application's own.
    """
    if is_connect(spark):
        return Slots(plans.task_slots(spark), 0, 1)
    context = spark.sparkContext._jsc.sc()
    manager = context.resourceProfileManager()
    total = int(
        context.maxNumConcurrentTasks(
            manager.defaultResourceProfile() if profile is None else profile._java_resource_profile
        )
    )
    executors = list(context.statusTracker().getExecutorInfos())
    busy = sum(int(executor.numRunningTasks()) for executor in executors)
    # The driver is among them, and only on a local master does it run tasks.
    return Slots(total, busy, len(executors) - (0 if is_local(spark) else 1))


def require_slots(
    spark: SparkSession, np: int, options: GangOptions, say: Callable[[str], None] = print
) -> int:
    """Find the size of the gang, waiting for slots that are busy or not registered yet.

    Tasks that hold no GPU count as busy here too: a gang waits for those that prepare its data.

    Args:
        spark: the session.
        np: ranks; 0 for one on every slot.
        options: of the gang: how long to wait, and the GPUs of a rank.
        say: called with a line now and then while it waits.

    Returns:
        The number of ranks.

    Raises:
        InvalidJobError: dynamic allocation is on, with which barrier stages do not work.
        NotEnoughSlotsError: after the time-out; at once where a local master has fewer, busy ones counted in,
            because it never gets more.
    """
    _refuse_dynamic_allocation(spark)
    timeout_s = options.start_timeout_s
    started = time.monotonic()
    said_at = float("-inf")
    master = f"master {master_of(spark)}"
    # With np=0 the busy ones are waited for too: those of a stage that was cancelled are free within seconds.
    while (slots := gang_slots(spark, options)).free < (wanted := np or max(1, slots.total)):
        if is_local(spark) and slots.total < wanted:
            raise NotEnoughSlotsError(np, slots.total, master)
        waited_s = time.monotonic() - started
        if waited_s >= timeout_s:
            waited = f"after waiting {timeout_s:g} s (start_timeout_s)"
            raise NotEnoughSlotsError(np, slots.free, f"{master}, {waited}; {slots}")
        if waited_s - said_at >= _SAY_EVERY_S:
            said_at = waited_s
            say(f"waiting for {wanted} task slots, up to {timeout_s - waited_s:.0f} s more: {slots}")
        time.sleep(_POLL_S)
    return wanted


def threads_per_task(spark: SparkSession, tasks: int) -> int:
    """Math threads of one task: its CPUs; on a local master, whose tasks own none, an equal share.

    Args:
        spark: the session.
        tasks: how many run at the same time.
    """
    if is_local(spark) and not is_connect(spark):
        return max(1, len(os.sched_getaffinity(0)) // max(1, tasks))
    return int(_conf(spark).get("spark.task.cpus", "1") or 1)


def given_omp_threads(spark: SparkSession) -> str | None:
    """OMP_NUM_THREADS as the user set it for the tasks; None where it is not set.

    Spark sets the variable by itself: for Python workers to `spark.task.cpus`, unless
    `spark.executorEnv.OMP_NUM_THREADS` is set, and for a driver that spark-submit starts to
    `spark.driver.cores`, where that is set. So what a worker finds says nothing, and what the driver finds
    only on a local master, whose tasks are this machine's.
    """
    conf = _conf(spark)
    given: str | None = conf.get(f"spark.executorEnv.{OMP_THREADS}", None)
    if given is not None or is_connect(spark) or not is_local(spark):
        return given
    found = os.environ.get(OMP_THREADS)
    return None if found == conf.get("spark.driver.cores", None) else found


def _refuse_dynamic_allocation(spark: SparkSession) -> None:
    conf = _conf(spark)
    enabled = conf.get("spark.dynamicAllocation.enabled", "false") or "false"
    if enabled.lower() == "true" and not is_local(spark):
        raise InvalidJobError(
            "spark.dynamicAllocation.enabled is true, with which Spark runs no barrier stage: a gang needs "
            "all of its executors at once; set it to false for this application"
        )


def _conf(spark: SparkSession) -> Any:
    """The application's settings: `get(name, default)`."""
    return spark.conf if is_connect(spark) else spark.sparkContext.getConf()
