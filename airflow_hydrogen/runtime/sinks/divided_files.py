"""Rows of many partitions -> files of one partition each, written by tasks as rows come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import pyarrow as pa

from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles

PARTITION = "_hydrogen_partition"
"""The column that says of which of the sink's partitions a row is, by its number; it is not written."""

# What a task holds of all partitions before it writes some rows of one.
_WAITING_BYTES = 64 * 1024 * 1024
# Files that are open at the same time: a store holds some megabytes of each.
_OPEN = 8


_NAME = re.compile(rf"{PARTITION}=(\d+)[-/](.*)")


def partition_of(name: str) -> tuple[int, str]:
    """The partition that a file belongs to, and the name that it has there.

    Args:
        name: of a file that a task or Spark has written, which writes those of a partition into one folder.
    """
    found = _NAME.fullmatch(name)
    assert found is not None, f"{name!r} is of no partition"
    return int(found[1]), found[2]


class DividedFile:
    """The files of one try of a task that has rows of many partitions; see `TaskFile`.

    Where too many rows wait, those of the partition that has the most of them are written. Where too many
    files are open then, the one that was written to longest ago is ended, and its partition gets another one
    when there are more rows of it.

    Args:
        place: where they go.
    """

    def __init__(self, place: TaskFiles) -> None:
        self._place = place
        self._files: dict[int, TaskFile] = {}
        self._open: list[int] = []  # the one that was written to last stands last
        self.names: list[str] = []

    def __enter__(self) -> DividedFile:
        return self

    def add(self, rows: pa.RecordBatch) -> None:
        """Write some rows, sooner or later.

        Args:
            rows: with the columns of the schema and `PARTITION`.

        Raises:
            UnwritableUriError: this host cannot write there.
        """
        for number, part in divided(rows):
            if number not in self._files:
                self._files[number] = TaskFile(self._place, f"{PARTITION}={number}-")
            self._files[number].add(part)
            self._note(number)
        while sum(file.waiting_bytes for file in self._files.values()) >= _WAITING_BYTES:
            number = max(self._files, key=lambda number: self._files[number].waiting_bytes)
            self._files[number].flush()
            self._note(number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._files:
                self._end(next(iter(self._files)), error)
        except BaseException as failed:
            while self._files:
                self._end(next(iter(self._files)), failed)
            raise

    def _note(self, number: int) -> None:
        """Keep in mind which files are open, and end one where these are too many."""
        if not self._files[number].is_open:
            return
        self._open = [*(other for other in self._open if other != number), number]
        if len(self._open) > _OPEN:
            self._end(self._open[0], None)

    def _end(self, number: int, error: BaseException | None) -> None:
        self._open = [other for other in self._open if other != number]
        file = self._files.pop(number)
        file.__exit__(None if error is None else type(error), error, None)
        self.names += file.names


def divided(rows: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of each partition, in the order in which they came.

    Those of a batch with rows of one partition alone are given as they are. Others are copied, so that a few
    rows that wait do not keep a whole batch.
    """
    numbers = rows.column(PARTITION).to_numpy(zero_copy_only=False)
    found, inverse = np.unique(numbers, return_inverse=True)
    if found.size == 1:
        yield int(found[0]), rows
        return
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=found.size))[:-1]
    for number, places in zip(found, np.split(order, ends), strict=True):
        yield int(number), rows.take(pa.array(places))
