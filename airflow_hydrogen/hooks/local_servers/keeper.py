"""The process that starts a server, and ends it when nobody has used it for a while, or it is told to.

`python -m airflow_hydrogen.hooks.local_servers.keeper FOLDER LOCK` goes on in a child, so that nobody waits
for it: it outlives the task that has started it, and whoever ends that. What it starts does not outlive it:
the kernel sees to that, and whoever comes next ends what the kernel has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from airflow_hydrogen.contract.python_workers import (
    AHEAD_VARIABLE,
    MODULE,
    MODULES_VARIABLE,
    socket_name,
    start_ahead,
)
from airflow_hydrogen.hooks.local_servers import folders
from airflow_hydrogen.hooks.local_servers.folders import ServerFolder
from airflow_hydrogen.hooks.local_servers.processes import began
from airflow_hydrogen.hooks.local_servers.properties import (
    DAEMON,
    LOCAL_FOLDER,
    forks_workers,
    math_threads,
    server_properties,
    worker_environment,
    write_properties,
)
from airflow_hydrogen.hooks.local_servers.server import ServerProcess

_PORTS = 3
_POLL_S = 1.0
_START_POLL_S = 0.1
_TOUCH_S = 60.0
_MAX_LOG_BYTES = 64 << 20


class Keeper:
    """Keeps one server, from its start to its end.

    Args:
        folder: the server's; this process holds its keeper's lock.
    """

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder
        self._plan = folder.plan()
        self._users = os.open(folder.users, os.O_RDWR | os.O_CLOEXEC)
        self._ahead: subprocess.Popen[bytes] | None = None
        self._server: ServerProcess | None = None
        self._is_asked = False
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def keep(self) -> int:
        """Start the server, wait until it is to end, and end it, whatever happens.

        Returns:
            The exit code.
        """
        has_answered = False
        try:
            problem = self._start()
            has_answered = problem is None
            _say(problem or self._watch())
        finally:
            self._end()
        return 0 if has_answered else 1

    def _ask(self, _number: int, _frame: object) -> None:
        self._is_asked = True

    def _start(self) -> str | None:
        """Start the server, on another port where that has been taken. Returns why it does not answer."""
        token = secrets.token_hex(32)
        conf: Mapping[str, str] = self._plan["conf"]
        environment = worker_environment(os.environ, conf)
        told = self._start_ahead(environment, conf)
        deadline = time.monotonic() + self._plan["start_timeout_s"]
        for _ in range(_PORTS):
            port = _free_port()
            properties = server_properties(self._plan["master"], conf, token=token, port=port)
            if told:
                properties[DAEMON] = MODULE
            if "SPARK_LOCAL_DIRS" not in environment:
                properties.setdefault(LOCAL_FOLDER, str(self._folder.work / "spark"))
            write_properties(self._folder.properties, properties)
            self._server = ServerProcess(self._plan, self._folder, {**environment, **told})
            problem = self._wait_until_it_listens(self._server, port, deadline)
            if problem is None:
                self._tell(self._server.pid, port, token)
                return None
            if not self._server.found_port_taken():
                return problem
            self._server.end()
        return f"{_PORTS} ports that were free have been taken by others before the server had them"

    def _wait_until_it_listens(self, server: ServerProcess, port: int, deadline: float) -> str | None:
        while not server.listens(port):
            if (code := server.exit_code()) is not None:
                return f"the server has ended with exit code {code} before it listened"
            if self._is_asked:
                return "it was told to end before it listened"
            if time.monotonic() > deadline:
                return f"the server did not listen within {self._plan['start_timeout_s']:g} s"
            self._sleep(_START_POLL_S)
        return None

    def _tell(self, pid: int, port: int, token: str) -> None:
        self._folder.write_server(
            {
                "url": f"sc://localhost:{port}",
                "token": token,
                "pid": pid,
                "began": began(pid) or 0,  # none did: it has ended meanwhile
            }
        )

    def _start_ahead(self, environment: Mapping[str, str], conf: Mapping[str, str]) -> dict[str, str]:
        """Start the process that workers' daemons are forked from.

        Args:
            environment: of the server, and so of workers.
            conf: the user's settings of Spark.

        Returns:
            What the server is to have in its environment, for daemons to find that process.
        """
        if not self._plan["modules"] or not forks_workers(conf):
            return {}
        name = socket_name()
        told = {MODULES_VARIABLE: ",".join(self._plan["modules"]), AHEAD_VARIABLE: name}
        self._ahead = start_ahead(sys.executable, {**math_threads(conf), **environment, **told}, name)
        return told

    def _watch(self) -> str:
        """Wait until the server is to end. Returns why."""
        assert self._server is not None
        idle = _Idle(self._users, self._plan["idle_s"])
        touched = time.monotonic()
        while True:
            if self._is_asked:
                return "it was told to end"
            if (code := self._server.exit_code()) is not None:
                return f"the server has ended with exit code {code}"
            if not folders.is_at(self._users, self._folder.users):
                return "its folder is gone"
            if idle.is_over():
                return f"nobody has used it for {self._plan['idle_s']:g} s"
            if time.monotonic() - touched > _TOUCH_S:
                touched = time.monotonic()
                folders.keep_files(self._folder.path)
                if os.fstat(1).st_size > _MAX_LOG_BYTES:
                    os.ftruncate(1, 0)  # whoever writes to it does so at its end
            self._sleep(min(_POLL_S, self._plan["idle_s"] / 4))

    def _sleep(self, seconds: float) -> None:
        """Until a child has ended, or this process is told to, but not longer than that."""
        if select.select([self._woken], [], [], seconds)[0]:
            os.read(self._woken, 1024)
        if self._ahead is not None:
            self._ahead.poll()  # so that it does not stay as a zombie

    def _end(self) -> None:
        aside = None
        with contextlib.suppress(OSError):  # a folder that is not ours to move any more
            if folders.is_at(self._users, self._folder.users):
                aside = folders.set_aside(self._folder.path)
        if self._server is not None:
            self._server.end()
        folders.remove(aside, self._plan["mark"])


class _Idle:
    """How long nobody has used a server. Users come and go unseen, but for a lock and a time of change."""

    def __init__(self, users: int, idle_s: float) -> None:
        self._users = users
        self._idle_s = idle_s
        self._since = time.monotonic()
        self._changed = 0

    def is_over(self) -> bool:
        """Whether it is to end. Then it is locked: nobody can join it any more."""
        if not folders.lock(self._users, fcntl.LOCK_EX):
            self._since = time.monotonic()
            return False
        changed = os.fstat(self._users).st_mtime_ns
        if changed != self._changed:
            self._changed, self._since = changed, time.monotonic()
        if time.monotonic() - self._since >= self._idle_s:
            return True
        fcntl.flock(self._users, fcntl.LOCK_UN)
        return False


def main(arguments: list[str]) -> int:
    """Keep a server in a process that is nobody's child.

    Args:
        arguments: its folder, and a file that is open with the keeper's lock.
    """
    folder, lock = ServerFolder(Path(arguments[0])), int(arguments[1])
    if os.fork():
        os._exit(0)
    os.setsid()
    os.set_inheritable(lock, False)
    os.write(lock, str(os.getpid()).encode())
    return Keeper(folder).keep()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(text: str) -> None:
    sys.stderr.write(f"airflow-hydrogen: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
