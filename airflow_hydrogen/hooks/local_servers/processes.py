"""Processes of a server: which are its own, whether one lives, and where it listens. As Linux tells."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK_VARIABLE = "AIRFLOW_HYDROGEN_LOCAL_SERVER"
"""In the environment of all that belongs to a server: a random word of its own."""

_LISTENS = "0A"
_POLL_S = 0.05


def marked(mark: str) -> list[int]:
    """Living processes that carry a mark, whoever has started them, but not this one."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):  # another user's, or it has ended meanwhile
                # Of a process that is a zombie there is no environment.
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def end_marked(mark: str, grace_s: float) -> None:
    """SIGTERM to all processes that carry a mark, SIGKILL to those that are left after a while."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + grace_s
        while marked(mark) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def began(pid: int) -> int | None:
    """When a process has begun, in the kernel's ticks: with its number it is told from any other.

    Returns:
        None where there is none that lives.
    """
    try:
        text = Path("/proc", str(pid), "stat").read_text(errors="replace")
    except OSError:
        return None
    # pid (command) state ...: the command may hold spaces and brackets.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def lives(pid: int, ticks: int) -> bool:
    """Whether the process lives that had a number when it began then."""
    return began(pid) == ticks


def listens(pid: int, port: int) -> bool:
    """Whether a process itself, and not another that was faster, listens on a TCP port."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    try:
        files = list(Path("/proc", str(pid), "fd").iterdir())
    except OSError:
        return False
    for file in files:
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(file) in sockets:
                return True
    return False


def memory_bytes(mark: str) -> int:
    """What the processes with a mark hold of this machine's memory. What several share counts once."""
    return sum(_memory(pid) for pid in marked(mark))


def _listening(port: int) -> list[str]:
    found = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # a kernel without it
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                    found.append(rest[5])
    return found


def _memory(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Pss":
                return int(value.split()[0]) * 1024
    return 0
