"""What a gang, and tasks that score on GPUs, ask of Spark's configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_hydrogen.clusters.endpoint import scheme_of
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.gpus import EXECUTOR_GPUS, TASK_GPUS, WORKER_REUSE, tasks_on, whole_gpus


def gang_conf(
    master: str,
    *,
    np: int,
    cpus_per_process: int | None = None,
    gpus_per_process: int = 0,
    executor_cores: int | None = None,
    num_executors: int | None = None,
    total_executor_cores: int | None = None,
    given: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Spark settings for a gang.

    An executor has room for as many ranks as its cores allow. Where the author says nothing about executors
    and the ranks want GPUs, each rank gets an executor of its own: so Spark spreads them over the GPUs that
    are free, and takes no more of a shared cluster than the gang needs. What a rank needs is not said here:
    the gang's stage asks for it, and the tasks that prepare data run on all cores.

    Args:
        master: Spark's master URL.
        np: HorovodRunner's number of processes.
        cpus_per_process: cores of a rank.
        gpus_per_process: GPUs of a rank.
        executor_cores, num_executors, total_executor_cores: the operator's options.
        given: the author's own settings, which win.

    Raises:
        InvalidJobError: settings with which a gang cannot run.
    """
    own = {name: str(value) for name, value in (given or {}).items()}
    conf: dict[str, str] = {}
    if cpus_per_process is not None:
        conf["spark.task.cpus"] = str(cpus_per_process)
    if scheme_of(master) == "local" or np < 0:
        return conf  # no executors of their own, and no resource scheduling
    _refuse(own)
    conf["spark.dynamicAllocation.enabled"] = "false"
    cpus = int(own.get("spark.task.cpus", cpus_per_process or 1))
    cores = executor_cores or int(own.get("spark.executor.cores", 0))
    if not cores and (gpus_per_process or scheme_of(master) != "spark"):
        cores = cpus
        conf["spark.executor.cores"] = str(cores)
    ranks_per_executor = max(1, cores // cpus)
    if gpus_per_process and EXECUTOR_GPUS in own:
        ranks_per_executor = max(1, min(ranks_per_executor, _gpus_of_executors(own) // gpus_per_process))
    elif gpus_per_process:
        conf[EXECUTOR_GPUS] = str(gpus_per_process * ranks_per_executor)
    if np == 0 or not cores:
        return conf
    executors = -(-np // ranks_per_executor)
    if scheme_of(master) != "spark":
        if num_executors is None and "spark.executor.instances" not in own:
            conf["spark.executor.instances"] = str(executors)
    elif gpus_per_process and total_executor_cores is None and "spark.cores.max" not in own:
        conf["spark.cores.max"] = str(executors * cores)
    return conf


def scoring_conf(
    master: str,
    *,
    gpus_per_task: float,
    executor_cores: int | None = None,
    given: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Spark settings for tasks that score on GPUs; none for a scoring without.

    An executor has the GPUs of one task, or the one GPU that `n` tasks share: so a Python worker, which
    cannot give back the GPUs that its model is on, gets only tasks that have the same ones.

    Args:
        master: Spark's master URL.
        gpus_per_task: GPUs of a task, or 1/n.
        executor_cores: the operator's option.
        given: the author's own settings, which win.

    Raises:
        InvalidJobError: settings with which no task can score on GPUs.
    """
    if not gpus_per_task:
        return {}
    own = {name: str(value) for name, value in (given or {}).items()}
    if scheme_of(master) == "local":
        raise InvalidJobError(
            f"gpus_per_task={gpus_per_task:g}, but master {master!r} schedules no GPUs: name a cluster (a "
            "standalone master and a worker can run on one machine), or leave gpus_per_task out"
        )
    _refuse_with_gpus(own)
    needed = whole_gpus(gpus_per_task)
    conf = {"spark.dynamicAllocation.enabled": "false"}
    if EXECUTOR_GPUS not in own:
        conf[EXECUTOR_GPUS] = str(needed)
    elif (found := _gpus_of_executors(own)) < needed:
        raise InvalidJobError(
            f"gpus_per_task={gpus_per_task:g} needs executors with {needed} GPUs, and conf sets "
            f"{EXECUTOR_GPUS} to {found}: leave it out"
        )
    elif found > needed:
        conf[WORKER_REUSE] = "false"
        if own.get(WORKER_REUSE, "false").lower() == "true":
            raise InvalidJobError(
                f"conf sets {EXECUTOR_GPUS} to {found} and {WORKER_REUSE}, so that a Python worker would get "
                "tasks with GPUs other than those that hold its model: leave one of them out"
            )
    if not executor_cores and "spark.executor.cores" not in own:
        conf["spark.executor.cores"] = str(int(own.get("spark.task.cpus", 1)) * tasks_on(gpus_per_task))
    return conf


def _refuse_with_gpus(given: Mapping[str, str]) -> None:
    if TASK_GPUS in given:
        raise InvalidJobError(
            f"conf sets {TASK_GPUS}, by which every task of the application holds GPUs, and gpus_per_task "
            "says what those that score hold: leave it out"
        )
    if given.get("spark.dynamicAllocation.enabled", "false").lower() == "true":
        raise InvalidJobError(
            "conf sets spark.dynamicAllocation.enabled, with which Spark starts executors without GPUs for "
            "the tasks of gpus_per_task: leave it out"
        )


def _gpus_of_executors(given: Mapping[str, str]) -> int:
    try:
        return int(given[EXECUTOR_GPUS])
    except ValueError:
        raise InvalidJobError(
            f"conf sets {EXECUTOR_GPUS} to {given[EXECUTOR_GPUS]!r}, and executors have whole GPUs"
        ) from None


def _refuse(given: Mapping[str, str]) -> None:
    if given.get("spark.dynamicAllocation.enabled", "false").lower() == "true":
        raise InvalidJobError(
            "conf sets spark.dynamicAllocation.enabled, with which Spark runs no barrier stage: a gang needs "
            "all of its executors at once; leave it out"
        )
