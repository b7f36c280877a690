"""A Delta table as a sink sees it: its columns, its log, and Spark's own way to write it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    InvalidJobError,
    MergeKeysError,
    MissingColumnError,
    TableMismatchError,
)
from airflow_hydrogen.contract.jobs import Sink
from airflow_hydrogen.runtime.data.sources import quoted
from airflow_hydrogen.runtime.sinks import delta_rules, tables
from airflow_hydrogen.runtime.sinks.delta_files import Transaction, activate
from airflow_hydrogen.runtime.sinks.tables import Types
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors
from airflow_hydrogen.runtime.storage import filesystems, partition_files

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

_CATALOG = "spark.sql.catalog.spark_catalog"
_NO_COLUMN = re.compile(r"[ ,;{}()\n\t=]")
_COMMIT = re.compile(r"\d{20}\.json")


@dataclasses.dataclass(frozen=True)
class Commit:
    """A version of a table, as its log has it.

    Attributes:
        version: its number.
        rows: how many it has put in; None where it says that of others too: a merge, a feed of changes.
    """

    version: int
    rows: int | None


class Table:
    """A Delta table, which need not exist.

    Args:
        spark: the session.
        sink: the table, and the partition of it that is written.
        types: for a partition's columns where the table does not exist.

    Raises:
        InvalidJobError: the session has no Delta, or the folder holds something else.
    """

    def __init__(self, spark: SparkSession, sink: Sink, types: Types) -> None:
        self.spark, self.sink = spark, sink
        self._types = types
        self._uri = uris.spark_uri(str(sink.uri))
        self._name = f"delta.{quoted(self._uri)}"
        if "delta" not in str(spark.conf.get(_CATALOG, "")).lower():
            raise InvalidJobError(
                f"sink {sink} needs a Spark with Delta: its package, {_CATALOG}="
                "org.apache.spark.sql.delta.catalog.DeltaCatalog and spark.sql.extensions="
                "io.delta.sql.DeltaSparkSessionExtension; the operators add them"
            )
        files = [] if self._schema() is not None else filesystems.list_files(str(sink.uri))
        if any(not partition_files.is_hidden(name) for name, _size in files):
            raise InvalidJobError(
                f"sink {sink}: its folder holds files and no Delta table; name another folder, or remove them"
            )

    def _schema(self) -> StructType | None:
        """Its columns as they are now; None where there is no table."""
        log = filesystems.list_files(uris.join(str(self.sink.uri), "_delta_log"))
        if not any(name.endswith((".json", ".checkpoint.parquet")) for name, _size in log):
            return None
        try:
            return self.spark.read.format("delta").load(self._uri).schema
        except spark_errors() as error:
            raise InvalidJobError(f"sink {self.sink} cannot be opened: {root_cause(error)}") from error

    def _partition_types(self, schema: StructType | None) -> dict[str, DataType]:
        from pyspark.sql.types import StringType

        if schema is None:
            return {column: self._types.get(column, StringType()) for column in self.sink.partition}
        fields = {field.name.lower(): field for field in schema}
        if missing := [column for column in self.sink.partition if column.lower() not in fields]:
            problems = [f"it has no column {column!r}, by which it is to be replaced" for column in missing]
            raise TableMismatchError(str(self.sink), problems)
        return {column: fields[column.lower()].dataType for column in self.sink.partition}

    def refused_files(self) -> str | None:
        """Why its files are Spark's to write; None where tasks may do it."""
        if self.sink.mode == "merge":
            return "rows are merged by key"
        if refused := delta_rules.refused_by_session(self.spark):
            return refused
        if self._schema() is not None:
            return self.begin(self.spark).refused(self.sink.partition, None)
        types = {column: type_.jsonValue() for column, type_ in self._partition_types(None).items()}
        return delta_rules.refused_by_values(self.sink.partition, types)

    def begin(self, session: SparkSession) -> Transaction:
        """Begin a transaction at what is there now."""
        return Transaction(session, self._uri)

    def partition(self) -> tuple[dict[str, str], str]:
        """The partition's values as the table's types spell them, and the condition for its rows alone."""
        types = self._partition_types(self._schema())
        values = tables.partition_values(self.spark, self.sink.partition, types)
        return values, " and ".join(self._equations("", types))

    def fitted(self, frame: DataFrame, beside: Sequence[str]) -> DataFrame:
        """The rows with the table's names and types; see `tables.fitted`."""
        written = [name for name in frame.columns if name not in beside]
        tables.require_distinct([*written, *self.sink.partition], str(self.sink))
        schema = self._schema()
        tables.partition_values(self.spark, self.sink.partition, self._partition_types(schema))
        own = {column.lower() for column in self.sink.partition}
        if schema is None:
            names = [name for name in [*frame.columns, *self.sink.partition] if _NO_COLUMN.search(name)]
            if names:
                raise InvalidJobError(
                    f"column {', '.join(map(repr, names))}: columns of a Delta table have none of "
                    "' ,;{}()=' in their names; rename them in the source's SQL, or with output_columns"
                )
        else:
            fields = [field for field in schema if field.name.lower() not in own]
            frame = tables.fitted(frame, fields, str(self.sink), beside)
        there = [name for name in frame.columns if name not in beside]
        if missing := [key for key in self.sink.keys if key not in [*there, *self.sink.partition]]:
            raise MissingColumnError("key", missing, there)
        return frame

    def told_apart(self, rows: DataFrame) -> DataFrame:
        """Staged rows, of which no two that are to be merged have the same keys.

        Of rows that came by messages the last one of a key stays.

        Raises:
            MergeKeysError: they cannot be told apart by their keys, and, of messages, their positions.
        """
        from pyspark.sql import Window, functions

        if self.sink.mode != "merge":
            return rows
        keys = [functions.col(quoted(key)) for key in self.sink.keys if key not in self.sink.partition]
        position = [functions.col(name) for name in tables.POSITION if name in rows.columns]
        has_null = functions.lit(False)
        for key in keys:
            has_null |= key.isNull()
        counts = rows.groupBy(*keys, *position).agg(functions.count(functions.lit(1)).alias("hydrogen_rows"))
        many = functions.col("hydrogen_rows")
        [found] = counts.agg(
            functions.sum(functions.when(has_null, many)).alias("nulls"),
            functions.count_if(~has_null & (many > 1)).alias("repeated"),
        ).collect()
        if found["nulls"] or found["repeated"]:
            raise MergeKeysError(str(self.sink), self.sink.keys, found["nulls"] or 0, found["repeated"])
        if not position:
            return rows
        newest_first = Window.partitionBy(*keys).orderBy(*(column.desc() for column in position))
        ranked = rows.withColumn("hydrogen_rank", functions.row_number().over(newest_first))
        return ranked.where("hydrogen_rank = 1").drop("hydrogen_rank", *tables.POSITION)

    def make(self, rows: StructType) -> None:
        """Make the table where there is none, without rows: what dies later leaves no files without a log."""
        from pyspark.sql.types import StructField, StructType

        if self._schema() is not None:
            return
        types = self._partition_types(None)
        partition = [StructField(column, type_) for column, type_ in types.items()]
        columns = tables.ddl(self.spark, StructType([*rows, *partition]))
        by = f"partitioned by ({', '.join(map(quoted, types))})" if types else ""
        try:
            self.spark.sql(f"create table if not exists {self._name} ({columns}) using delta {by}")
        except spark_errors():
            if self._schema() is None:  # and not made by another run at the same moment
                raise

    def write(self, session: SparkSession, staged: DataFrame) -> None:
        """Put the staged rows in, by one commit."""
        from pyspark.sql import functions

        types = self._partition_types(self._schema())
        # The table would keep what made its first rows, and say it of all that come later.
        columns = [functions.col(quoted(name)).alias(name, metadata={}) for name in staged.columns]
        partition = [
            functions.lit(value).cast(types[column]).alias(column)
            for column, value in self.sink.partition.items()
        ]
        rows = staged.select(*columns, *partition)
        if self.sink.mode == "merge":
            self._merge(session, rows, types)
            return
        if self.sink.mode == "append":
            rows.write.format("delta").mode("append").save(self._uri)
            return
        writer = rows.write.format("delta").mode("overwrite")
        if self.sink.partition:
            writer.option("replaceWhere", " and ".join(self._equations("", types))).save(self._uri)
        else:
            writer.option("partitionOverwriteMode", "static").save(self._uri)

    def _merge(self, session: SparkSession, rows: DataFrame, types: Types) -> None:
        rows.createOrReplaceTempView("hydrogen_rows")
        keys = [quoted(key) for key in self.sink.keys if key not in self.sink.partition]
        same = [*self._equations("old.", types), *(f"old.{key} = hydrogen_rows.{key}" for key in keys)]
        session.sql(
            f"merge into {self._name} as old using hydrogen_rows on {' and '.join(same)} "
            "when matched then update set * when not matched then insert *"
        )

    def _equations(self, prefix: str, types: Types) -> list[str]:
        """What is true of the partition's rows alone."""
        return [
            f"{prefix}{quoted(column)} = cast({tables.text(value)} as {types[column].simpleString()})"
            for column, value in self.sink.partition.items()
        ]

    def writers(self) -> dict[str, int]:
        """Who has committed with a number -> the highest one."""
        jvm: Any = self.spark._jvm
        activate(self.spark)
        log = jvm.org.apache.spark.sql.delta.DeltaLog
        snapshot = log.forTableWithSnapshot(self.spark._jsparkSession, self._uri)._2()
        pairs = snapshot.transactions().mkString("\n").splitlines()
        return {name: int(number) for name, _arrow, number in (pair.rpartition(" -> ") for pair in pairs)}

    def newest_version(self) -> int:
        """The number of the newest commit; -1 where there is none."""
        return max(self._commits(), default=-1)

    def commit_of(self, note: str, after: int) -> Commit | None:
        """The commit that has a note, among those that are newer than a version; None where there is none."""
        commits = self._commits()
        for version in sorted((version for version in commits if version > after), reverse=True):
            actions = [json.loads(line) for line in filesystems.read_bytes(commits[version]).splitlines()]
            info: dict[str, Any] = next(
                (action["commitInfo"] for action in actions if "commitInfo" in action), {}
            )
            if info.get("userMetadata") == note:
                alone = self.sink.mode != "merge" and not any("cdc" in action for action in actions)
                return Commit(version, _rows_written(info) if alone else None)
        return None

    def _commits(self) -> dict[int, str]:
        """Version -> the file of its commit, of those that the log still has one by one."""
        log = uris.join(str(self.sink.uri), "_delta_log")
        names = [name for name, _size in filesystems.list_files(log) if _COMMIT.fullmatch(name)]
        return {int(name.removesuffix(".json")): uris.join(log, name) for name in names}


def _rows_written(commit: Mapping[str, Any]) -> int | None:
    """Rows that a commit has put in, by what it says of itself. It says nothing of none."""
    metrics = commit.get("operationMetrics")
    if metrics is None:
        return None
    # It counts others that lay in the same files, too, where a table is not partitioned by what is replaced.
    return int(metrics.get("numOutputRows", 0)) - int(metrics.get("numCopiedRows", 0))
