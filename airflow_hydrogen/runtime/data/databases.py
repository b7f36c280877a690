"""Tables of databases, over JDBC: read in parts, side by side."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.errors import InvalidJobError, SourceError
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.sources import Source

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Access = Mapping[str, Mapping[str, str]]
"""Connection -> options of Spark's reader that open it: url, driver, user, password."""


@dataclass(frozen=True)
class Extent:
    """How much there is, and between which values.

    Attributes:
        rows: rows that the database counts.
        lowest, highest: of the partition column; None where there is none, or nothing but nulls in it.
    """

    rows: int
    lowest: Any = None
    highest: Any = None


def read(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    """Open a table or a query of a database.

    Raises:
        InvalidJobError: nobody has said how the connection is opened.
    """
    reader = spark.read.format("jdbc").options(**_options(source, access))
    if source.partition_column is None:
        return reader.option("dbtable", source.relation).load()
    [lowest, highest] = _ask(spark, source, access, _ends(spark, source, access))
    if lowest is None:
        return reader.option("dbtable", source.relation).load()
    return (
        reader.option("dbtable", source.relation)
        .option("partitionColumn", source.partition_column)
        .option("lowerBound", _bound(source, lowest, math.floor))
        .option("upperBound", _bound(source, highest, math.ceil))
        .option("numPartitions", str(source.partitions))
        .load()
    )


def extent(spark: SparkSession, source: Source, access: Access) -> Extent:
    """Ask the database how many rows there are, and for the ends of the partition column."""
    ends = [] if source.partition_column is None else _ends(spark, source, access)
    rows, *found = _ask(spark, source, access, ["count(*)", *ends])
    return Extent(int(rows), *found)


def _ends(spark: SparkSession, source: Source, access: Access) -> list[str]:
    dialects = spark._jvm.org.apache.spark.sql.jdbc.JdbcDialects  # type: ignore[union-attr]
    column = dialects.get(_options(source, access)["url"]).quoteIdentifier(source.partition_column)
    return [f"min({column})", f"max({column})"]


def _ask(spark: SparkSession, source: Source, access: Access, values: Sequence[str]) -> list[Any]:
    """One row of aggregates over all rows of a source, from the database itself."""
    named = ", ".join(f"{value} as value_{number}" for number, value in enumerate(values))
    query = f"select {named} from {source.relation}"
    reader = spark.read.format("jdbc").options(**_options(source, access))
    [row] = reader.option("query", query).load().collect()
    return list(row)


def opening(place: Source | Sink, access: Access) -> dict[str, str]:
    """The options of Spark's reader and writer that open the connection of a source or sink.

    Raises:
        InvalidJobError: nobody has said how it is opened.
    """
    assert place.conn_id is not None
    if place.conn_id not in access:
        kind = "source" if isinstance(place, Source) else "sink"
        raise InvalidJobError(
            f"{kind} {place} needs access[{place.conn_id!r}]: the options of Spark's JDBC reader that open "
            "it, such as url, driver, user and password; the operators take them from Airflow's connection"
        )
    return dict(access[place.conn_id])


def _options(source: Source, access: Access) -> dict[str, str]:
    return {**opening(source, access), **source.options}


def _bound(source: Source, value: Any, rounded: Callable[[Any], int]) -> str:
    """An end of the partition column as Spark's reader takes it.

    Raises:
        SourceError: it is no number, date or time.
    """
    if isinstance(value, (datetime.date, datetime.datetime)):
        return str(value)
    try:
        return str(rounded(value))
    except (TypeError, ValueError, OverflowError):
        raise SourceError(
            str(source),
            f"partition_column {source.partition_column!r} holds {value!r}; expected numbers, dates or times",
        ) from None
