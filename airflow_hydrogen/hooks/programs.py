"""A program of this package on the Airflow worker, in a process of its own and without Spark."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from airflow_hydrogen.hooks import exec_with_parent
from airflow_hydrogen.hooks.sessions import end_session

_KILL_GRACE_S = 3.0  # Airflow's supervisor kills a task 5 s after it asked it to end
_TAIL_LINES = 40


class Program:
    """A module that is run with one argument, and ends with the process that started it.

    Args:
        module: run as `python -m module argument`, by this interpreter and with its path of imports.
        argument: on its command line.
        environment: of the process, beside PYTHONPATH.
    """

    def __init__(self, module: str, argument: str, environment: Mapping[str, str]) -> None:
        self._command = [
            *(sys.executable, str(exec_with_parent.__file__), str(os.getpid())),
            *(sys.executable, "-m", module, argument),
        ]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._environment = {**environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self.killed = False

    @property
    def log_tail(self) -> str:
        """The last lines that it has printed."""
        return "\n".join(self._lines)

    def run(self, say: Callable[[str], None]) -> int:
        """Run it to its end.

        Args:
            say: called with each line that it prints.

        Returns:
            Its exit code; the number of a signal, negative, that has ended it.
        """
        self._process = process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
            start_new_session=True,
        )
        if self.killed:  # meanwhile
            self.kill()
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    self._lines.append(line.rstrip())
                    say(line.rstrip())
            return process.wait()
        finally:
            end_session(process, _KILL_GRACE_S)  # a program that died may have left others
            self._process = None  # its number may be another's by now

    def kill(self) -> None:
        """End it, and every process that it has started; one that has not been started yet ends at once."""
        self.killed = True
        if self._process is not None:
            end_session(self._process, _KILL_GRACE_S)


def write_secretly(file: Path, text: str) -> None:
    """Write a new file that only this user can read."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
