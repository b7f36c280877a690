"""GPUs of a scoring task: some whole ones, or an equal part of one that several tasks share. Pure."""

from __future__ import annotations

import math

from airflow_hydrogen.contract.errors import InvalidJobError

TASK_GPUS = "spark.task.resource.gpu.amount"
EXECUTOR_GPUS = "spark.executor.resource.gpu.amount"
WORKER_REUSE = "spark.python.worker.reuse"

_ROUNDED = 0.011
"""How far from a whole GPU `n` parts of one may be together: 0.33 is a third, 0.3 is none."""


def gpu_share(argument: str, value: object) -> float:
    """GPUs of a task, as Spark counts them.

    Args:
        argument: the name of the argument, for the message.
        value: 0 for none, a whole number, or 1/n, also rounded: n tasks share a GPU. Or the text of such a
            number, as templates render to.

    Returns:
        The number; a part of a GPU as exactly 1/n, so that n of them fit.

    Raises:
        InvalidJobError: it is something else.
    """
    number = _number(value)
    if not math.isfinite(number) or number < 0:
        raise InvalidJobError(
            f"{argument} must be a number of GPUs, 0 or more, or a part of one such as 0.5, found {value!r}"
        )
    if number >= 1:
        if number != int(number):
            raise InvalidJobError(f"{argument} above 1 must be a whole number of GPUs, found {value!r}")
        return number
    if number == 0:
        return 0.0
    tasks = round(1 / number)
    if abs(tasks * number - 1) > _ROUNDED:
        raise InvalidJobError(
            f"{argument} below 1 must be 1/n, so that n tasks share a GPU, such as 0.5, 0.25 or 0.2; found "
            f"{value!r}, and the nearest is {round(1 / tasks, 4)} for {tasks} tasks"
        )
    return 1 / tasks


def _number(value: object) -> float:
    """A number, or the text of one; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def tasks_on(gpus: float) -> int:
    """How many tasks run at the same time on what one of them is given: n of them on one GPU, else one."""
    return round(1 / gpus) if 0 < gpus < 1 else 1


def whole_gpus(gpus: float) -> int:
    """GPUs that an executor needs for one task: all of its tasks have the same ones then."""
    return math.ceil(gpus)
