"""The parent's side of one rank: its child process, its output and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Pipe
from typing import IO, Any, Protocol

from airflow_hydrogen.runtime.gang import templates
from airflow_hydrogen.runtime.gang.network import GangAddress
from airflow_hydrogen.runtime.gang.output import lines_of, read_at_intervals
from airflow_hydrogen.runtime.gang.templates import ForkedRank, NoTemplate, TemplateSpec
from airflow_hydrogen.runtime.progress import Beat
from airflow_hydrogen.runtime.rank import marks
from airflow_hydrogen.runtime.rank.failures import RankFailure
from airflow_hydrogen.runtime.rank.task import (
    MARK_VARIABLE,
    PARENT_VARIABLE,
    PIPE_VARIABLE,
    Answer,
    Placement,
    RankTask,
)

_POLL_S = 0.2
_TERM_GRACE_S = 2.0
_OUTPUT_GRACE_S = 0.5  # for the last lines of a process that has ended
_EXIT_GRACE_S = 30.0  # for a process that has sent its result
_TAIL_LINES = 30


class Listener(Protocol):
    """Who is told what one rank says."""

    def line(self, text: str) -> None:
        """A line of its output."""

    def report(self, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        """A line of its history."""

    def beat(self, beat: Beat) -> None:
        """A sign of life."""

    def returned(self) -> None:
        """`main` has returned."""


class RankFailed(Exception):
    """Inside the runtime: a rank ended without a result."""

    def __init__(self, failure: RankFailure) -> None:
        super().__init__(str(failure.to_error()))
        self.failure = failure


class RankCancelled(Exception):
    """Inside the runtime: the gang was told to stop."""


class RankProcess:
    """A process that runs one rank: forked from a template, or started.

    One process a rank, so that a framework's state, GPU memory and environment die with it. It is killed when
    this one dies (by `PR_SET_PDEATHSIG`, or by a pipe that ends). At the end its process group is killed, and
    all that has its mark in the environment, so that what it started itself does not outlive it.
    """

    def __init__(
        self,
        task: RankTask,
        placement: Placement,
        environment: Mapping[str, str],
        here: GangAddress,
        listener: Listener,
        template: TemplateSpec | None = None,
    ) -> None:
        """Start the process, or have it forked. Call it from a thread that lives until `wait` returns.

        Args:
            task: what the rank runs.
            placement: its place.
            environment: what it has beside this process's own.
            here: its address, for messages.
            listener: who is told what it says.
            template: to be forked from; None starts a process, and so does a template that is no good.
        """
        self._task = task
        self._placement = placement
        self._here = here
        self._listener = listener
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._killed = False
        self._mark = marks.new_mark()
        self._environment = {
            **os.environ,
            **environment,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUNBUFFERED": "1",
            MARK_VARIABLE: self._mark,
        }
        self._process: subprocess.Popen[bytes] | ForkedRank
        try:
            if template is None:
                self._start()
            else:
                self._process = templates.ask(template, environment, self._mark)
                self._pipe = self._process.pipe
        except NoTemplate as reason:
            self._start_after_all(reason)

    def _start(self) -> None:
        self._pipe, child_pipe = Pipe()
        with child_pipe:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "airflow_hydrogen.runtime.rank.worker"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={
                    **self._environment,
                    PIPE_VARIABLE: str(child_pipe.fileno()),
                    PARENT_VARIABLE: str(os.getpid()),
                },
                pass_fds=[child_pipe.fileno()],
                start_new_session=True,
            )
        self._send((self._task, self._placement))
        self._read()

    def _start_after_all(self, reason: NoTemplate) -> None:
        self._listener.line(f"started as a new process, not forked: {reason}")
        self._start()

    def _be_forked(self, cancelled: Callable[[], bool]) -> None:
        """Wait for a template that may still be importing.

        Raises:
            RankCancelled: told to stop.
        """
        if not isinstance(self._process, ForkedRank):
            return
        try:
            while not self._process.is_there(_POLL_S):
                if cancelled():
                    raise RankCancelled
        except NoTemplate as reason:
            self._let_go(self._process)
            self._start_after_all(reason)
            return
        self._send(templates.launch_of(self._environment))
        self._send((self._task, self._placement))
        self._read()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead already: wait() says why
            self._pipe.send(message)

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read_output, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def wait(self, cancelled: Callable[[], bool]) -> Answer:
        """Wait for the rank's end.

        Args:
            cancelled: asked several times a second; True ends the process.

        Returns:
            What the rank answers.

        Raises:
            RankFailed: `main` raised, or the process ended without a result.
            RankCancelled: told to stop.
        """
        result: Answer | None = None
        failure: RankFailure | None = None
        give_up = float("inf")
        try:
            self._be_forked(cancelled)
            while failure is None and time.monotonic() < give_up:
                message = self._receive()
                if message is None:
                    break
                kind, content = message
                if kind == "beat":
                    self._listener.beat(content)
                elif kind == "report":
                    self._listener.report(*content)
                elif kind == "returned":
                    self._listener.returned()
                elif kind == "failed":
                    # Not waited for: Horovod's own end may hang while its peers are in a collective.
                    failure = content
                elif kind == "result":
                    result, give_up = content, time.monotonic() + _EXIT_GRACE_S
                # One that has died by itself says so, whatever its peers have caused meanwhile.
                if failure is None and cancelled() and self._process.poll() is None:
                    raise RankCancelled
            while failure is None and not self._has_ended() and time.monotonic() < give_up:
                if cancelled():
                    raise RankCancelled
            self._reader.join(_OUTPUT_GRACE_S)
            if failure is not None:
                raise RankFailed(self._with_tail(failure))
            if result is None:
                raise RankFailed(self._with_tail(self._death()))
            if self._process.returncode != 0:
                # A destructor of a framework that crashes or hangs takes nothing back.
                self._listener.line(f"{self._exit()}, after its result was delivered: the result counts")
            return result
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and all that it started: SIGTERM, then SIGKILL. A second call does nothing."""
        if self._killed:  # its number may be that of another process by now
            return
        self._killed = True
        if isinstance(self._process, ForkedRank) and not self._process.is_known:
            self._let_go(self._process)  # the template, which has not come to it yet, ends it
            return
        for sent in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None and sent == signal.SIGTERM:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TERM_GRACE_S)
        marks.end_marked(self._mark)
        self._pipe.close()
        if isinstance(self._process, ForkedRank):
            self._process.close()

    def _let_go(self, process: ForkedRank) -> None:
        """Of a rank that was never there."""
        process.stdout.close()
        self._pipe.close()
        process.close()

    def _receive(self) -> tuple[str, Any] | None:
        """The child's next message, ("idle", None) where there is none yet, None at its end.

        The end of the pipe alone does not tell: a process that the child forked may hold it.
        """
        ended = self._process.poll() is not None  # looked at first: what was sent before is read all the same
        try:
            if self._pipe.poll(0 if ended else _POLL_S):
                message: tuple[str, Any] = self._pipe.recv()
                return message
        except (EOFError, OSError):  # the second: in the middle of a message
            return None
        return None if ended else ("idle", None)

    def _has_ended(self) -> bool:
        """Whether the process is gone, after a short wait for it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL_S)
        return self._process.poll() is not None

    def _read_output(self, output: IO[bytes]) -> None:
        with output:
            for line in lines_of(read_at_intervals(output)):
                self._tail.append(line)
                self._listener.line(line)

    def _death(self) -> RankFailure:
        # Gloo ends the process where it does not find its peers, and names neither them nor itself.
        where = f" on {self._here}" if self._process.returncode == -signal.SIGABRT else ""
        when = " before main returned" if (self._process.returncode or 0) >= 0 else ""
        return RankFailure(
            self._placement.rank, self._placement.host, "process", f"{self._exit()}{where}{when}"
        )

    def _exit(self) -> str:
        """How the process ended, in words."""
        code = self._process.returncode
        if code is None:
            return f"its process did not end within {_EXIT_GRACE_S:g} s"
        if code == templates.UNSEEN:
            return "its process ended, and nobody saw how: its template had died before"
        if code == -signal.SIGABRT:
            return "its process was aborted (SIGABRT)"
        if code < 0:
            return f"its process was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"its process ended with exit code {code}"

    def _with_tail(self, failure: RankFailure) -> RankFailure:
        return replace(failure, log_tail=tuple(self._tail))
