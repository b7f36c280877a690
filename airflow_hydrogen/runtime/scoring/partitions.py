"""Which partition of the sink a row belongs to, by the values of the source's columns."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_hydrogen.contract.errors import (
    ColumnTypeError,
    InvalidJobError,
    PartitionValueError,
    UndeclaredPartitionError,
)
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.runtime.data.spark_types import arrow_type
from airflow_hydrogen.runtime.sinks.divided_files import PARTITION

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

_TOLD = 5


@dataclass(frozen=True)
class Partitions:
    """The partitions that a job replaces; a value, so that it travels to its tasks.

    Attributes:
        columns: of the source.
        values: of each partition, as text, in the order of the columns.
    """

    columns: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, sink: Sink, schema: StructType) -> Partitions | None:
        """Those of a sink, held against the types that their columns have in the source.

        Args:
            sink: what is written; the source has its columns.
            schema: of the source, which may spell them with other capital letters.

        Returns:
            None where the sink has one partition, or none.

        Raises:
            ColumnTypeError: a value that is none of its column's type.
            InvalidJobError: values that are the same in their column's type.
        """
        if not sink.partition_by:
            return None
        spelled = {name.lower(): name for name in schema.names}
        columns = tuple(spelled[name.lower()] for name in sink.partition_by)
        values = tuple(tuple(partition.values()) for partition in sink.partitions)
        for place, column in enumerate(columns):
            type_ = schema[column].dataType
            _require_distinct(
                column, type_.simpleString(), arrow_type(type_), {found[place]: None for found in values}
            )
        return cls(columns, values)

    def numbered(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows with the number of their partition, as the column `PARTITION`.

        Raises:
            UndeclaredPartitionError: rows of another partition, or of none because a value is null.
        """
        columns = [batch.column(name) for name in self.columns]
        codes = np.zeros(batch.num_rows, np.int64)
        unknown = np.zeros(batch.num_rows, bool)
        for place, column in enumerate(columns):
            texts = self._texts(place)
            code = pc.index_in(column, _as_values(texts, column.type)).to_numpy(zero_copy_only=False)
            unknown |= np.isnan(code) if code.dtype.kind == "f" else False
            codes = codes * len(texts) + np.where(unknown, 0, code).astype(np.int64)
        found, inverse = np.unique(codes, return_inverse=True)
        numbers = np.array([self._numbers.get(int(code), -1) for code in found], np.int32)[inverse]
        if (wrong := unknown | (numbers < 0)).any():
            raise UndeclaredPartitionError(self.columns, self._told(columns, wrong), self._declared())
        return batch.append_column(PARTITION, pa.array(numbers, pa.int32()))

    def _texts(self, place: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found[place] for found in self.values))

    @functools.cached_property
    def _numbers(self) -> Mapping[int, int]:
        """The places of a partition's values among those of their columns, as one number -> its own."""
        places = [{text: code for code, text in enumerate(self._texts(n))} for n in range(len(self.columns))]
        numbers = {}
        for number, texts in enumerate(self.values):
            code = 0
            for place, text in enumerate(texts):
                code = code * len(places[place]) + places[place][text]
            numbers[code] = number
        return numbers

    def _told(self, columns: Sequence[pa.Array], wrong: np.ndarray) -> list[str]:
        found: dict[str, None] = {}
        for row in np.flatnonzero(wrong):
            values = [column[int(row)] for column in columns]
            texts = ["null" if value.as_py() is None else repr(str(value)) for value in values]
            told = [f"{name}={text}" for name, text in zip(self.columns, texts, strict=True)]
            found["/".join(told)] = None
            if len(found) == _TOLD:
                break
        return list(found)

    def _declared(self) -> str:
        told = ["/".join(values) for values in self.values]
        return (
            ", ".join(map(repr, told))
            if len(told) <= _TOLD
            else f"{len(told):,}: {told[0]!r} to {told[-1]!r}"
        )


def counts(rows: pa.RecordBatch) -> dict[int, int]:
    """How many rows each partition has."""
    found, rows_each = np.unique(rows.column(PARTITION).to_numpy(zero_copy_only=False), return_counts=True)
    return dict(zip(map(int, found), map(int, rows_each), strict=True))


def require_constant(name: str, column: pa.Array, value: str) -> None:
    """Raise where a column holds anything but the value of the one partition that is written.

    They are compared as the column's own type: `hour=05` is the 5 of a column of integers.

    Raises:
        PartitionValueError: with what it holds.
    """
    found = pc.unique(column)
    if len(found) > 1 or (len(found) == 1 and found[0] != _partition_scalar(value, column.type)):
        raise PartitionValueError(name, value, [str(item) for item in found][:_TOLD])


def _require_distinct(column: str, spelled: str, type_: pa.DataType, texts: Mapping[str, None]) -> None:
    known: dict[pa.Scalar, str] = {}
    for text in texts:
        value = _partition_scalar(text, type_)
        if value is None:
            raise ColumnTypeError(column, spelled, repr(text), "change the sink's partitions")
        if (same := known.setdefault(value, text)) != text:
            raise InvalidJobError(
                f"sink partitions {same!r} and {text!r} are one value of column {column!r}, which is "
                f"{spelled}"
            )


@functools.lru_cache(maxsize=8)
def _as_values(texts: tuple[str, ...], type_: pa.DataType) -> pa.Array:
    return pa.array([_partition_scalar(text, type_) for text in texts], type_)


def _partition_scalar(value: str, type_: pa.DataType) -> pa.Scalar | None:
    """A partition's text as a value of a column's type; None where it cannot be one."""
    ways = [type_]
    if pa.types.is_timestamp(type_):  # with an offset or without one, which then is UTC
        ways += [pa.timestamp(type_.unit, "UTC"), pa.timestamp(type_.unit)]
    for way in ways:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return pa.scalar(value, pa.string()).cast(way).cast(type_)
    return None
