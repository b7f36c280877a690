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
from airflow_hydrogen.runtime.data.dataset import has_partition_folders, parquet_files

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql.types import StructType


@dataclass(frozen=True)
class RowGroup:
    """One row group of one local file."""

    path: str
    index: int
    rows: int


def readable_row_groups(source: Source, schema: StructType, columns: Sequence[str]) -> list[RowGroup] | None:
    """The row groups that hold a source's rows, where workers can read them as Spark would.

    Args:
        source: the rows.
        schema: what Spark makes of it.
        columns: those that are needed.

    Returns:
        The row groups, or None where Spark has to read: not plain local Parquet, partition folders, or a
        file whose column types are not those that Spark hands over.
    """
    import pyarrow.parquet as pq
    from pyspark.sql.pandas.types import to_arrow_type

    if source.kind != "parquet" or source.where is not None or source.uri is None:
        return None
    if uris.local_path(source.uri) is None or has_partition_folders(source.uri):
        return None
    wanted = {name: to_arrow_type(schema[name].dataType) for name in columns}
    found = []
    for path in parquet_files(source.uri):
        with pq.ParquetFile(path) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            if any(types.get(name) != type_ for name, type_ in wanted.items()):
                return None
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        found += [
            RowGroup(path, index, group.num_rows) for index, group in enumerate(groups) if group.num_rows
        ]
    return found


def deal(groups: Sequence[RowGroup], tasks: int) -> list[list[RowGroup]]:
    """Deal row groups to tasks so that all have about the same number of rows. Pure.

    The largest first, each to the task that has the fewest rows so far.

    Returns:
        One list a task, none of them empty, each in the order of the files; at most `tasks` of them.
    """
    hands: list[list[RowGroup]] = [[] for _ in range(min(tasks, len(groups)))]
    heap = [(0, number) for number in range(len(hands))]
    for group in sorted(groups, key=lambda group: (-group.rows, group.path, group.index)):
        rows, number = heapq.heappop(heap)
        hands[number].append(group)
        heapq.heappush(heap, (rows + group.rows, number))
    return [sorted(hand, key=lambda group: (group.path, group.index)) for hand in hands]


def read(groups: Sequence[RowGroup], columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of some row groups, in batches."""
    import pyarrow.parquet as pq

    by_file: dict[str, list[int]] = {}
    for group in groups:
        by_file.setdefault(group.path, []).append(group.index)
    for path, indices in by_file.items():
        # One thread: Spark runs a task on every core already.
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(
                batch_rows, row_groups=indices, columns=list(columns), use_threads=False
            )
