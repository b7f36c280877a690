"""Join the server of this user, environment and machine: one that runs, or a new one."""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract.errors import LocalServerError
from airflow_hydrogen.hooks.local_servers import folders
from airflow_hydrogen.hooks.local_servers.folders import ServerFolder
from airflow_hydrogen.hooks.local_servers.processes import MARK_VARIABLE, lives
from airflow_hydrogen.hooks.local_servers.settings import ServerSettings

_KEEPER = "airflow_hydrogen.hooks.local_servers.keeper"
_POLL_S = 0.05
_KEEPER_TIMEOUT_S = 30.0  # for the keeper's own start and end, beside the server's


@dataclass(frozen=True)
class LocalServer:
    """A server that is in use.

    Attributes:
        url: `sc://localhost:PORT`; with another name for the host Spark's client would speak TLS.
        token: what the server asks of a client, never in `repr`.
        key: of servers that may stand for it.
        pid: of its JVM.
    """

    url: str
    token: str = field(repr=False)
    key: str
    pid: int
    _log: int = field(repr=False)

    @property
    def log_tail(self) -> str:
        """The last lines that it has written, even where it has ended meanwhile."""
        return folders.log_tail(self._log)


@contextmanager
def joined(settings: ServerSettings, say: Callable[[str], None]) -> Iterator[LocalServer]:
    """A server that is not ended as long as the block lasts, unless somebody stops it by force.

    Args:
        settings: what it is made of. One that runs is joined where it has been made of the same.
        say: called with a line that says which one it is.

    Raises:
        LocalServerError: there is none, and none could be started.
        UnwritableUriError: the temporary folder cannot be used.
    """
    if sys.platform != "linux":
        raise LocalServerError(f"{sys.platform} does not end processes with the one that keeps them")
    began_s = time.monotonic()
    deadline = began_s + settings.start_timeout_s + _KEEPER_TIMEOUT_S
    try:
        seat, found = _take(settings, deadline, say)
    except OSError as error:
        raise LocalServerError(f"its folder below the temporary folder cannot be used ({error})") from error
    try:
        server = LocalServer(found["url"], found["token"], seat.folder.path.name, found["pid"], seat.log)
        say(f"local Spark Connect server {server.key}, joined in {time.monotonic() - began_s:.2f} s")
        yield server
    finally:
        seat.leave()


@dataclass(frozen=True)
class _Seat:
    """What a user of a server holds: files that are open, wherever the folder has gone."""

    folder: ServerFolder
    users: int
    keeper: int
    log: int

    @classmethod
    def take(cls, folder: ServerFolder) -> _Seat | None:
        """None where there is no server, or one that is about to end."""
        users = folders.locked(folder.users, fcntl.LOCK_SH)
        if users is None:
            return None
        opened = [users]
        try:
            os.utime(users)
            for file in (folder.keeper, folder.log):
                opened.append(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))
        except FileNotFoundError:  # its keeper found it idle, or dead, before there was a lock
            _close(opened)
            return None
        return cls(folder, *opened)

    def is_kept(self) -> bool:
        return folders.is_kept(self.keeper)

    def is_in_place(self) -> bool:
        """Whether others can find the server that this is a seat at."""
        return folders.is_at(self.users, self.folder.users)

    def leave(self) -> None:
        os.utime(self.users)
        _close([self.users, self.keeper, self.log])


def _take(
    settings: ServerSettings, deadline: float, say: Callable[[str], None]
) -> tuple[_Seat, dict[str, Any]]:
    """A seat at a server that answers. Each turn of the loop ends, or somebody else has done something."""
    root = folders.servers_folder()
    folder = ServerFolder(root / settings.key())
    while time.monotonic() < deadline:
        folders.sweep(root)
        seat = _Seat.take(folder) or _start(root, folder.path.name, settings, say)
        if seat is not None:
            try:
                found = _answer(seat, deadline)
            except BaseException:
                seat.leave()
                raise
            if found is not None:
                return seat, found
            seat.leave()
        time.sleep(_POLL_S)
    raise LocalServerError(
        f"{folder.path} is neither a server that answers nor one that ends; "
        "`airflow hydrogen session stop --all --force` ends it"
    )


def _answer(seat: _Seat, deadline: float) -> dict[str, Any] | None:
    """Where the server answers, once it does; None where it did and has ended.

    Raises:
        LocalServerError: it never will.
    """
    while time.monotonic() < deadline:
        found = seat.folder.server()
        if seat.is_in_place():
            if found:
                # Without its keeper it is about to end.
                return found if seat.is_kept() and lives(found["pid"], found["began"]) else None
            if seat.is_kept():
                time.sleep(_POLL_S)
                continue
        raise LocalServerError("it ended before it answered", folders.log_tail(seat.log))
    return None


def _start(root: Path, key: str, settings: ServerSettings, say: Callable[[str], None]) -> _Seat | None:
    """Start a keeper, unless another task has been faster: then there is a seat to be taken."""
    mark = secrets.token_hex(16)
    made = folders.make(root, key, {**_plan(settings), "mark": mark})
    if made is None:
        return None
    folder, keeper = made
    say(f"starting a Spark Connect server on this machine ({settings.master}), which later tasks join")
    try:
        seat = _Seat.take(folder)
        assert seat is not None, "nobody else moves a folder whose keeper's lock is held here"
        started = subprocess.run(
            [sys.executable, "-m", _KEEPER, str(folder.path), str(keeper)],
            stdin=subprocess.DEVNULL,
            stdout=seat.log,
            stderr=seat.log,
            cwd=folder.work,
            env={**settings.environment, MARK_VARIABLE: mark},
            pass_fds=[keeper],
            start_new_session=True,
            check=False,
        )
    finally:
        os.close(keeper)
    if started.returncode:
        tail = folders.log_tail(seat.log)
        seat.leave()
        raise LocalServerError(f"its keeper ended with exit code {started.returncode}", tail)
    return seat


def _plan(settings: ServerSettings) -> dict[str, Any]:
    """What the keeper is told."""
    return {
        "spark_submit": settings.spark_submit,
        "java": settings.java,
        "master": settings.master,
        "conf": settings.spark_conf,
        "modules": settings.modules,
        "idle_s": settings.idle_s,
        "start_timeout_s": settings.start_timeout_s,
        "since": time.time(),
    }


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
