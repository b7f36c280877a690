"""What servers there are on this machine, and their end before their time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen.hooks.local_servers import folders
from airflow_hydrogen.hooks.local_servers.folders import ENDED, NEW, ServerFolder
from airflow_hydrogen.hooks.local_servers.processes import memory_bytes

_END_S = 30.0
_KILL_S = 5.0
_POLL_S = 0.05
_TRIES = 5


@dataclass(frozen=True)
class ServerInfo:
    """A server of this user's on this machine.

    Attributes:
        key: its name.
        state: "starting", "idle", "in use", or "dead": its keeper has died, and the next task clears it away.
        master: Spark's.
        url: where it answers, without its token; empty until it does.
        pid: of its JVM; 0 until it answers.
        since: when it was started, in seconds since the epoch.
        unused_s: seconds since somebody has come or gone.
        idle_s: how long it lives while nobody uses it.
        memory_bytes: what it holds with its workers.
    """

    key: str
    state: str
    master: str
    url: str
    pid: int
    since: float
    unused_s: float
    idle_s: float
    memory_bytes: int


def list_servers() -> list[ServerInfo]:
    """The servers of this user on this machine, the oldest first. Nothing is changed.

    Raises:
        UnwritableUriError: the temporary folder cannot be used.
    """
    if sys.platform != "linux":  # where none can be
        return []
    found = [_look(folder) for folder in _folders(folders.servers_folder())]
    return sorted((info for info in found if info is not None), key=lambda info: info.since)


def stop_server(key: str | None = None, *, force: bool = False) -> tuple[list[str], list[str]]:
    """End a server, and what dead ones have left. Returns when they have ended.

    Args:
        key: of which; None: all.
        force: those too that a task uses, or that is being started for one. The task fails.

    Returns:
        The keys of those that have been ended, and of those that are in use.

    Raises:
        UnwritableUriError: the temporary folder cannot be used.
    """
    ended: list[str] = []
    used: list[str] = []
    if sys.platform != "linux":
        return ended, used
    root = folders.servers_folder()
    for folder in _folders(root):
        if key in (None, folder.path.name):
            (ended if _stop(folder, force=force) else used).append(folder.path.name)
    folders.sweep(root)
    return ended, used


def _folders(root: Path) -> list[ServerFolder]:
    return [
        ServerFolder(path)
        for path in sorted(root.iterdir())
        if folders.is_of_this_machine(path) and not path.name.startswith((NEW, ENDED))
    ]


def _look(folder: ServerFolder) -> ServerInfo | None:
    plan, server = folder.plan(), folder.server()
    try:
        unused_s = time.time() - folder.users.stat().st_mtime
    except FileNotFoundError:
        return None  # it has just ended
    return ServerInfo(
        key=folder.path.name,
        state=_state(folder, server),
        master=plan.get("master", ""),
        url=server.get("url", ""),
        pid=server.get("pid", 0),
        since=plan.get("since", 0.0),
        unused_s=max(0.0, unused_s),
        idle_s=plan.get("idle_s", 0.0),
        memory_bytes=memory_bytes(plan.get("mark", "")),
    )


def _state(folder: ServerFolder, server: dict[str, object]) -> str:
    if not folders.has_keeper(folder.path):
        return "dead"
    if not server:
        return "starting"
    users = _lock_of_idle(folder)
    if users is None:
        return "in use"
    os.close(users)
    return "idle"


def _stop(folder: ServerFolder, *, force: bool) -> bool:
    """Whether it has ended, or was dead. As long as this holds the lock of an idle one nobody joins it."""
    if not folders.has_keeper(folder.path):
        return True
    users = _lock_of_idle(folder)
    if users is None and not force:
        return not folder.path.exists()  # it has just ended by itself
    try:
        _end(folder)
    finally:
        if users is not None:
            os.close(users)
    return True


def _lock_of_idle(folder: ServerFolder) -> int | None:
    """The lock of a server that nobody uses; None of one that is used, or that has just ended."""
    for _ in range(_TRIES):
        users = folders.locked(folder.users, fcntl.LOCK_EX)
        if users is not None:
            return users
        time.sleep(_POLL_S)  # its keeper has it for a moment when it looks
    return None


def _end(folder: ServerFolder) -> None:
    """Have its keeper end it; end the keeper where it does not. What that leaves is swept."""
    with contextlib.suppress(FileNotFoundError):  # it has ended by itself
        keeper = os.open(folder.keeper, os.O_RDWR | os.O_CLOEXEC)
        try:
            for number, patience_s in ((signal.SIGTERM, _END_S), (signal.SIGKILL, _KILL_S)):
                deadline, told = time.monotonic() + patience_s, False
                while folders.is_kept(keeper) and time.monotonic() < deadline:
                    pid = os.pread(keeper, 20, 0)  # it may not have said yet
                    if pid and not told:
                        os.kill(int(pid), number)
                        told = True
                    time.sleep(_POLL_S)
        finally:
            os.close(keeper)
