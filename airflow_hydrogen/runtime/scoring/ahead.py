"""Read the next batches while the model computes: in a thread, as far ahead as memory allows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_reading = threading.Lock()


def paused() -> AbstractContextManager[object]:
    """A block in which nothing is read: what it takes of memory and processors is not a reader's."""
    return _reading


def read_ahead(batches: Iterator[pa.RecordBatch], limit: int) -> Generator[pa.RecordBatch]:
    """The same batches, read by a thread while one more fits into `limit` bytes with those that wait.

    It is expected to be as large as the one before it. One that is larger than the limit is read when none
    waits: it and the one that is scored are all there is. An error of the reader comes in its place.
    Whoever closes this iterator has the reader end, and its files closed, before that returns.

    Args:
        batches: is used by the thread alone from now on.
        limit: in bytes.
    """
    line = _Line(limit)
    thread = threading.Thread(target=line.fill, args=(batches,), name="read-ahead", daemon=True)
    thread.start()
    try:
        yield from line
    finally:
        line.close()
        thread.join()


def _next(batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    with _reading:
        return next(batches, None)


class _Line:
    """Batches that wait, between the thread that reads and the one that scores."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[pa.RecordBatch] = deque()
        self._bytes = self._last = 0
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def fill(self, batches: Iterator[pa.RecordBatch]) -> None:
        """Put batches into the line until there are no more, or nobody wants them."""
        try:
            while self._has_room() and (batch := _next(batches)) is not None:
                self._put(batch)
                del batch  # whoever takes it is the only one to hold it
        except BaseException as error:  # told to whoever waits
            self._error = error
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        while (batch := self._take()) is not None:
            yield batch
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Nobody takes another one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until another batch may be read. Returns whether anybody wants one."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._waiting or self._bytes + self._last <= self._limit
            )
            return not self._closed

    def _put(self, batch: pa.RecordBatch) -> None:
        with self._changed:
            self._waiting.append(batch)
            self._last = batch.nbytes
            self._bytes += self._last
            self._changed.notify_all()

    def _take(self) -> pa.RecordBatch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._waiting)
            if not self._waiting:
                return None
            batch = self._waiting.popleft()
            self._bytes -= batch.nbytes
            self._changed.notify_all()
            return batch
