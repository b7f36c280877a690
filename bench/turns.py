"""Two trainings side by side, of which one moves at a time: their speeds, whatever else the machine does.

A machine that is shared changes its speed by tens of percent from one second to the next, and a training that
runs after another meets another machine. Here both are started first; then the ranks of the one are stopped
(SIGSTOP) while those of the other go on for half a second, in turns, and each tells the steps it has done.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import RANKS

_START_S = 300.0
_COUNTER = struct.Struct("q")


# --- on the ranks --------------------------------------------------------------------------------------


def meter(notes: str, rank: int) -> Any:
    """A Keras callback that counts the steps, is ready after an epoch, and ends once there is enough.

    Args:
        notes: the contender's folder.
        rank: of this process.
    """
    import horovod.tensorflow as hvd
    import keras
    import tensorflow as tf

    class Meter(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._done = 0
            with (Path(notes) / "steps").open("r+b") as file:
                self._steps = mmap.mmap(file.fileno(), _COUNTER.size)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self._done += 1
            if rank == 0:
                _COUNTER.pack_into(self._steps, 0, self._done)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            enough = tf.constant(float((Path(notes) / "enough").exists()))
            # Some ranks may see the file an epoch before the others: they end together.
            self.model.stop_training = float(hvd.allreduce(enough, op=hvd.Sum, name="enough")) > 0
            if epoch == 0:
                written = Path(notes, f"{rank}.tmp")
                written.write_text(str(os.getpid()))
                written.rename(Path(notes, f"{rank}.pid"))

    return Meter()


# --- beside them ---------------------------------------------------------------------------------------


class Contender:
    """A training that runs in a thread, and whose ranks can be stopped.

    Args:
        notes: its folder, which its ranks read and write.
        run: runs the training to its end; it gets the folder.
    """

    def __init__(self, notes: Path, run: Callable[[str], object]) -> None:
        notes.mkdir()
        self._notes = notes
        (notes / "steps").write_bytes(_COUNTER.pack(0))
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self._pids: list[int] = []

    def _run(self, run: Callable[[str], object]) -> None:
        try:
            run(str(self._notes))
        except BaseException as error:
            self._failure = error

    def start(self) -> None:
        """Start it, wait for its first epoch, and stop it."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while len(found := list(self._notes.glob("*.pid"))) < RANKS:
            self._require_alive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._notes.name} has not done an epoch after {_START_S:g} s")
            time.sleep(0.1)
        self._pids = [int(path.read_text()) for path in found]
        self._signal(signal.SIGSTOP)

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(_COUNTER.unpack((self._notes / "steps").read_bytes())[0])

    def move(self, seconds: float) -> tuple[int, float]:
        """Let it go on; the steps that it did, and the seconds."""
        self._require_alive()
        before, began = self.steps, time.monotonic()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        return self.steps - before, time.monotonic() - began

    def end(self) -> None:
        """Let it come to the end of its epoch, and of itself."""
        (self._notes / "enough").touch()
        self._signal(signal.SIGCONT)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _require_alive(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError(f"{self._notes.name} ended") from self._failure

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._pids:
            os.kill(pid, number)


@contextmanager
def _started(*contenders: Contender) -> Iterator[None]:
    for contender in contenders:
        contender.start()
    yield
    for contender in contenders:
        contender.end()


def rates_in_turns(
    ours: Contender, baseline: Contender, *, turn_s: float = 0.5, turns: int = 32, blocks: int = 6
) -> list[tuple[float, float]]:
    """Steps a second of both.

    Args:
        ours, baseline: not started.
        turn_s: how long one moves, in seconds.
        turns: of each in a block; long enough for what happens once an epoch.
        blocks: how many pairs to return.
    """
    pairs = []
    with _started(baseline, ours):
        for _ in range(blocks):
            totals = {ours: [0.0, 0.0], baseline: [0.0, 0.0]}
            for turn in range(turns):
                for contender in (ours, baseline) if turn % 2 else (baseline, ours):
                    for total, found in enumerate(contender.move(turn_s)):
                        totals[contender][total] += found
            mine, other = (steps / seconds for steps, seconds in totals.values())
            pairs.append((mine, other))
            print(f"    ours {mine:.4g}, baseline {other:.4g} steps/s", file=sys.stderr, flush=True)
    return pairs
