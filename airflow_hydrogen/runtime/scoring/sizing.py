"""How many rows the model gets at once, where the job leaves that to be found out.

A Python worker begins with few rows, and goes on with four times as many for as long as that is hardly slower
and there is room in memory for it. It tries with the rows that it has to score anyway: each is scored once,
whatever their number, and written. What it has found it keeps for as long as it has the model.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from airflow_hydrogen.runtime.scoring import ahead

TRIED = (64, 256, 1024, 4096, 16384, 65536)
"""The rows of a call that are tried, in this order."""

READ_BYTES = 2**26
"""What is read at once, at most, while nobody knows how many rows the model is going to get."""

_FACTOR = TRIED[1] // TRIED[0]
_CALLS = 10  # of each size, behind the first, which may have something to prepare
_LEAST_CALLS = 2  # where these take long
_ENOUGH_S = 0.05
_SLOWER = 0.9  # than the best, twice in a row: larger ones are not going to be faster
_TWICE = 2
_AS_FAST = 0.95  # as the best: the smallest of these takes the least memory

_THREADS = Path("/proc/self/task")
_STATUS, _PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_CONTAINER = Path("/sys/fs/cgroup")
_LIMITS = (  # what a container may have, what it has, and the pages among that which were read once, of files
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
_UNKNOWN_ROOM = 2**30
_NO_ROOM = {"MemoryError", "ResourceExhaustedError", "OutOfMemoryError"}
# ONNX Runtime and PyTorch, on processors, have no class for it.
_NO_ROOM_TEXTS = ("Failed to allocate memory", "bad_alloc", "can't allocate memory")


@dataclass
class Trial:
    """Finds the number of rows.

    Attributes:
        rows: of the next call.
        is_over: whether they stay.
        rates: rows of a call -> rows a second that were reached with it.
    """

    rows: int = TRIED[0]
    is_over: bool = False
    rates: dict[int, float] = field(default_factory=dict)
    _seconds: list[float] = field(default_factory=list)
    _grown: int = 0
    _slower: int = 0
    _calls_with_bad_rows: int = 0

    def note(self, seconds: float, grown: int, room: int) -> None:
        """Take in a call of `rows` rows, and decide how many the next one gets. Not when it is over.

        Args:
            seconds: that it took.
            grown: by how many bytes it has raised the memory of this process.
            room: by how many bytes that may be raised.
        """
        self._seconds.append(seconds)
        self._grown = max(self._grown, grown)  # the first call of a size leaves memory that the others use
        _first, *others = self._seconds
        if len(others) < _LEAST_CALLS or (len(others) < _CALLS and sum(others) < _ENOUGH_S):
            return
        self.rates[self.rows] = self.rows * len(others) / max(sum(others), 1e-9)
        is_slower = self.rates[self.rows] < _SLOWER * max(self.rates.values())
        self._slower = self._slower + 1 if is_slower else 0
        if self._slower == _TWICE or self.rows == TRIED[-1] or _FACTOR * self._grown > room:
            self._end()
        else:
            self.rows, self._seconds, self._grown = self.rows * _FACTOR, [], 0

    def has_usual_bad_rows(self) -> bool:
        """Take in a call with bad rows. Returns whether there are so many of them that they count."""
        self._calls_with_bad_rows += 1
        return self._calls_with_bad_rows > _CALLS

    def step_back(self) -> bool:
        """Take in that there is no room for `rows` rows. Returns whether fewer are known to fit."""
        self.rates = {rows: rate for rows, rate in self.rates.items() if rows < self.rows}
        if not self.rates:
            return False
        self._end()
        return True

    @property
    def fastest(self) -> int:
        """The smallest number of rows that is as fast as any that was tried."""
        if not self.rates:
            return self.rows
        best = max(self.rates.values())
        return min(rows for rows, rate in self.rates.items() if rate >= _AS_FAST * best)

    def _end(self) -> None:
        self.rows, self.is_over = self.fastest, True


def scored(
    trial: Trial,
    score: Callable[[pa.RecordBatch], Iterable[pa.RecordBatch]],
    bad_rows: Callable[[], int],
    batch: pa.RecordBatch,
) -> Iterator[pa.RecordBatch]:
    """Score a batch, and have a trial learn by it.

    Args:
        trial: which has said how many rows to take.
        score: scores a batch.
        bad_rows: how many rows were set aside so far.
        batch: of that many rows, or fewer.
    """
    # A task's last batch may have few rows, as those of a stream that waits for them.
    bad, is_tried = bad_rows(), not trial.is_over and batch.num_rows == trial.rows
    with ahead.paused() if is_tried else contextlib.nullcontext():
        call = _Call() if is_tried else None
        try:
            found = score(batch)
        except Exception as error:
            # What was set aside is not to be set aside twice.
            if bad_rows() != bad or not _has_no_room(error) or not trial.step_back():
                raise
            found = None
        taken = call.measured() if call is not None and found is not None else None
    if found is None:  # out here, because an error holds on to the memory of the call
        while batch.num_rows:
            piece = batch.slice(0, trial.rows)  # fewer from one to the next, maybe
            batch = batch.slice(piece.num_rows)
            yield from scored(trial, score, bad_rows, piece)
        return
    if taken is not None:
        seconds, grown = taken
        if bad_rows() == bad or trial.has_usual_bad_rows():  # one in many takes calls of its own
            trial.note(seconds, max(grown, batch.nbytes), room())
    yield from found


class _Call:
    """Measures what a call takes of time and memory."""

    def __init__(self) -> None:
        self._highest = _reset_peak()
        self._before = _status("VmRSS") - _mapped()
        self._watch = _Watch()

    def measured(self) -> tuple[float, int]:
        """Seconds, and by how many bytes it has raised the memory of this process."""
        return self._watch.seconds(), _status(self._highest) - _mapped() - self._before


class _Watch:
    """Measures how long something takes if nothing else wants the processors.

    A long call waits for its turn on a busy machine, and a short one is done before it loses it: by the clock
    alone few rows would win wherever other work is going on.
    """

    def __init__(self) -> None:
        self._waited = _waited_s()  # which takes time itself
        self._cpu, self._began = time.process_time(), time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far, without those in which threads of this process could have run and did not."""
        taken, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        return max(taken - (_waited_s() - self._waited), cpu / (os.cpu_count() or 1))


def _waited_s() -> float:
    """How long threads of this process have waited for a processor in all."""
    waited = 0
    for thread in _THREADS.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it has just ended
            waited += int(thread.read_text().split()[1])
    return waited / 1e9


def room() -> int:
    """By how many bytes this process may grow: half of its part of what is free, with a worker a core."""
    free = [_UNKNOWN_ROOM]
    if (meminfo := Path("/proc/meminfo")).exists():
        free = [_kilobytes(meminfo, "MemAvailable")]
    for limit, *others in _LIMITS:
        if (_CONTAINER / limit).exists() and (most := (_CONTAINER / limit).read_text().strip()).isdigit():
            free.append(int(most) - _used(*others))
    parts = [count // (os.cpu_count() or 1) for count in free]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)  # spark.executor.pyspark.memory sets it for a worker
    if allowed != resource.RLIM_INFINITY:
        parts.append(allowed - _status("VmSize"))
    return min(parts) // 2


def _used(used: str, stat: str, cached: str) -> int:
    """What a container has, without what the kernel drops when there is no room: files that were read."""
    counts = dict(line.split() for line in (_CONTAINER / stat).read_text().splitlines())
    return int((_CONTAINER / used).read_text()) - int(counts.get(cached, 0))


def _reset_peak() -> str:
    """Have the kernel count the most that this process has in memory anew. Returns its name for that."""
    try:
        _PEAK.write_text(_RESET_PEAK)
    except OSError:  # not in every container; what the call leaves in memory is known still
        return "VmRSS"
    return "VmHWM"


def _mapped() -> int:
    """What this process has of files in memory: weights that it maps come with the rows that need them."""
    return _status("RssFile") + _status("RssShmem")


def _status(name: str) -> int:
    return _kilobytes(_STATUS, name) if _STATUS.exists() else 0


def _kilobytes(file: Path, name: str) -> int:
    """A figure of the kernel's, in bytes; 0 where it has none."""
    lines = file.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _has_no_room(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _NO_ROOM) or any(text in str(error) for text in _NO_ROOM_TEXTS)
