"""Which accelerators a rank sees. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from airflow_hydrogen.contract.errors import AcceleratorError


def visible_devices(
    assigned: Sequence[str], given: str | None, gpus_per_process: int, local_rank: int, rank: int
) -> list[str]:
    """Addresses of the GPUs that a rank may use.

    Args:
        assigned: what Spark's resource scheduling gave to the rank's task; empty where it has none.
        given: `CUDA_VISIBLE_DEVICES` as it is on the rank's host: the GPUs that may be used there, by number
            or UUID; None where it is not set.
        gpus_per_process: GPUs that a rank wants. With 0 it takes what Spark gave, which may be nothing.
        local_rank: its place among the ranks of its host.
        rank: for the message.

    Returns:
        Spark's addresses where there are any; else those that fall to the local rank, as horovodrun's users
        pin them by hand, of the given ones or of all; none for a rank that wants none.

    Raises:
        AcceleratorError: there are fewer than the rank wants.
    """
    if assigned:
        if len(assigned) < gpus_per_process:
            raise AcceleratorError(rank, gpus_per_process, list(assigned))
        return list(assigned)
    mine = range(local_rank * gpus_per_process, (local_rank + 1) * gpus_per_process)
    if given is None:
        return [str(device) for device in mine]
    devices = _entries(given)[mine.start : mine.stop]
    if len(devices) < gpus_per_process:
        raise AcceleratorError(rank, gpus_per_process, devices, given)
    return devices


def _entries(given: str) -> list[str]:
    """The devices that CUDA takes from the variable: those before the first that is none, such as -1."""
    entries = (entry.strip() for entry in given.split(","))
    return list(takewhile(lambda entry: entry and not entry.startswith("-"), entries))
