"""Which GPUs a process sees: chosen before its framework opens a device, and not changed afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from airflow_hydrogen.contract.errors import WorkerDevicesError

VISIBLE = "CUDA_VISIBLE_DEVICES"

_RESOURCE = "gpu"
# TensorFlow takes all memory of a GPU otherwise, and other workers may have a part of it.
_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"

# Of this Python worker, once it is to hold a model; None before that, and where it sees what there is.
_held: tuple[str, ...] | None = None


def environment(devices: Sequence[str]) -> dict[str, str]:
    """The variable that hides all other GPUs; CUDA reads it when a device is first used.

    An empty list hides all of them.
    """
    return {VISIBLE: ",".join(devices)}


def assigned(task: Any) -> list[str]:
    """The addresses that Spark's resource scheduling gave to a task, which may be none.

    Args:
        task: Spark's context of it.
    """
    found = task.resources().get(_RESOURCE)
    return list(found.addresses) if found else []


def of_this_task() -> list[str]:
    """The addresses of the task that this Python worker runs."""
    from pyspark import TaskContext

    return assigned(TaskContext.get())


def hold(devices: Sequence[str]) -> None:
    """Have this Python worker see the GPUs of its task alone, from before it loads a model until its end.

    Args:
        devices: what Spark gave to the task.

    Raises:
        WorkerDevicesError: it holds others, from a task before: a framework does not let them go.
    """
    global _held
    if _held is not None:
        if sorted(_held) != sorted(devices):
            raise WorkerDevicesError(list(_held), list(devices))
        return
    os.environ.update(environment(devices))
    if devices:
        os.environ.setdefault(_GROWTH, "true")
    _held = tuple(devices)


def held() -> tuple[str, ...]:
    """The GPUs that this process holds for a model."""
    return _held or ()
