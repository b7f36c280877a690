"""Parquet that Python workers read themselves: pages -> Arrow, without the detour over the JVM's rows.

Spark turns Parquet into rows and rows into Arrow before a Python worker sees them, which costs more than a
small model does. Plain files on a filesystem that every host sees are read by the workers with pyarrow
instead, so that Spark schedules tasks and writes the result. Everything else (filters, `prepare`, partition
folders, other formats, object stores, whose credentials may be Spark's alone) goes through Spark.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.jobs import Source
from airflow_hydrogen.runtime.data.files import DatasetFiles, list_dataset, read_footers
from airflow_hydrogen.runtime.data.sources import is_plain_parquet

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql.types import StructType

# What a task reads, uncompressed: enough to be worth its start, little enough to be worth another try.
_TASK_BYTES = 128 * 1024 * 1024
_MIN_TASK_BYTES = 8 * 1024 * 1024
# Where that makes too few for the slots that are there now: several each, so that all end together.
_TASKS_PER_SLOT = 4
_BUFFER_BYTES = 1024 * 1024


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


def readable_files(source: Source, schema: StructType, columns: Sequence[str]) -> DatasetFiles | None:
    """The list of files that hold a source's rows, where workers can read them as Spark would.

    Args:
        source: the rows.
        schema: what Spark makes of it.
        columns: those that are needed.

    Returns:
        The list, made once, or None where Spark has to read: not plain local Parquet, partition folders, or
        a file whose column types are not those that Spark hands over.
    """
    from pyspark.sql.pandas.types import to_arrow_type

    if not is_plain_parquet(source) or source.uri is None or uris.local_path(source.uri) is None:
        return None
    listing = list_dataset(source.uri)
    if listing.partitioned:
        return None
    files = read_footers(listing, columns)
    wanted = {name: to_arrow_type(schema[name].dataType) for name in columns}
    for found in files.schemas:
        types = {field.name: field.type for field in found}
        if any(types.get(name) != type_ for name, type_ in wanted.items()):
            return None
    return files


def row_groups(files: DatasetFiles) -> list[RowGroup]:
    """The row groups of a list that hold rows. Pure."""
    return [
        RowGroup(number, index, size)
        for number, file in enumerate(files.files)
        for index, (rows, size) in enumerate(zip(file.rows, file.sizes, strict=True))
        if rows
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


def read(
    files: DatasetFiles, groups: Sequence[RowGroup], columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """The rows of some row groups, in batches of one schema: files may differ in whether they allow nulls.

    Raises:
        DatasetChangedError: a file is not the one that was listed.
    """
    import pyarrow as pa

    first = files.schemas[0]
    schema = pa.schema([pa.field(name, first.field(name).type) for name in columns])
    by_file: dict[int, list[int]] = {}
    for group in groups:
        by_file.setdefault(group.file, []).append(group.index)
    for number, indices in by_file.items():
        file = files.open(files.files[number], _BUFFER_BYTES)
        try:
            # One thread: Spark runs a task on every core already.
            for batch in file.iter_batches(
                batch_rows, row_groups=indices, columns=list(columns), use_threads=False
            ):
                yield pa.RecordBatch.from_arrays([batch.column(name) for name in columns], schema=schema)
        finally:
            file.close(force=True)
