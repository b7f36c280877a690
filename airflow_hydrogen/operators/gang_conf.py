"""What a gang asks of Spark's configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_hydrogen.clusters.endpoint import scheme_of
from airflow_hydrogen.contract.errors import InvalidJobError

_TASK_GPUS = "spark.task.resource.gpu.amount"
_EXECUTOR_GPUS = "spark.executor.resource.gpu.amount"


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
    are free, and takes no more of a shared cluster than the gang needs.

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
    if gpus_per_process:
        conf[_TASK_GPUS] = str(gpus_per_process)
        conf[_EXECUTOR_GPUS] = str(gpus_per_process * ranks_per_executor)
    if np == 0 or not cores:
        return conf
    executors = -(-np // ranks_per_executor)
    if scheme_of(master) != "spark":
        if num_executors is None and "spark.executor.instances" not in own:
            conf["spark.executor.instances"] = str(executors)
    elif gpus_per_process and total_executor_cores is None and "spark.cores.max" not in own:
        conf["spark.cores.max"] = str(executors * cores)
    return conf


def _refuse(given: Mapping[str, str]) -> None:
    if given.get("spark.dynamicAllocation.enabled", "false").lower() == "true":
        raise InvalidJobError(
            "conf sets spark.dynamicAllocation.enabled, with which Spark runs no barrier stage: a gang needs "
            "all of its executors at once; leave it out"
        )
