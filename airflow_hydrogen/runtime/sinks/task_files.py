"""Parquet files that tasks write themselves: named in their accounts, accepted by the driver, or removed.

Every try of a task writes a file of its own, in a hidden folder beside what is replaced. The driver takes
those files that the accounts of accepted tries name, and no others: of a task that Spark ran twice, one.
"""

from __future__ import annotations

import contextlib
import json
import math
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import UnwritableUriError
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.storage import filesystems

# What a task holds before it writes a row group. Rows may come one by one, and a row group should be worth
# its footer; many columns, or long ones, should not fill the memory.
_ROW_GROUP_BYTES = 64 * 1024 * 1024

RANGES = "airflow-hydrogen.ranges"
"""In a footer, in JSON: column of floating numbers -> the least, the greatest, and how many are null.

A bound is null where there is none that JSON has: NaN is greater than all numbers. Parquet's own bounds leave
NaN out, and Spark then skips rows that it is in. So files have none of these columns.
"""


@dataclass(frozen=True)
class TaskFiles:
    """Where tasks write rows; a value, so that it travels to them.

    Attributes:
        purpose: the argument that named the place, for messages.
        folder: of this job alone.
        schema: of the files.
        compression: Arrow's name of the codec.
        metadata: what else stands in the files' footers.
        copied: rows that wait are copied: they are small parts of larger batches, which would wait with them.
        constants: columns of the schema that have one value in all rows, which come without them.
        ranges: footers have `RANGES`.
        divided: rows are of many partitions, which have files of their own: see `DividedFile`.
    """

    purpose: str
    folder: str
    schema: pa.Schema
    compression: str = "snappy"
    metadata: Mapping[str, str] = field(default_factory=dict)
    copied: bool = False
    constants: Mapping[str, pa.Scalar] = field(default_factory=dict)
    ranges: bool = False
    divided: bool = False

    def accept(self, names: Iterable[str], staged: str) -> int:
        """Bring the files of accepted tries to where they are staged.

        Args:
            names: the files.
            staged: the folder; it gets a file without rows where there are none, so that whoever reads the
                table finds its columns.

        Returns:
            Rows in those files that are there.
        """
        if not self.bring(names, partial(uris.join, staged)):
            filesystems.write_bytes(uris.join(staged, new_name()), self.without_rows())
        return count_rows(staged)

    def bring(self, names: Iterable[str], place: Callable[[str], str]) -> int:
        """Bring the files of accepted tries to where they are staged.

        Args:
            names: the files.
            place: gives the URI that a file gets.

        Returns:
            How many of them are there.
        """
        there = {name for name, _size in filesystems.list_files(self.folder)}
        accepted = [name for name in names if name in there]
        filesystems.transfer_all({uris.join(self.folder, name): place(name) for name in accepted})
        return len(accepted)

    def without_rows(self) -> bytes:
        """A file that has the columns and no rows."""
        nothing = pa.BufferOutputStream()
        with self.writer(nothing) as writer:
            writer.write_table(self.schema.empty_table())
        content: bytes = nothing.getvalue().to_pybytes()
        return content

    def writer(self, stream: Any) -> pq.ParquetWriter:
        """A writer of one file."""
        flat = [item.name for item in self.schema if not _is_float(item.type) and not item.type.num_fields]
        writer = pq.ParquetWriter(
            stream,
            self.schema,
            compression=self.compression,
            use_dictionary=flat,  # floating numbers hardly ever repeat, and trying takes time
            write_statistics=[*flat, *self.constants],  # see `RANGES`
            store_schema=False,  # readers find the types that Spark's own files have
        )
        if self.metadata:
            writer.add_key_value_metadata(dict(self.metadata))
        return writer


@dataclass(frozen=True)
class TaskTarget:
    """What tasks' files become the rows of.

    Attributes:
        staged: the hidden folder to which the files of accepted tries are brought.
        place: what the folder of the tasks lies beside.
        schema: the columns that the files must have; None: those of the rows, as Spark would write them.
        constants: as those of `TaskFiles`.
        metadata: likewise, where there is a schema.
        ranges: likewise.
        divided: likewise.
    """

    staged: str
    place: str
    schema: pa.Schema | None = None
    constants: Mapping[str, pa.Scalar] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = False
    divided: bool = False

    def fitted(self, files: TaskFiles) -> TaskFiles:
        """Files of the rows as they are, made to be those that are wanted."""
        if self.schema is None:
            return replace(files, divided=self.divided)
        return replace(
            files,
            schema=self.schema,
            constants=self.constants,
            metadata=self.metadata,
            ranges=self.ranges,
        )


class TaskFile:
    """The file of one try of a task; there is none where no row comes.

    Args:
        place: where it goes.
        prefix: of the file's name.
    """

    def __init__(self, place: TaskFiles, prefix: str = "") -> None:
        self._place = place
        self._prefix = prefix
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0
        self._stream: Any = None
        self._writer: pq.ParquetWriter | None = None
        self._ranges: dict[str, _Range] = {}
        self.name: str | None = None
        self.rows = 0

    def __enter__(self) -> TaskFile:
        return self

    @property
    def names(self) -> list[str]:
        """The file, where there is one."""
        return [self.name] if self.name else []

    @property
    def waiting_bytes(self) -> int:
        """Of rows that are not written yet."""
        return self._bytes

    @property
    def is_open(self) -> bool:
        """Whether rows have been written."""
        return self._writer is not None

    def add(self, rows: pa.RecordBatch) -> None:
        """Write some rows, sooner or later.

        Args:
            rows: with the columns of the schema, and others.

        Raises:
            UnwritableUriError: this host cannot write there.
        """
        schema = self._place.schema
        constants = self._place.constants
        arrays = [
            pa.repeat(constants[item.name], rows.num_rows)
            if item.name in constants
            else _cast(rows.column(item.name), item.type)
            for item in schema
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        if self._place.copied:
            batch = pa.ipc.read_record_batch(batch.serialize(), schema)
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        self.rows += batch.num_rows
        if self._place.ranges:
            for item in schema:
                if _is_float(item.type):
                    self._ranges.setdefault(item.name, _Range()).add(batch.column(item.name))
        if self._bytes >= _ROW_GROUP_BYTES:
            self.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = error is not None
        try:
            if not failed:
                self.flush()
        except BaseException:
            failed = True
            raise
        finally:
            self._close(failed)

    def _close(self, failed: bool) -> None:
        """Close what is open. What has failed before is what has to be told, and not what that leads to."""
        try:
            with contextlib.suppress(Exception) if failed else nullcontext():
                if self._writer is not None:
                    if self._place.ranges:
                        found = {name: found.told() for name, found in self._ranges.items()}
                        self._writer.add_key_value_metadata({RANGES: json.dumps(found, allow_nan=False)})
                    self._writer.close()
        finally:
            if self._stream is not None:
                self._stream.close()

    def flush(self) -> None:
        """Write the rows that wait.

        Raises:
            UnwritableUriError: this host cannot write there.
        """
        if not self.rows:
            return
        if self._writer is None:
            self.name = self._prefix + new_name(_partition())
            uri = uris.join(self._place.folder, self.name)
            try:
                self._stream = filesystems.open_output(uri)
            except FileNotFoundError as error:
                reason = (
                    f"this host lacks the folder, which the driver made to be seen by every host: {error}"
                )
                raise UnwritableUriError(self._place.purpose, uri, reason) from error
            except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among these
                raise UnwritableUriError(self._place.purpose, uri, str(error) or repr(error)) from error
            self._writer = self._place.writer(self._stream)
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting))
        self._waiting, self._bytes = [], 0


def _cast(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    return column if column.type == wanted else column.cast(wanted)


def _is_float(type_: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type_))


class _Range:
    """What floating numbers lie between."""

    def __init__(self) -> None:
        self._least, self._greatest = math.inf, -math.inf
        self._nulls, self._has_nan = 0, False

    def add(self, column: pa.Array) -> None:
        is_nan = pc.is_nan(column)
        found = pc.min_max(column.filter(pc.invert(is_nan))).as_py()
        if found["min"] is not None:
            self._least = min(self._least, found["min"])
            self._greatest = max(self._greatest, found["max"])
        self._nulls += column.null_count
        self._has_nan = self._has_nan or bool(pc.any(is_nan).as_py())

    def told(self) -> tuple[float | None, float | None, int]:
        greatest = self._greatest if math.isfinite(self._greatest) and not self._has_nan else None
        return self._least if math.isfinite(self._least) else None, greatest, self._nulls


def _partition() -> int:
    """The number of the task among its stage's: files are read in the order of their names."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return 0 if context is None else context.partitionId()


def new_name(partition: int = 0) -> str:
    """The name of a new file.

    Args:
        partition: the number of the task among its stage's.
    """
    return f"part-{partition:05d}-{uuid.uuid4().hex}.parquet"
