"""Slices of row groups -> windows of rows: several row groups at once, in bounded memory.

What lies sorted in files (one class a file, one day a row group) must not come out sorted. So a window takes
from several row groups, from each the share that it has of their rows, and is shuffled as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pyarrow as pa

from airflow_hydrogen.runtime import progress
from airflow_hydrogen.runtime.data.footers import ColumnBytes
from airflow_hydrogen.runtime.data.opened import OpenedFile
from airflow_hydrogen.runtime.data.shards import RowSlice

WINDOW_ROWS = 65_536
WINDOW_BYTES = 32 * 1024 * 1024
# Row groups that are read at the same time, and the memory that their readers may take together.
_OPEN_GROUPS = 32
_OPEN_BYTES = 128 * 1024 * 1024
_READ_ROWS = 8_192
# What a reader holds of a column besides its buffer: a dictionary and a page of 1 MB each, or less.
_PAGES_BYTES = 2 * 1024 * 1024
_MIN_BUFFER_BYTES = 16 * 1024
_MAX_BUFFER_BYTES = 1024 * 1024
_THREADS_BYTES = 1024 * 1024


@dataclass(frozen=True)
class WindowPlan:
    """How windows are made: the same for the same files and columns, so that a resumed run repeats them.

    Attributes:
        rows: rows of a window, at most.
        groups: row groups that are read at the same time, at most.
        buffer_bytes: of each column of each of them.
        row_bytes: of a row in Arrow.
        remote: each read waits for a network.
    """

    rows: int
    groups: int
    buffer_bytes: int
    row_bytes: float = 1.0
    remote: bool = False

    def threads(self, rows: int) -> bool:
        """Whether columns are read side by side: what little there is to decode is faster in one thread."""
        return self.remote or rows * self.row_bytes >= _THREADS_BYTES


def plan_windows(
    columns: Iterable[ColumnBytes], rows_per_group: float, batch_size: int, *, remote: bool = False
) -> WindowPlan:
    """Fit windows and open row groups into memory. Pure.

    Args:
        columns: bytes of the columns that are read.
        rows_per_group: average rows of a row group.
        batch_size: a window holds at least a batch.
        remote: the files lie on an object store.
    """
    sizes = list(columns)
    row_bytes = max(1.0, sum(size.decoded for size in sizes))
    rows = max(batch_size, min(WINDOW_ROWS, int(WINDOW_BYTES / row_bytes)))
    chunks = [size.stored * rows_per_group for size in sizes]
    buffer = int(min(_MAX_BUFFER_BYTES, max([_MIN_BUFFER_BYTES, *chunks])))
    group_bytes = sum(min(chunk, _PAGES_BYTES) + buffer for chunk in chunks)
    groups = max(1, min(_OPEN_GROUPS, rows, int(_OPEN_BYTES / max(1.0, group_bytes))))
    return WindowPlan(rows, groups, buffer, row_bytes, remote)


def blocks(slices: Sequence[RowSlice], groups: int) -> list[Sequence[RowSlice]]:
    """Cut slices into blocks that are read together: at most `groups`, and about as many in each. Pure."""
    count = -(-len(slices) // groups)
    ends = [len(slices) * number // count for number in range(count + 1)] if count else [0]
    return [slices[start:stop] for start, stop in itertools.pairwise(ends)]


def read_windows(
    slices: Sequence[RowSlice],
    plan: WindowPlan,
    schema: pa.Schema,
    batch_size: int,
    open_group: Callable[[int], tuple[OpenedFile, int]],
) -> Iterator[pa.Table]:
    """The rows of some slices in windows, in the order of the files within each slice.

    Args:
        slices: what to read.
        plan: of the windows.
        schema: of the windows: the columns to read. A file may have them in another order.
        batch_size: a window ends at 32 MB of what was read, but not before it holds a batch.
        open_group: number of a row group -> its opened file, and its place in that file.
    """
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in _batches(slices, plan, schema, open_group):
        progress.current().tick()
        batch_bytes = batch.nbytes
        is_full = size + batch_bytes > WINDOW_BYTES and rows >= batch_size
        if waiting and (is_full or rows + batch.num_rows > plan.rows):
            yield pa.Table.from_batches(waiting)
            waiting, rows, size = [], 0, 0
        waiting.append(batch)
        rows += batch.num_rows
        size += batch_bytes
    if waiting:
        yield pa.Table.from_batches(waiting)


def _batches(
    slices: Sequence[RowSlice],
    plan: WindowPlan,
    schema: pa.Schema,
    open_group: Callable[[int], tuple[OpenedFile, int]],
) -> Iterator[pa.RecordBatch]:
    """Rounds over the slices of a block: in each, every slice gives the same share of its rows."""
    for block in blocks(slices, plan.groups):
        block_rows = sum(part.rows for part in block)
        # Rows are rounded up for each slice, which must not make a round larger than a window.
        rounds = -(-block_rows // max(1, min(plan.rows, _READ_ROWS * len(block)) - len(block)))
        with ExitStack() as stack:
            readers = []
            for part in block:
                file, index = open_group(part.row_group)
                stack.callback(file.close)
                rows = -(-part.rows // rounds)
                batches = file.iter_batches(
                    rows, row_groups=[index], columns=schema.names, use_threads=plan.threads(rows)
                )
                readers.append(_rows_of(batches, part, rows))
            while readers:
                for reader in list(readers):
                    given = next(reader, None)
                    if given is None:
                        readers.remove(reader)
                        continue
                    for batch in given:
                        yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _rows_of(batches: Iterable[pa.RecordBatch], part: RowSlice, rows: int) -> Iterator[list[pa.RecordBatch]]:
    """A slice's rows of the batches of its row group: `rows` at a time, the last time perhaps fewer."""
    position = 0
    given: list[pa.RecordBatch] = []
    missing = rows
    for batch in batches:
        start, stop = max(part.start - position, 0), min(part.stop - position, batch.num_rows)
        position += batch.num_rows
        while start < stop:
            taken = min(missing, stop - start)
            given.append(batch.slice(start, taken))
            start += taken
            missing -= taken
            if not missing:
                yield given
                given, missing = [], rows
        if position >= part.stop:
            break
    if given:
        yield given
