"""The mark of a rank, which all that it starts inherits: what carries it is ended with the rank."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import signal
import time

from airflow_hydrogen.runtime.rank.task import MARK_VARIABLE, NO_MARK

_GRACE_S = 2.0
_GONE_S = 0.01  # for a process that was killed


def new_mark() -> str:
    """A word of its own for one rank."""
    return secrets.token_hex(len(NO_MARK) // 2)


def end_marked(mark: str) -> None:
    """End what a rank has started in sessions of their own, which its process group does not hold."""
    deadline = time.monotonic() + _GRACE_S
    while (found := _marked(mark)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_GONE_S)  # one of them may have forked meanwhile: looked for again


def _marked(mark: str) -> list[int]:
    """The processes that have a rank's mark in the environment; none where there is no /proc.

    Each rank of a host looks through all of them: without `Path`, which takes longer than the kernel does.
    """
    wanted, found = f"{MARK_VARIABLE}={mark}".encode(), []
    for process in glob.glob("/proc/[0-9]*"):
        # Fails for another user's, and for one that is gone.
        with contextlib.suppress(OSError), open(f"{process}/environ", "rb", buffering=0) as environment:
            if wanted in environment.read().split(b"\0"):
                found.append(int(process.rpartition("/")[2]))
    return found
