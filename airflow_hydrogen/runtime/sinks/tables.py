"""What sinks that are tables have in common: columns that fit, values of a partition, what made the rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import ColumnTypeError, TableMismatchError
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.contract.streams import Batch
from airflow_hydrogen.runtime.data.sources import quoted

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructField, StructType

LABEL = "airflow_hydrogen"
"""The key of what made a prediction, in the metadata of its column."""

Types = Mapping[str, "DataType"]
"""Column of a partition -> its type in the source, where the source has it."""

POSITION = ("hydrogen_partition", "hydrogen_offset")
"""Where the message of a row stood: of the rows of a key in a stream's batch, the last one by it is merged.

These columns are staged and not written.
"""

# Spark reads texts with a length as strings, and keeps here what they are.
_DECLARED = "__CHAR_VARCHAR_TYPE_STRING"
_SIZED = re.compile(r"(char|varchar)\((\d+)\)")
_WIDER = ("tinyint", "smallint", "int", "bigint")


def label_of(schema: StructType) -> dict[str, Any]:
    """What made the rows, by the metadata of their columns; empty where none says it."""
    return next((field.metadata[LABEL] for field in schema if LABEL in field.metadata), {})


def require_distinct(names: Iterable[str], where: str) -> None:
    """Raise TableMismatchError where columns differ in capitals alone: a table would not tell them apart."""
    spelled: dict[str, list[str]] = {}
    for name in names:
        spelled.setdefault(name.lower(), []).append(name)
    if same := [found for found in spelled.values() if len(found) > 1]:
        problems = [f"columns {' and '.join(map(repr, found))} would be one column" for found in same]
        raise TableMismatchError(where, problems)


def fitted(frame: DataFrame, fields: Collection[StructField], where: str, keep: Collection[str]) -> DataFrame:
    """Rows with the columns of a table: its names, its order, its types.

    Args:
        frame: the rows.
        fields: the table's columns, without those of the partition.
        where: the table, for messages.
        keep: columns that are none of the table's, and stay.

    Raises:
        TableMismatchError: columns that only one of the two has, or whose values would change in the
            table's type. Texts that are too long fail where they are computed, by ColumnTypeError.
    """
    from pyspark.sql import functions

    found = {field.name.lower(): field for field in frame.schema if field.name not in keep}
    wanted = {field.name.lower(): field for field in fields}
    problems = [f"it has no column {field.name!r}" for name, field in found.items() if name not in wanted]
    columns = []
    for name, field in wanted.items():
        if name not in found:
            problems.append(f"its column {field.name!r} is not among the scored ones")
            continue
        column = functions.col(quoted(found[name].name))
        given, expected = found[name].dataType.simpleString(), field.dataType.simpleString()
        if widens(given, expected):
            column = column.cast(field.dataType)
        elif given != expected:
            problems.append(f"its column {field.name!r} is {expected}, and what is scored is {given}")
        elif declared := field.metadata.get(_DECLARED):
            if sized := _SIZED.fullmatch(declared):
                column = _within(column, sized, field.name, where)
            else:
                problems.append(f"its column {field.name!r} is {declared}, whose texts have a length")
        columns.append(column.alias(field.name, metadata=found[name].metadata))
    if problems:
        raise TableMismatchError(where, problems)
    return frame.select(*columns, *(functions.col(quoted(name)) for name in keep))


def beside(frame: DataFrame, notes: str | None, *, of_stream: bool) -> list[str]:
    """Columns that are staged, and are none of the table's."""
    position = [name for name in POSITION if of_stream and name in frame.columns]
    return [*position, *([notes] if notes else [])]


def partition_values(spark: SparkSession, partition: Mapping[str, str], types: Types) -> dict[str, str]:
    """A partition's values as their columns' types spell them: `05` of an int column is `5`.

    Raises:
        ColumnTypeError: a value that is none of its column's type.
    """
    from pyspark.sql import functions

    if not partition:
        return {}
    values = [
        functions.lit(value).try_cast(types[column]).cast("string") for column, value in partition.items()
    ]
    [row] = spark.sql("select 1").select(*values).collect()
    for (column, value), spelled in zip(partition.items(), row, strict=True):
        if spelled is None:
            raise ColumnTypeError(
                column, types[column].simpleString(), repr(value), "change the sink's partition"
            )
    return dict(zip(partition, row, strict=True))


def place(location: str, sink: Sink, run: Run | None, batch: Batch | None = None) -> str:
    """What tries put their files beside, and are known by: one for each partition of a table.

    Of rows that are merged each run has its own, for they take the place of no others. So has each stream.

    Args:
        location: the table's folder, beside which it lies.
        sink: what is written.
        run: the Airflow run, or None.
        batch: of a stream, or None.
    """
    writer: object = run.work if run and sink.mode == "merge" else None
    if batch is not None:
        writer = batch.stream
    identity = repr((sorted(sink.partition.items()), writer))
    return f"{uris.canonical(location)}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def ddl(spark: SparkSession, schema: StructType) -> str:
    """Columns as a new table has them: their types, and nothing else."""
    from pyspark.sql.types import StructField, StructType

    bare = StructType([StructField(field.name, field.dataType) for field in schema])
    java = spark._jvm.org.apache.spark.sql.types.DataType  # type: ignore[union-attr]
    return str(java.fromJson(bare.json()).asNullable().toDDL())


def text(value: str) -> str:
    """A string as SQL has it."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _within(column: Column, sized: re.Match[str], name: str, where: str) -> Column:
    """Text as a column with a length holds it. As for Spark's INSERT, blanks at the end may be too many."""
    from pyspark.sql import functions

    kind, length = sized[1], int(sized[2])
    error = f"{ColumnTypeError.__module__}.{ColumnTypeError.__name__}"
    said = functions.concat(
        functions.lit(f"{error}: column {name!r}: expected {sized[0]} in {where}, found a text of "),
        functions.length(column).cast("string"),
        functions.lit(" characters; widen the column, or shorten the text in the source's SQL"),
    )
    longer = functions.length(functions.rtrim(column)) > length
    held = functions.rpad(column, length, " ") if kind == "char" else functions.substring(column, 1, length)
    return functions.when(longer, functions.raise_error(said)).otherwise(held)


def widens(found: str, expected: str) -> bool:
    """Whether every value of a type has its equal in another one."""
    if found in _WIDER and expected in _WIDER:
        return _WIDER.index(found) < _WIDER.index(expected)
    return (found, expected) == ("float", "double")
