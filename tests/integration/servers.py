"""Servers that tests start: one process each, which ends with pytest, however pytest ends.

Each has a file of its own: `databases.py`, `broker.py`, `metastore.py`. The fixtures are in `conftest.py`:
one of each for every process of pytest, started when a test first asks. Logs lie in pytest's folder, which
later runs keep.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.integration import daemons

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0  # they take one to five seconds on an idle machine


def java(*arguments: str, memory: str, class_path: Sequence[Path | str]) -> list[str]:
    """The command of a small JVM."""
    home = os.environ.get("JAVA_HOME")
    return [
        str(Path(home, "bin", "java")) if home else "java",
        *(f"-Xmx{memory}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        *("-cp", ":".join(map(str, class_path))),
        *arguments,
    ]


def as_nobody() -> list[str]:
    """What a command begins with, so that it is not root's: databases refuse to be."""
    if os.getuid() != 0:
        return ["setpriv"]
    nobody = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]


def give_to_nobody(path: Path) -> None:
    """Let the user of `as_nobody` own a file or folder."""
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def port_is_open(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        with socket.create_connection((HOST, port), timeout=5):
            return True
    except OSError:
        return False


class Server:
    """A process that serves.

    Attributes:
        log: what it has said.
        process: None while it does not run.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        answers: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        user: Sequence[str] = ("setpriv",),
        end: signal.Signals = signal.SIGKILL,
    ) -> None:
        """Nothing is started yet.

        Args:
            command: the program and its arguments.
            log: a file for what it says.
            answers: whether it serves.
            environment: variables besides those of this process.
            user: `as_nobody()`, or `setpriv` alone.
            end: the signal that ends it at once and leaves nothing in the kernel.
        """
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._end = end
        # The kernel sends it when pytest dies; where that was before the kernel knew, nothing starts.
        alive = ["sh", "-c", 'test "$PPID" = "$0" && exec "$@"', str(os.getpid())]
        self._command = [*user, "--pdeathsig", end.name.removeprefix("SIG"), *alive, *command]
        self._answers = answers
        self._environment = {**os.environ, **(environment or {})}

    def start(self) -> None:
        """Start it, with the data that it had, and wait until it serves."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                reason = "has ended" if ended else f"does not serve after {START_TIMEOUT_S} s"
                last = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
                raise RuntimeError(f"{self._command[-1]} {reason}; the end of {self.log}:\n{last}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once and wait until it is gone: its clients find nobody there."""
        if self.process is not None:
            daemons.end(self.process, self._end)
            self.process = None
