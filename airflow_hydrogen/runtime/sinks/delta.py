"""A Delta table: rows are staged beside it, and one commit puts them in.

Where the table allows it tasks write its files, which are brought into its folder and named by a commit of
their own (`delta_files`). Where it does not, Spark writes the staged rows once more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    BatchesLostError,
    HydrogenError,
    PartitionTakenError,
    RowsLostError,
    SinkError,
    TableBusyError,
)
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.contract.streams import Batch
from airflow_hydrogen.runtime.data.spark_types import file_metadata, file_schema, is_plain
from airflow_hydrogen.runtime.sinks import tables
from airflow_hydrogen.runtime.sinks.delta_files import Files, activate
from airflow_hydrogen.runtime.sinks.delta_table import Table
from airflow_hydrogen.runtime.sinks.staged import StagedFiles, replacing
from airflow_hydrogen.runtime.sinks.tables import Types
from airflow_hydrogen.runtime.sinks.task_files import TaskTarget
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors
from airflow_hydrogen.runtime.storage import filesystems, partition_files
from airflow_hydrogen.runtime.storage.swap import Replacement

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

ATTEMPTS = 15
_LONGEST_WAIT_S = 8.0
_NO_ESCAPES = "spark.sql.parser.escapedStringLiterals"
_CONFLICT = re.compile(r"io\.delta\.exceptions\.(Concurrent\w+|MetadataChanged|ProtocolChanged)Exception")
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
    spark: SparkSession,
    sink: Sink,
    run: Run | None,
    types: Types,
    batch: Batch | None = None,
    schema: StructType | None = None,
) -> Iterator[Rows]:
    """Begin a try to replace a partition of a table, to merge rows into it, or to add a stream's batch.

    Args:
        spark: the session.
        sink: the table.
        run: the Airflow run, or None.
        types: for a partition's columns of a table that is yet to be made.
        batch: of a stream, or None.
        schema: of the rows, without the partition's columns; None: tasks do not write them themselves.

    Raises:
        InvalidJobError: the session has no Delta, or the folder holds something else than a Delta table.
        TableMismatchError, ColumnTypeError: see `Rows.stage`.
        PartitionTakenError: a newer try has begun meanwhile.
        BatchesLostError: the batches before this one are not in the table.
    """
    if batch is not None and sink.mode == "replace":
        sink = dataclasses.replace(sink, mode="append")
    table = Table(spark, sink, types)
    place = tables.place(str(sink.uri), sink, run, batch)
    with replacing(place, run, str(sink)) as replacement:
        yield Rows(table, run, replacement, batch, schema)


class Rows(StagedFiles):
    """The rows of one try.

    Args:
        table: where they go.
        run: the Airflow run, or None.
        replacement: of the place that they are staged beside.
        batch: of a stream, or None.
        schema: of the rows, where tasks may write them.

    Attributes:
        by_tasks: where tasks write files of the table; None: its rows are Spark's to write.
    """

    def __init__(
        self,
        table: Table,
        run: Run | None,
        replacement: Replacement,
        batch: Batch | None = None,
        schema: StructType | None = None,
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
        self._staged: StructType | None = None  # None: by Spark nothing was
        self.by_tasks = None if schema is None else self._target(schema)

    def _target(self, schema: StructType) -> TaskTarget | None:
        """Where tasks write files of the table; None where that is Spark's to do, and the log says why."""
        if not all(is_plain(item.dataType.jsonValue()) for item in schema):
            return None
        if (refused := self._table.refused_files()) is not None:
            self._say_refused(refused)
            return None
        fitted = self._table.fitted(self._table.spark.createDataFrame([], schema), ()).schema
        if not set(fitted.names) <= set(schema.names):
            self._say_refused("its columns and those that are scored differ in capitals")
            return None
        self._schema = fitted
        return TaskTarget(
            staged=self._replacement.staged,
            place=self._replacement.target,
            schema=file_schema(fitted),
            metadata=file_metadata(fitted, self._table.spark.version),
            ranges=True,
        )

    def _say_refused(self, reason: str) -> None:
        print(
            f"airflow-hydrogen: Spark writes the rows of {self.name}, and not the tasks: {reason}", flush=True
        )

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
            RowsLostError: the tasks' files do.
            BatchesLostError: the batches before this one are not in the table any more.
        """
        assert self._schema is not None, "nothing was staged"
        self._require_next()
        self._table.make(self._schema)
        before = self._table.newest_version()
        session = _own_session(self._table.spark)
        made = {"model_uri": model, **tables.label_of(self._schema)}
        run = dataclasses.asdict(self._run) if self._run else None
        of_stream = {"batch": dataclasses.asdict(self._batch)} if self._batch else {}
        note = json.dumps({**made, "run": run, **of_stream, "rows": rows, "try": secrets.token_hex(6)})
        session.conf.set("spark.databricks.delta.commitInfo.userMetadata", note)
        if self._writer is not None:
            session.conf.set("spark.databricks.delta.write.txnAppId", self._writer[0])
            session.conf.set("spark.databricks.delta.write.txnVersion", str(self._writer[1]))
        if self._staged is None:
            self._commit_files(session, rows, note, before)
        else:
            staged = self._rows(session, self._staged, _files(self._replacement.staged))
            self._commit(partial(self._table.write, session, self._table.told_apart(staged)), note, before)
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

    def _commit(self, put: Callable[[], None], note: str, before: int) -> None:
        """Put the rows in, once more where others were faster.

        Args:
            put: a try to do so.
            note: that its commit carries.
            before: the version of the table before the first try.
        """
        for attempt in range(ATTEMPTS):
            self.require_owner()
            try:
                put()
            except spark_errors() as error:
                if self._table.commit_of(note, before) is not None:
                    return  # it failed after it had committed
                if not _is_conflict(error):
                    raise
                if attempt == ATTEMPTS - 1:
                    raise TableBusyError(self.name, ATTEMPTS, root_cause(error)) from error
                # Others wait as long: by chance not quite.
                time.sleep(random.uniform(0.5, 1.0) * min(0.2 * 2**attempt, _LONGEST_WAIT_S))
            else:
                return

    def _commit_files(self, session: SparkSession, rows: int, note: str, before: int) -> None:
        """Commit what tasks have written; where that fails for certain, nothing of it stays in the table."""
        files = Files(self._replacement.staged, str(self._table.sink.uri))
        if files.rows != rows:
            raise RowsLostError(self.name, rows, files.rows)
        try:
            self._commit(partial(self._put_files, session, files), note, before)
        except HydrogenError:
            files.take_back()
            raise
        finally:
            activate(self._table.spark)

    def _put_files(self, session: SparkSession, files: Files) -> None:
        """A try to commit them, or to have Spark write their rows where the table has changed meanwhile."""
        assert self._schema is not None
        transaction = self._table.begin(session)
        # Now that the table was looked at: who takes the partition over later makes this one fail.
        self.require_owner()
        if self._writer is not None and transaction.newest(self._writer[0]) >= self._writer[1]:
            raise PartitionTakenError(self.name, None)
        refused = transaction.refused(self._table.sink.partition, self._schema)
        if refused is None:
            values, condition = self._table.partition()
            try:
                files.bring(transaction.folder(values))
            except OSError as error:
                refused = f"their files cannot be brought into its folder: {error}"
            else:
                replaced = None if self._table.sink.mode == "append" else condition
                transaction.commit(files, file_schema(self._schema), values, replaced, self._writer)
                return
        self._say_refused(refused)
        staged = self._rows(session, self._schema, [uris.spark_file(uri) for uri in files.uris])
        self._table.write(session, staged)
        files.take_back()

    def _rows(self, session: SparkSession, schema: StructType, files: Sequence[str]) -> DataFrame:
        reader = session.read.schema(schema)
        return reader.parquet(*files) if files else session.createDataFrame([], schema)

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
