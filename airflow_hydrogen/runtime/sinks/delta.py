"""A Delta table: rows are staged beside it, and one commit puts them in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    BatchesLostError,
    InvalidJobError,
    MergeKeysError,
    MissingColumnError,
    PartitionTakenError,
    SinkError,
    TableBusyError,
    TableMismatchError,
)
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.contract.streams import Batch
from airflow_hydrogen.runtime.data.sources import quoted
from airflow_hydrogen.runtime.session import root_cause, spark_errors
from airflow_hydrogen.runtime.sinks import tables
from airflow_hydrogen.runtime.sinks.staged import StagedFiles, replacing
from airflow_hydrogen.runtime.sinks.tables import Types
from airflow_hydrogen.runtime.storage import filesystems, partition_files
from airflow_hydrogen.runtime.storage.swap import Replacement

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

ATTEMPTS = 15
_LONGEST_WAIT_S = 8.0
_NO_ESCAPES = "spark.sql.parser.escapedStringLiterals"
_CATALOG = "spark.sql.catalog.spark_catalog"
_CONFLICT = re.compile(r"io\.delta\.exceptions\.(Concurrent\w+|MetadataChanged|ProtocolChanged)Exception")
_NO_COLUMN = re.compile(r"[ ,;{}()\n\t=]")
_COMMIT = re.compile(r"\d{20}\.json")
# Of a session whose settings are those of one commit: rows of a file that is gone, or cannot be read, are
# not left out, and the commit says how many it has written.
_COMMIT_SETTINGS = {
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.databricks.delta.history.metricsEnabled": "true",
}


def require_writable(sink: Sink) -> None:
    """Raise UnwritableUriError unless files can be written beside the table."""
    filesystems.require_writable("sink", str(sink.uri))


def require_fits(
    spark: SparkSession, sink: Sink, types: Types, frame: DataFrame, notes: str | None = None
) -> None:
    """Hold rows that are yet to be computed against the table; raises what `Rows.stage` does."""
    Table(spark, sink, types).fitted(frame, tables.beside(frame, notes, of_stream=True))


def batches(spark: SparkSession, sink: Sink) -> dict[str, int]:
    """Which streams have written the sink's partition: the id of each -> its newest batch there."""
    return _streams(sink, Table(spark, sink, {}).writers())


@contextmanager
def placing(
    spark: SparkSession, sink: Sink, run: Run | None, types: Types, batch: Batch | None = None
) -> Iterator[Rows]:
    """Begin a try to replace a partition of a table, to merge rows into it, or to add a stream's batch.

    Args:
        spark: the session.
        sink: the table.
        run: the Airflow run, or None.
        types: for a partition's columns of a table that is yet to be made.
        batch: of a stream, or None.

    Raises:
        InvalidJobError: the session has no Delta, or the folder holds something else than a Delta table.
        PartitionTakenError: a newer try has begun meanwhile.
        BatchesLostError: the batches before this one are not in the table.
    """
    if batch is not None and sink.mode == "replace":
        sink = dataclasses.replace(sink, mode="append")
    table = Table(spark, sink, types)
    place = tables.place(str(sink.uri), sink, run, batch)
    with replacing(place, run, str(sink)) as replacement:
        yield Rows(table, run, replacement, batch)


class Rows(StagedFiles):
    """The rows of one try.

    Args:
        table: where they go.
        run: the Airflow run, or None.
        replacement: of the place that they are staged beside.
        batch: of a stream, or None.
    """

    by_tasks = None  # rows are fitted to the table by Spark

    def __init__(
        self, table: Table, run: Run | None, replacement: Replacement, batch: Batch | None = None
    ) -> None:
        super().__init__(str(table.sink), replacement)
        self._table, self._run, self._batch = table, run, batch
        # Who writes, and a number: Delta skips a commit whose number is not above those of that writer.
        self._writer: tuple[str, int] | None = None
        if batch is not None:
            self._writer = _writer_of_stream(table.sink, batch.stream), batch.number
            self._require_next()
        elif run is not None:
            # Tries of a run count up, so that an older one that comes after a newer is skipped. Their hosts'
            # clocks may differ.
            name = _writer_of_run(run)
            self._writer = name, max(time.time_ns(), table.writers().get(name, 0) + 1)
        self._schema: StructType | None = None
        self._staged: StructType | None = None

    def stage(self, frame: DataFrame, notes: str | None) -> tuple[int, list[str]]:
        """Write the rows to a hidden neighbour of the table; see `Placement`.

        Raises:
            TableMismatchError: they do not fit the table.
            ColumnTypeError: a value of the partition is none of its column's type.
            MissingColumnError: a key is not there.
            InvalidJobError: they cannot be a Delta table.
        """
        beside = tables.beside(frame, notes, of_stream=self._batch is not None)
        frame = self._table.fitted(frame, beside)
        self._schema, self._staged = (
            frame.drop(*beside).schema,
            frame.drop(*([notes] if notes else [])).schema,
        )
        return super().stage(frame, notes)

    def commit(self, *, rows: int, model: str | None) -> None:
        """Put the rows into the table by one commit, once more where others were faster.

        Raises:
            MergeKeysError: keys that stand twice among the rows, or are null.
            TableBusyError: others were faster every time.
            PartitionTakenError: a newer try has begun, or has committed.
            SinkError: the commit holds other rows than those that were staged.
            BatchesLostError: the batches before this one are not in the table any more.
        """
        assert self._schema is not None and self._staged is not None, "nothing was staged"
        self._require_next()
        self._table.make(self._schema)
        before = self._table.newest_version()
        session = _own_session(self._table.spark)
        staged = session.read.schema(self._staged).parquet(*_files(self._replacement.staged))
        staged = self._table.told_apart(staged)
        made = {"model_uri": model, **tables.label_of(self._schema)}
        run = dataclasses.asdict(self._run) if self._run else None
        of_stream = {"batch": dataclasses.asdict(self._batch)} if self._batch else {}
        note = json.dumps({**made, "run": run, **of_stream, "rows": rows, "try": secrets.token_hex(6)})
        session.conf.set("spark.databricks.delta.commitInfo.userMetadata", note)
        if self._writer is not None:
            session.conf.set("spark.databricks.delta.write.txnAppId", self._writer[0])
            session.conf.set("spark.databricks.delta.write.txnVersion", str(self._writer[1]))
        for attempt in range(ATTEMPTS):
            self.require_owner()
            try:
                self._table.write(session, staged)
            except spark_errors() as error:
                if self._table.commit_of(note, before) is not None:
                    break  # it failed after it had committed
                if not _is_conflict(error):
                    raise
                if attempt == ATTEMPTS - 1:
                    raise TableBusyError(self.name, ATTEMPTS, root_cause(error)) from error
                # Others wait as long: by chance not quite.
                time.sleep(random.uniform(0.5, 1.0) * min(0.2 * 2**attempt, _LONGEST_WAIT_S))
            else:
                break
        committed = self._table.commit_of(note, before)
        if committed is None:  # Delta has skipped it
            raise PartitionTakenError(self.name, None)
        print(f"committed version {committed.version} of {self.name}", flush=True)
        if committed.rows not in (None, rows):
            mend = "Clear the task, which replaces it"
            if self._batch is not None:
                mend = "Begin anew with another checkpoint and another table"
            raise SinkError(
                f"version {committed.version} of {self.name} was committed with {committed.rows} rows in "
                f"place of the {rows} that were staged: it is not whole. {mend}"
            )

    def _require_next(self) -> None:
        """Raise unless the batch of a stream is the one that the table waits for."""
        if self._batch is None or self._writer is None:
            return
        writers = self._table.writers()
        if _streams(self._table.sink, writers).keys() - {self._batch.stream}:
            raise SinkError(
                f"{self.name} has batches of another stream, which has begun it at the same time; no row of "
                f"batch {self._batch.number} was written. Give each of them a table of its own"
            )
        newest = writers.get(self._writer[0], -1)
        if newest >= self._batch.number:
            raise PartitionTakenError(self.name, None)
        if newest != self._batch.number - 1:
            raise BatchesLostError(self.name, self._batch.number, None if newest < 0 else newest)


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
        # Delta asks for the settings of the session that is active in this thread.
        jvm.org.apache.spark.sql.classic.SparkSession.setActiveSession(self.spark._jsparkSession)
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


def _own_session(spark: SparkSession) -> SparkSession:
    """A session like another, whose settings are those of one commit."""
    session = type(spark)(spark.sparkContext, spark._jsparkSession.cloneSession())
    for name, value in _COMMIT_SETTINGS.items():
        session.conf.set(name, value)
    if session.conf.get(_NO_ESCAPES) == "true":
        session.conf.set(_NO_ESCAPES, "false")  # `tables.text` has some
    return session


def _files(folder: str) -> list[str]:
    """The files of a folder for Spark, which warns of hidden folders."""
    return [uris.spark_file(uris.join(folder, name)) for name, _size in partition_files.listed_files(folder)]


def _writer_of_run(run: Run) -> str:
    """By what Delta knows the tries of a run again. A clear begins anew."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(run), sort_keys=True).encode()).hexdigest()
    return f"airflow-hydrogen-{digest[:32]}"


def _writer_of_stream(sink: Sink, stream: str) -> str:
    """By what Delta knows the batches of a stream again, in the partition that it writes."""
    digest = hashlib.sha256(repr(sorted(sink.partition.items())).encode()).hexdigest()
    return f"airflow-hydrogen-stream-{digest[:16]}-{stream}"


def _streams(sink: Sink, writers: Mapping[str, int]) -> dict[str, int]:
    """Those among a table's writers that are streams into the sink's partition: id -> newest batch."""
    begin = _writer_of_stream(sink, "")
    return {name.removeprefix(begin): last for name, last in writers.items() if name.startswith(begin)}


def _is_conflict(error: Exception) -> bool:
    """Whether another commit was first, so that this one may be tried again."""
    java: Any = getattr(error, "_origin", None) or getattr(error, "java_exception", None)
    while java is not None:
        if _CONFLICT.fullmatch(java.getClass().getName()):
            return True
        java = java.getCause()
    return False
