"""Parquet that Python workers read themselves: pages -> Arrow, without the detour over the JVM's rows.

Spark turns Parquet into rows and rows into Arrow before a Python worker sees them, which costs more than a
small model does. Files on a filesystem that every host sees are read by the workers with pyarrow instead, so
that Spark schedules tasks and touches no row. Which files, and which of their rows, `data.scans` takes
from Spark's plan; where it cannot (`prepare`, other formats, object stores that the job names no connection
for, whose credentials may be Spark's alone), the rows go through Spark.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.jobs import BatchRows
from airflow_hydrogen.runtime import devices
from airflow_hydrogen.runtime.data.files import DatasetFiles
from airflow_hydrogen.runtime.data.scans import Scan
from airflow_hydrogen.runtime.scoring.ahead import read_ahead
from airflow_hydrogen.runtime.scoring.sizing import READ_BYTES, TRIED

if TYPE_CHECKING:
    import pyarrow as pa

# What a task reads, uncompressed: enough to be worth its start, little enough to be worth another try.
_TASK_BYTES = 128 * 1024 * 1024
_MIN_TASK_BYTES = 8 * 1024 * 1024
# Where that makes too few for the slots that are there now: several each, so that all end together.
_TASKS_PER_SLOT = 4
# Pieces in which a column is read from a disk: those of some columns at once should fit into a core's cache.
_BUFFER_BYTES = 128 * 1024
# What is fetched of a store at once: every request costs as much as a megabyte. More is cut.
_FETCHED_BYTES = 256 * 1024 * 1024
_LEAST_FETCHED_BYTES = 1024 * 1024
# Rows that wait for the model where reading waits for a network, or the model computes elsewhere.
_AHEAD_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class RowGroup:
    """One row group of the list of files.

    Attributes:
        file: number of the file in the list.
        index: its place in the file.
        size: uncompressed bytes of the columns that are needed.
    """

    file: int
    index: int
    size: int


def row_groups(files: DatasetFiles) -> list[RowGroup]:
    """The row groups of a list that may hold rows that are wanted. Pure."""
    return [
        RowGroup(number, index, size)
        for number, file in enumerate(files.files)
        for index, (rows, size) in enumerate(zip(file.rows, file.sizes, strict=True))
        if rows and index not in file.skipped
    ]


def deal(groups: Sequence[RowGroup], slots: int) -> list[list[RowGroup]]:
    """Deal row groups to tasks of about 128 MB. Pure.

    The number of tasks comes from the bytes, because the slots that are there when it is asked may be few
    (with dynamic allocation, one). Less data than that is still cut for the slots, in tasks of 8 MB and more.
    A row group is never cut: one of 1 GB is a task of 1 GB.

    Args:
        groups: what is to be read.
        slots: tasks that can run at the same time now.

    Returns:
        One list a task, none of them empty, each in the order of the files: the largest row groups were dealt
        first, each to the task that had the fewest bytes so far.
    """
    total = sum(group.size for group in groups)
    wanted = max(-(-total // _TASK_BYTES), min(_TASKS_PER_SLOT * slots, total // _MIN_TASK_BYTES), 1)
    hands: list[list[RowGroup]] = [[] for _ in range(min(wanted, len(groups)))]
    heap = [(0, number) for number in range(len(hands))]
    for group in sorted(groups, key=lambda group: (-group.size, group.file, group.index)):
        size, number = heapq.heappop(heap)
        hands[number].append(group)
        heapq.heappush(heap, (size + group.size, number))
    return [sorted(hand, key=lambda group: (group.file, group.index)) for hand in hands]


def rows_at_once(scan: Scan, groups: Sequence[RowGroup], batch_rows: BatchRows) -> int:
    """How many rows to read at once: those of one call of the model, where they are known. Pure."""
    if batch_rows != "auto":
        return batch_rows
    rows = sum(scan.files.files[group.file].rows[group.index] for group in groups)
    size = sum(group.size for group in groups)
    return max(1, min(TRIED[-1], READ_BYTES * rows // max(size, 1)))


def read(
    scan: Scan, groups: Sequence[RowGroup], columns: Sequence[str], batch_rows: int
) -> Generator[pa.RecordBatch]:
    """The rows of some row groups, in batches of one schema: files may differ in whether they allow nulls.

    From a store, and for a model on a GPU, they are read ahead by a thread.

    Args:
        scan: the files, and what their rows are asked.
        groups: what to read.
        columns: what to give, of those that the list has.
        batch_rows: rows of a batch before rows are left out.

    Raises:
        DatasetChangedError: a file is not the one that was listed.
    """
    batches = _read(scan, groups, columns, batch_rows)
    # Cores that are busy anyway gain nothing by it.
    is_ahead = scan.files.is_remote or devices.held()
    with closing(read_ahead(batches, _AHEAD_BYTES) if is_ahead else batches) as found:
        yield from (batch for batch in found if batch.num_rows)


def _read(
    scan: Scan, groups: Sequence[RowGroup], columns: Sequence[str], batch_rows: int
) -> Generator[pa.RecordBatch]:
    """Batches that the condition leaves empty come too: whoever wants no more can stop there."""
    import pyarrow as pa

    files, condition = scan.files, scan.condition
    schema = pa.schema([pa.field(name, files.schema.field(name).type) for name in columns])
    needed = list(dict.fromkeys([*columns, *sorted(condition.columns if condition else ())]))
    by_file: dict[int, list[RowGroup]] = {}
    for group in groups:
        by_file.setdefault(group.file, []).append(group)
    for number, its_groups in by_file.items():
        buffer_bytes = _buffer_bytes(files, its_groups, len(needed))
        indices = [group.index for group in its_groups]
        file = files.open(files.files[number], buffer_bytes)
        try:
            # What is fetched whole is in memory until the next is: one row group.
            for some in [indices] if buffer_bytes else [[index] for index in indices]:
                # One thread: Spark runs a task on every core already.
                for batch in file.iter_batches(
                    batch_rows, row_groups=some, columns=needed, use_threads=False
                ):
                    kept = batch if condition is None else batch.filter(condition.mask(batch))
                    arrays = [kept.column(name) for name in columns]
                    yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        finally:
            file.close()


def _buffer_bytes(files: DatasetFiles, groups: Sequence[RowGroup], columns: int) -> int | None:
    """In which pieces columns are read; None: whole."""
    if not files.is_remote:
        return _BUFFER_BYTES
    if max(group.size for group in groups) <= _FETCHED_BYTES:
        return None
    return max(_LEAST_FETCHED_BYTES, _FETCHED_BYTES // columns)
