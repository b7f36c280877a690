"""A stream, scored in micro-batches, whose numbers the sink knows, so that a replay changes nothing.

Spark promises the same rows for the same number, also after a crash. What a batch writes is put in place as
a partition is; only then Spark notes that the batch is done. A driver that dies between the two leads to the
same batch once more: it replaces its own folder, and is left out where a table says that it has it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    ColumnCollisionError,
    EntrypointError,
    HydrogenError,
    ModelSignatureError,
    SourceError,
)
from airflow_hydrogen.contract.jobs import InferenceJob
from airflow_hydrogen.contract.reports import InferenceReport
from airflow_hydrogen.contract.streams import BATCH_COLUMN, MODEL_VERSION_COLUMN, Batch
from airflow_hydrogen.runtime import versions
from airflow_hydrogen.runtime.data import kafka, sources, streams
from airflow_hydrogen.runtime.data.messages import FAULT, RAW
from airflow_hydrogen.runtime.data.streams import HEADERS, KEY, Rows
from airflow_hydrogen.runtime.entrypoints import resolve_import_path
from airflow_hydrogen.runtime.models import aliases, engines
from airflow_hydrogen.runtime.models.aliases import NamedModel
from airflow_hydrogen.runtime.models.directory import read_manifest
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.scoring import positions, sinks, warming
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT
from airflow_hydrogen.runtime.scoring.application import (
    label_of,
    require_writable,
    say_batch_rows,
    scoring_session,
    usable_model,
)
from airflow_hydrogen.runtime.scoring.planning import Scoring, score
from airflow_hydrogen.runtime.scoring.positions import Position
from airflow_hydrogen.runtime.scoring.sinks import Written
from airflow_hydrogen.runtime.sinks import placements
from airflow_hydrogen.runtime.sinks.kafka import ID
from airflow_hydrogen.runtime.sinks.tables import POSITION
from airflow_hydrogen.runtime.spark_errors import original_error, root_cause, spark_errors
from airflow_hydrogen.runtime.storage import filesystems, s3

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.types import StructType

# By these a message of Kafka is known again, and its row is found to be the last of its key. To send one of
# it takes more.
_PLACE = ("kafka_topic", "kafka_partition", "kafka_offset")
_SENT = (*_PLACE, KEY, HEADERS)

# What Spark says of a CSV file whose header names other columns.
_OTHER_HEADER = "CSV header does not conform to the schema"

POLL_S = 1
LOOK_EVERY_S = 5.0
"""Seconds between two looks for the file that ends the stream."""
REFUSED_S = 60.0
"""Seconds after which a model that was refused is looked at again."""
TELL_EVERY_S = 30.0

DRAINED = "drained"
STOP_FILE = "stop file"
STOP_AFTER = "stop_after_s"


class _EndedError(Exception):
    """Raised in Spark's thread, so that a batch is not begun when the stream is to end."""


def run_stream(job: InferenceJob) -> InferenceReport:
    """Score a stream until what is new has been scored, or until something ends it.

    Args:
        job: what to score; model, columns, places and the checkpoint are checked before the first batch.

    Returns:
        The report of a success: what this try has done. Batches of earlier tries are not in it.

    Raises:
        HydrogenError: see the tree in `contract.errors`.
    """
    with s3.using(job.s3):
        return _run(job)


def _run(job: InferenceJob) -> InferenceReport:
    assert job.stream is not None
    started = time.monotonic()
    require_writable(job)
    filesystems.require_writable("checkpoint_uri", job.stream.checkpoint_uri)
    if job.prepare:
        resolve_import_path(job.prepare)
    model = aliases.resolve(job.model_uri)
    manifest = usable_model(job, model)
    spark = scoring_session(job, manifest)
    if job.sink.kind == "kafka":
        kafka.require_topic(spark, job.sink, job.access)
    topic = kafka.require_topic(spark, job.source, job.access) if job.source.kind == "kafka" else None
    rows = streams.open_stream(spark, job.source, job.access, job.stream.max_rows_per_trigger, _left_out(job))
    batches = Batches(job, model, manifest, rows)
    batches.rehearse(spark, rows.frame.schema)
    warming.warm_workers(spark, _say)
    position = positions.claim(job, topic, placements.batches(spark, job.sink))
    batches.position = position
    print(
        f"scoring {job.source} with {manifest.framework} model {job.model_uri}, version "
        f"{manifest.version[:12]}, {job.stream.trigger}, into {job.sink}; a file {job.stream.stop_uri} "
        "ends it",
        flush=True,
    )
    query = _start(rows.frame, batches, job)
    try:
        stopped = _until_it_ends(query, batches, job)
    finally:
        query.stop()
    lag = lag_of(query.lastProgress)
    print(f"{stopped}: {batches.summary(time.monotonic() - started, lag)}", flush=True)
    say_batch_rows(batches.rows)
    return _report(job, batches, position, stopped, lag, time.monotonic() - started)


def _left_out(job: InferenceJob) -> tuple[str, ...]:
    """Columns of messages that no model can take and nothing else asks for. They cost a tenth of a drain."""
    if job.prepare is not None or job.keep_columns is None or job.on_bad_row == "quarantine":
        return ()
    sent = _SENT if job.sink.kind == "kafka" else ()
    return tuple(name for name in (KEY, HEADERS) if name not in (*job.keep_columns, *sent))


def _start(frame: DataFrame, batches: Batches, job: InferenceJob) -> StreamingQuery:
    assert job.stream is not None
    writer = frame.writeStream.foreachBatch(batches).option(
        "checkpointLocation", uris.spark_uri(job.stream.checkpoint_uri)
    )
    if job.stream.drains:
        writer = writer.trigger(availableNow=True)
    else:
        writer = writer.trigger(processingTime=job.stream.trigger)
    try:
        return writer.start()
    except spark_errors() as error:
        raise SourceError(str(job.source), root_cause(error)) from error


def _until_it_ends(query: StreamingQuery, batches: Batches, job: InferenceJob) -> str:
    """Wait, tell how it goes, and end the query between two batches when it is time.

    Returns:
        Why it has ended.
    """
    assert job.stream is not None
    started = told = time.monotonic()
    told_batches = 0
    stop_file = _StopFile(job.stream.stop_uri)
    why = ""
    while True:
        try:
            if query.awaitTermination(POLL_S):
                break
        except spark_errors() as error:
            if isinstance(batches.failure, _EndedError):
                break
            raise _cause(job, batches.failure, error) from error
        now = time.monotonic()
        if not why and (why := _reason_to_end(job, stop_file, now - started)):
            batches.ending.set()
        if why and batches.are_idle(query.lastProgress):
            query.stop()
        if now - told >= TELL_EVERY_S and batches.number != told_batches:
            print(batches.summary(now - started, lag_of(query.lastProgress)), flush=True)
            told, told_batches = now, batches.number
    if why == STOP_FILE:
        filesystems.remove(job.stream.stop_uri)
    return why or DRAINED


def _reason_to_end(job: InferenceJob, stop_file: _StopFile, seconds: float) -> str:
    assert job.stream is not None
    if job.stream.stop_after_s is not None and seconds >= job.stream.stop_after_s:
        return STOP_AFTER
    return STOP_FILE if stop_file.is_there() else ""


class _StopFile:
    """The file that ends a stream: looked for now and then, also after a store that did not answer."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._next_look = 0.0
        self._fails = False

    def is_there(self) -> bool:
        """Whether it has been found; a store that does not answer is one line in the log."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + LOOK_EVERY_S
        try:
            found = filesystems.exists(self._uri)
        except OSError as error:
            if not self._fails:
                _say(f"nobody knows whether there is a file {self._uri}, which is looked for again: {error}")
            self._fails = True
            return False
        self._fails = False
        return found


def _cause(job: InferenceJob, failure: BaseException | None, error: Exception) -> BaseException:
    """What a failed query has failed of: in one of our batches, or in the source."""
    if failure is None:
        return SourceError(str(job.source), root_cause(error))
    if isinstance(failure, SourceError) and _OTHER_HEADER in failure.reason:
        return SourceError(
            str(job.source),
            f"{failure.reason} Name the columns as the header does, in its order; with the option "
            "enforceSchema='true' columns are taken by their position, whatever the header says",
        )
    return original_error(failure) if isinstance(failure, Exception) else failure


def lag_of(progress: Any) -> int | None:
    """How many messages of Kafka waited when the last batch began; None where nobody knows. Pure.

    Args:
        progress: Spark's, of a query; None before its first batch.
    """
    if progress is None:
        return None
    found = [_behind(source["endOffset"], source["latestOffset"]) for source in progress["sources"]]
    return sum(lag for lag in found if lag is not None) if any(lag is not None for lag in found) else None


def _behind(reached: Any, latest: Any) -> int | None:
    """The messages between two maps of topic -> partition -> offset, as Spark writes them."""
    try:
        reached, latest = json.loads(reached), json.loads(latest)
        return sum(
            max(0, int(offset) - int(reached.get(topic, {}).get(partition, 0)))
            for topic, partitions in latest.items()
            for partition, offset in partitions.items()
        )
    except (AttributeError, TypeError, ValueError):
        return None  # offsets of another kind of source


class Batches:
    """Scores micro-batches; Spark calls it from a thread of its own, with one after the other.

    Args:
        job: of the stream.
        model: the one that its URI named before it began.
        manifest: of that model.
        stream: whose batches they are.

    Attributes:
        model_uri: of the model that scores.
        model_alias: the alias that names it, or None.
        position: set before the first batch.
        ending: set when no other batch is to begin.
        failure: of the batch that has failed.
        number: how many batches are done.
        last: the number of the last of them.
    """

    def __init__(self, job: InferenceJob, model: NamedModel, manifest: Manifest, stream: Rows) -> None:
        self._job, self._manifest, self._stream = job, manifest, stream
        self.model_uri, self.model_alias = model.uri, model.alias
        self._prepare = resolve_import_path(job.prepare) if job.prepare else None
        self._refused, self._next_look = "", 0.0
        self.position: Position | None = None
        self._running = threading.Event()
        self.ending = threading.Event()
        self.failure: BaseException | None = None
        self.number = 0
        self.last: int | None = None
        self.rows = Written(0)
        self.models: Counter[str] = Counter()
        self.columns: dict[str, str] = {}
        self._last_line = ""

    @property
    def manifest(self) -> Manifest:
        """Of the model that scores."""
        return self._manifest

    def rehearse(self, spark: SparkSession, schema: StructType) -> None:
        """Hold the model against the columns of the stream, and both against the sink, before there are rows.

        Raises:
            MissingColumnError, ColumnTypeError, ColumnCollisionError, TableMismatchError: the columns do not
                fit the model, or the sink.
            EntrypointError: `prepare` returns something that cannot be scored.
        """
        nothing = spark.createDataFrame([], schema)
        job = self._job_of(0)
        scoring = self._scoring(nothing, job, self._manifest)
        placements.require_fits(spark, job.sink, job.access, scoring.types, scoring.frame(), ACCOUNT)

    def __call__(self, batch: DataFrame, number: int) -> None:
        """Score one micro-batch and put it in place."""
        self._running.set()
        try:
            if self.ending.is_set():
                raise _EndedError("the stream ends before this batch")
            self._run(batch, number)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self._running.clear()

    def are_idle(self, progress: Any) -> bool:
        """Whether no batch runs, and Spark has noted that the last one is done."""
        noted = progress["batchId"] if progress is not None else -1
        return not self._running.is_set() and (self.last is None or noted >= self.last)

    def summary(self, seconds: float, lag: int | None) -> str:
        """One line of how far the stream is."""
        waiting = "" if lag is None else f", {lag:,} messages wait"
        bad = self.rows.dropped + self.rows.quarantined
        return (
            f"{self.rows.rows:,} rows in {self.number:,} batches, {self.rows.rows / max(seconds, 1e-9):,.0f} "
            f"rows/s{f', {bad:,} bad rows' if bad else ''}{waiting}"
            + (f"; the last: {self._last_line}" if self._last_line else "")
        )

    def _run(self, batch: DataFrame, number: int) -> None:
        started = time.monotonic()
        assert self.position is not None
        self.position.require_owner()
        if number <= self.position.placed:
            _say(f"batch {number} is left out: it is at the sink, and Spark had not noted that it was done")
            self.last = number
            return
        self._renew_model(batch.sparkSession, batch.schema)
        job = self._job_of(number)
        scoring = self._scoring(batch, job, self._manifest)
        # A newer try of the stream that begins after the staging finds what is staged. One that began before
        # may have placed this batch and others after it, and have left nothing that the sink knows it by.
        written = sinks.place(batch.sparkSession, scoring, job, require_turn=self.position.require_owner)
        self._note(number, written, scoring, time.monotonic() - started)

    def _note(self, number: int, written: Written, scoring: Scoring, seconds: float) -> None:
        self.number, self.last = self.number + 1, number
        for note in written.notes:
            if note not in self.rows.notes:
                _say(note)
        self.rows = self.rows.plus(written)
        self.models[self._manifest.version] += written.rows
        if not self.columns:
            # A plan of the scored rows takes Spark some hundredths of a second.
            schema = scoring.schema if scoring.finish is None else scoring.frame().drop(ACCOUNT).schema
            self.columns = {item.name: item.dataType.simpleString() for item in schema}
        self._last_line = (
            f"batch {number}, {written.rows:,} rows in {seconds:.1f} s, {written.rows / seconds:,.0f} "
            f"rows/s, model {self._manifest.version[:12]}"
        )

    def _job_of(self, number: int) -> InferenceJob:
        """The job of one batch: folders of its number are replaced, and tables are told its number."""
        stream = self.position.stream if self.position else ""
        job = replace(self._job, model_uri=self.model_uri, batch=Batch(number=number, stream=stream))
        partition = {**job.sink.partition, BATCH_COLUMN: str(number)}
        quarantine = None if job.quarantine is None else replace(job.quarantine, partition=partition)
        sink = job.sink
        if sink.kind == "kafka" and job.stream is not None:
            sink = replace(sink, work_uri=uris.sibling(job.stream.checkpoint_uri, "outbox"))
        elif sink.kind == "parquet":
            sink = replace(sink, partition=partition)
        keep = job.keep_columns
        if keep is not None:
            keep = [*dict.fromkeys([*keep, *self._marks])]
        return replace(job, sink=sink, quarantine=quarantine, keep_columns=keep)

    @property
    def _marks(self) -> tuple[str, ...]:
        """Columns of a message by which the sink knows its row."""
        if self._job.sink.kind == "kafka":
            return _SENT
        return _PLACE if self._job.sink.mode == "merge" and self._job.source.kind == "kafka" else ()

    def _scoring(self, batch: DataFrame, job: InferenceJob, manifest: Manifest) -> Scoring:
        rows = self._stream.of(batch)
        with warming.prepared_apart(batch.sparkSession, job.gpus_per_task):
            frame = sources.prepared(rows.decoded(), self._prepare, job.prepare_kwargs)
        marks = [*((RAW, FAULT) if FAULT in rows.schema.names else ()), *self._marks]
        if lost := [name for name in marks if name not in frame.columns]:
            raise EntrypointError(
                str(job.prepare),
                f"returned a DataFrame without {', '.join(lost)}, by which rows are known again: add columns "
                "by withColumn, or select('*', ...)",
            )
        outputs = (job.output_columns.get(spec.name, spec.name) for spec in manifest.signature.outputs)
        ours = {BATCH_COLUMN, MODEL_VERSION_COLUMN, *(self._marking if self._marks else ())}
        if taken := {name for name in (*frame.columns, *outputs) if name.lower() in ours}:
            raise ColumnCollisionError(taken, "'prepare' or output_columns")
        label = label_of(manifest, job, {"source": str(job.source)})
        version = {MODEL_VERSION_COLUMN: manifest.version}
        undecoded = rows if rows.values is not None and self._prepare is None else None
        scoring = score(frame.sparkSession, frame, manifest, job, label, version, undecoded)
        finish = self._marked if self._marks else None
        return replace(scoring, finish=finish)

    @property
    def _marking(self) -> tuple[str, ...]:
        """Columns that rows get of their marks."""
        return (ID,) if self._job.sink.kind == "kafka" else POSITION

    def _marked(self, scored: DataFrame) -> DataFrame:
        """Rows with what makes each of them known, and without what was not to be kept."""
        from pyspark.sql import functions

        if self._job.sink.kind == "kafka":
            stream = functions.lit(self.position.stream if self.position else "")
            scored = scored.withColumn(ID, functions.concat_ws("/", stream, *map(functions.col, _PLACE)))
        else:
            for name, column in zip(POSITION, _PLACE[1:], strict=True):
                scored = scored.withColumn(name, functions.col(column))
        kept = self._job.keep_columns
        return scored if kept is None else scored.drop(*(name for name in _PLACE if name not in kept))

    def _renew_model(self, spark: SparkSession, schema: StructType) -> None:
        """Take the model that the job's URI names now; where it cannot be used, the old one goes on."""
        found = "nothing"
        try:
            model = aliases.resolve(self._job.model_uri)
            found = model.version or read_manifest(model.uri).version
            if (model.uri, found) == (self.model_uri, self._manifest.version):
                return
            if found == self._refused and time.monotonic() < self._next_look:
                return
            job = replace(self._job_of(0), model_uri=model.uri)
            manifest = usable_model(job, model)
            nothing = spark.createDataFrame([], schema)
            self._require_same_columns(
                self._scoring(nothing, self._job_of(0), self._manifest).schema,
                self._scoring(nothing, job, manifest).schema,
            )
        except (HydrogenError, OSError) as error:
            if self._refused != found:
                _say(
                    f"the model at {self._job.model_uri} is refused, and version "
                    f"{self._manifest.version[:12]} goes on: {type(error).__name__}: {error}"
                )
            self._refused, self._next_look = found, time.monotonic() + REFUSED_S
            return
        _say(f"model version {manifest.version[:12]} takes the place of {self._manifest.version[:12]}")
        self.model_uri, self._manifest, self._refused = model.uri, manifest, ""
        self.columns = {}

    @staticmethod
    def _require_same_columns(before: StructType, now: StructType) -> None:
        """Raise ModelSignatureError where batches would have other columns than those before."""
        old, new = (
            [f"{item.name} {item.dataType.simpleString()}" for item in side] for side in (before, now)
        )
        if old != new:
            raise ModelSignatureError(
                f"rows would have the columns {', '.join(new)}, and those of the batches before have "
                f"{', '.join(old)}: score with it as another stream, into another sink"
            )


def _report(
    job: InferenceJob, batches: Batches, position: Position, stopped: str, lag: int | None, seconds: float
) -> InferenceReport:
    offsets = position.offsets()
    rows = batches.rows
    return InferenceReport(
        output_uri=job.sink.output,
        model_uri=batches.model_uri,
        model_version=batches.manifest.version,
        model_alias=batches.model_alias,
        engine=engines.choose(
            batches.model_uri, batches.manifest, job.engine, job.predictor, job.gpus_per_task
        ),
        batch_rows=rows.rows_of_call(job),
        rows=rows.rows,
        rows_in=rows.rows_in,
        rows_dropped=rows.dropped,
        rows_quarantined=rows.quarantined,
        quarantine_uri=job.quarantine_uri,
        bad_rows=dict(rows.bad),
        columns=batches.columns,
        seconds={"total": round(seconds, 3)},
        rows_per_second=rows.rows / seconds,
        source={"source": str(job.source), **({"offsets": offsets} if offsets is not None else {})},
        stream={
            "batches": batches.number,
            "last_batch": batches.last,
            "stopped": stopped,
            "lag": lag,
            "models": dict(batches.models),
        },
        versions=versions.installed(),
    )


def _say(line: str) -> None:
    print(f"airflow-hydrogen: {line}", flush=True)
