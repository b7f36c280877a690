"""Which accelerators a rank sees. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_hydrogen.contract.errors import AcceleratorError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices(assigned: Sequence[str], gpus_per_process: int, local_rank: int, rank: int) -> list[str]:
    """Addresses of the GPUs that a rank may use.

    Args:
        assigned: what Spark's resource scheduling gave to the rank's task; empty where it has none.
        gpus_per_process: GPUs that a rank wants. With 0 it takes what Spark gave, which may be nothing.
        local_rank: its place among the ranks of its host.
        rank: for the message.

    Returns:
        Spark's addresses where there are any; else those that fall to the local rank, as horovodrun's users
        pin them by hand; none for a rank that wants none.

    Raises:
        AcceleratorError: Spark gave fewer than the rank wants.
    """
    if assigned:
        if len(assigned) < gpus_per_process:
            raise AcceleratorError(rank, gpus_per_process, list(assigned))
        return list(assigned)
    first = local_rank * gpus_per_process
    return [str(device) for device in range(first, first + gpus_per_process)]


def environment(devices: Sequence[str]) -> dict[str, str]:
    """The variable that hides all other GPUs; CUDA reads it when a framework is imported.

    An empty list hides all of them.
    """
    return {VISIBLE: ",".join(devices)}
