"""What a rank is doing: counted and named while it works, and told to the gang's watchdog in beats.

Horovod's own stall check is dead under Gloo: a rank that skips a collective makes the others wait without
end and without a word. So the steps of a training, its batches, its reports and Horovod's calls leave marks
here, and a thread of the rank's process sends them on. Marks cost well below a microsecond.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_STACK_FRAMES = 6
_MAX_BEAT_S = 5.0
_MIN_BEAT_S = 0.2

# Functions of `horovod.<framework>.mpi_ops` in which a rank waits for its peers.
_COLLECTIVES = (
    *("allreduce", "_allreduce", "grouped_allreduce", "_grouped_allreduce", "allgather", "grouped_allgather"),
    *("broadcast", "broadcast_", "alltoall", "reducescatter", "_reducescatter", "barrier", "join"),
    "synchronize",
)


@dataclass(frozen=True)
class Beat:
    """What a rank was doing at one moment; plain values, which travel as JSON.

    Attributes:
        marks: how many marks it has left; more means progress.
        activity: the last one, such as "epoch 2, step 31" or "allreduce".
        idle_s: seconds since then.
        waiting: it is in a call of Horovod, which waits for the other ranks.
        stack: where the main thread stands, innermost last; empty while it makes progress.
    """

    marks: int = 0
    activity: str = "start"
    idle_s: float = 0.0
    waiting: bool = False
    stack: tuple[str, ...] = ()


class Progress:
    """The marks of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks = 0
        self._activity = "start"
        self._waiting = 0
        self._marked_at = clock()
        self._main = threading.main_thread().ident

    def begin(self) -> None:
        """The time runs from here: the process may have been copied from an older one."""
        self._marked_at = self._clock()

    def mark(self, activity: str) -> None:
        """Progress was made, and this is what comes next."""
        self._marks += 1
        self._activity = activity
        self._marked_at = self._clock()

    def tick(self) -> None:
        """Progress was made, by another thread perhaps; the activity stays."""
        self._marks += 1
        self._marked_at = self._clock()

    @contextmanager
    def waiting_in(self, activity: str) -> Iterator[None]:
        """Progress was made; until the block ends the other ranks are waited for."""
        before = self._activity
        self._waiting += 1
        self.mark(activity)
        try:
            yield
        finally:
            self._waiting -= 1
            self.mark(before)

    def beat(self, stack_after_s: float) -> Beat:
        """The state now.

        Args:
            stack_after_s: look where the main thread stands when there was no mark for so long.
        """
        idle_s = self._clock() - self._marked_at
        stack = self._stack() if idle_s >= stack_after_s else ()
        return Beat(self._marks, self._activity, round(idle_s, 3), self._waiting > 0, stack)

    def _stack(self) -> tuple[str, ...]:
        frame = sys._current_frames().get(self._main or 0)
        if frame is None:
            return ()
        frames = traceback.extract_stack(frame)[-_STACK_FRAMES:]
        return tuple(f"{entry.filename}:{entry.lineno} in {entry.name}" for entry in frames)


_progress = Progress()


def _tell_nobody() -> None:
    pass


_tell: Callable[[], None] = _tell_nobody


def current() -> Progress:
    """The marks of this process."""
    return _progress


def beat_interval_s(stall_timeout_s: float | None) -> float:
    """Seconds from one beat to the next: ten in the time that a stall may last, but not too many."""
    if stall_timeout_s is None:
        return _MAX_BEAT_S
    return min(_MAX_BEAT_S, max(_MIN_BEAT_S, stall_timeout_s / 10))


def start_beating(send: Callable[[Beat], None], interval_s: float) -> None:
    """Send beats from a thread for as long as the process lives, or until nobody receives them."""
    global _tell
    _progress.begin()

    def beat() -> None:
        send(_progress.beat(stack_after_s=2 * interval_s))

    def tell() -> None:
        with contextlib.suppress(OSError):
            beat()

    def run() -> None:
        waiting = threading.Event()
        while True:
            try:
                beat()
            except OSError:  # the parent is gone, and with it soon this process
                return
            waiting.wait(interval_s)

    _tell = tell
    threading.Thread(target=run, name="gang-beat", daemon=True).start()


def watch_horovod(module: ModuleType) -> None:
    """Mark what a rank waits for in Horovod's Python functions. Idempotent.

    Inside a `tf.function` they are called once, while it is traced; there the steps of the training tell. A
    rank that comes to `init` and leaves it says so at once: Gloo may end the process there without a word,
    and whatever ends it later must not be taken for that.

    Args:
        module: `horovod.tensorflow.mpi_ops` or `horovod.torch.mpi_ops`, before others import from it.
    """
    for name in (*_COLLECTIVES, "init"):
        function = getattr(module, name, None)
        if callable(function) and not hasattr(function, "__wrapped__"):
            setattr(module, name, _watched_init(function) if name == "init" else _watched(function, name))


INIT = "hvd.init()"


def _watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    kind = name.strip("_")

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        tensor = kwargs.get("name")
        with _progress.waiting_in(f"{kind} {tensor!r}" if isinstance(tensor, str) else kind):
            return function(*args, **kwargs)

    return watched


def _watched_init(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def init(*args: Any, **kwargs: Any) -> Any:
        try:
            with _progress.waiting_in(INIT):
                _tell()
                return function(*args, **kwargs)
        finally:
            _tell()

    return init
