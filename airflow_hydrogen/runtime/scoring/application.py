"""The scoring application: check, read, predict in Arrow batches, replace a partition."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    ColumnCollisionError,
    ColumnTypeError,
    HydrogenError,
    InvalidJobError,
    MissingColumnError,
)
from airflow_hydrogen.contract.jobs import InferenceJob
from airflow_hydrogen.contract.reports import InferenceReport
from airflow_hydrogen.runtime import versions
from airflow_hydrogen.runtime.data import scans, snapshots, sources
from airflow_hydrogen.runtime.data.columns import dtype_of
from airflow_hydrogen.runtime.data.scans import Scan
from airflow_hydrogen.runtime.data.snapshots import Kept, Opened, Snapshot
from airflow_hydrogen.runtime.data.streams import FAULT, RAW, TRACES
from airflow_hydrogen.runtime.entrypoints import resolve_import_path
from airflow_hydrogen.runtime.gang.slots import task_slots, threads_per_task
from airflow_hydrogen.runtime.log_groups import log_group
from airflow_hydrogen.runtime.models.directory import open_model
from airflow_hydrogen.runtime.models.manifest import Manifest, OutputSpec, Signature
from airflow_hydrogen.runtime.models.predictors import require_modules
from airflow_hydrogen.runtime.scoring import direct, sinks, warming
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT
from airflow_hydrogen.runtime.scoring.direct import RowGroup
from airflow_hydrogen.runtime.scoring.inference import Scorer, Sifting
from airflow_hydrogen.runtime.scoring.quarantine import REASON, Quarantine
from airflow_hydrogen.runtime.scoring.sinks import Listed, Written
from airflow_hydrogen.runtime.scoring.watching import RowCounter, progress_told
from airflow_hydrogen.runtime.session import original_error, spark_session
from airflow_hydrogen.runtime.sinks import placements
from airflow_hydrogen.runtime.storage import filesystems, swap

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

LABEL = "airflow_hydrogen"
"""The key of what made a prediction, in the metadata of its column."""

_SOURCE = "the source"
_ARROW_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"


def run_inference(job: InferenceJob) -> InferenceReport:
    """Carry out a scoring job.

    Args:
        job: what to score; model, columns and places are checked before any row is read.

    Returns:
        The report of a success.

    Raises:
        HydrogenError: see the tree in `contract.errors`.
    """
    started = time.monotonic()
    placements.require_writable(job.sink, job.access)
    quarantine_uri = job.quarantine_sink.folder if job.on_bad_row == "quarantine" else None
    if quarantine_uri is not None:
        filesystems.require_writable("quarantine", quarantine_uri)
    prepare = resolve_import_path(job.prepare) if job.prepare else None
    manifest = usable_model(job)
    spark = scoring_session(job, manifest)
    warming.warm_workers(spark, _say)
    with _kept(job) as kept:
        with log_group("Preparation", folded=job.run is not None):
            opened = _open(spark, job, kept)
            frame = sources.prepared(opened.frame, prepare, job.prepare_kwargs)
            scoring = score(spark, frame, manifest, replace(job, source=opened.source))
        print(
            f"scoring {opened.source} with {manifest.framework} model {job.model_uri}, "
            f"version {manifest.version[:12]}",
            flush=True,
        )
        try:
            written = _write(spark, labelled(scoring, manifest, job, opened.snapshot), job)
        except Exception as error:
            original = original_error(error)
            if original is error:
                raise
            raise original from None
    seconds = time.monotonic() - started
    print(f"wrote {written.rows:,} rows to {job.sink}", flush=True)
    if written.bad:
        where = "dropped" if quarantine_uri is None else f"quarantined in {quarantine_uri}"
        print(f"{written.bad.total():,} of {written.rows_in:,} rows {where}:", flush=True)
        for fault, rows in written.bad.most_common():
            print(f"  {rows:,}: {fault}", flush=True)
    return InferenceReport(
        output_uri=job.sink.output,
        model_uri=uris.canonical(job.model_uri),
        model_version=manifest.version,
        rows=written.rows,
        rows_in=written.rows_in,
        rows_dropped=written.dropped,
        rows_quarantined=written.quarantined,
        quarantine_uri=quarantine_uri,
        bad_rows=dict(written.bad),
        columns={field.name: field.dataType.simpleString() for field in scoring.schema},
        seconds={"total": round(seconds, 3)},
        rows_per_second=written.rows / seconds,
        source=opened.snapshot,
        versions=versions.installed(),
    )


def usable_model(job: InferenceJob) -> Manifest:
    """The model that lies at the job's URI now, found to be whole, and with the code that it needs."""
    manifest, _ = open_model(job.model_uri)
    predictor = job.predictor or manifest.predictor
    if predictor:
        resolve_import_path(predictor)
    else:
        require_modules(job.model_uri, manifest)
    return manifest


def _open(spark: SparkSession, job: InferenceJob, kept: Kept) -> Opened:
    """The source as the run's first try has found it, or as it is now."""
    opened = snapshots.open_pinned(spark, job.source, job.access, kept.earlier(_SOURCE))
    kept.note(_SOURCE, opened.snapshot)
    return opened


def _snapshot_uri(job: InferenceJob) -> str:
    run = hashlib.sha256(repr(job.run).encode()).hexdigest()[:12]
    return uris.sibling(job.sink.folder or job.sink.home or job.model_uri, f"snapshot-{run}.json")


@contextlib.contextmanager
def _kept(job: InferenceJob) -> Iterator[Kept]:
    """What is kept for the run's next try, as long as there may be one."""
    kept = Kept(_snapshot_uri(job), job.run)
    try:
        yield kept
    except HydrogenError as error:
        if not error.retryable:
            kept.forget()
        raise
    kept.forget()


def labelled(scoring: Scoring, manifest: Manifest, job: InferenceJob, snapshot: Snapshot) -> Scoring:
    """Predictions whose files say what made them, in the metadata of the columns' types."""
    label = {
        "model_uri": uris.canonical(job.model_uri),
        "model_version": manifest.version,
        "source": snapshot,
    }
    frame = scoring.frame
    for spec in manifest.signature.outputs:
        frame = frame.withMetadata(job.output_columns.get(spec.name, spec.name), {LABEL: label})
    return dataclasses.replace(scoring, frame=frame)


def scoring_session(job: InferenceJob, manifest: Manifest) -> SparkSession:
    """The session for a scoring, whose Python workers have the model's framework when they start."""
    from pyspark import SparkContext

    if SparkContext._active_spark_context is not None:
        return spark_session(job)  # with what it was started with
    preload = warming.plan(job, manifest)
    return spark_session(job, lambda given: warming.settings(given, preload, _say))


def _say(line: str) -> None:
    print(f"airflow-hydrogen: {line}", flush=True)


def _write(spark: SparkSession, scoring: Scoring, job: InferenceJob) -> Written:
    """Score and replace the partition, and say now and then how far it is."""
    with log_group("Scoring: output of Spark and the workers", folded=job.run is not None) as group:

        def say(line: str) -> None:
            group.say(line)
            group.begin()

        total = scoring.rows if isinstance(scoring.rows, int) else None
        with progress_told(RowCounter(spark), total, say):
            if job.on_bad_row != "fail":
                return sinks.replace_sifted(scoring.frame, job, scoring.quarantine, scoring.rows)
            return sinks.replace(scoring.frame, job, scoring.rows)


@dataclass(frozen=True)
class Scoring:
    """What is to be written.

    Attributes:
        frame: kept columns and predictions.
        schema: theirs.
        rows: how many there are, or what says so once they were read; None where that takes reading them.
        quarantine: where tasks leave rows that cannot be scored; None: they fail, or are dropped.
    """

    frame: DataFrame
    schema: StructType
    rows: Listed
    quarantine: Quarantine | None = None


def score(spark: SparkSession, frame: DataFrame, manifest: Manifest, job: InferenceJob) -> Scoring:
    """The kept columns and predictions: checked now, computed when they are written.

    Raises:
        MissingColumnError, ColumnTypeError, ColumnCollisionError: the columns do not fit the model, or the
            sink.
    """
    check_features(manifest.signature, frame.schema)
    traces = [name for name in TRACES if job.stream is not None and name in frame.columns]
    columns = [name for name in frame.columns if name not in (RAW, FAULT) or name not in traces]
    keep, outputs = plan_columns(columns, manifest.signature, job)
    slots = task_slots(spark).total
    constants = {name: value for name, value in job.sink.partition.items() if name in frame.columns}
    features = [column.name for column in manifest.signature.columns]
    needed = list(dict.fromkeys([*features, *keep, *constants, *traces]))
    schema = written = output_schema(frame.schema, keep, outputs, manifest.signature)
    sifting = None
    if job.on_bad_row != "fail":
        schema = with_accounts(schema)
        sifting = Sifting(
            target=str(job.sink),
            quarantine=plan_quarantine(frame.schema, needed, job) if job.on_bad_row == "quarantine" else None,
            limit=job.max_bad_rows if isinstance(job.max_bad_rows, int) else None,
        )
    scorer = Scorer(
        model_uri=uris.canonical(job.model_uri),
        manifest=manifest,
        predictor=job.predictor,
        keep=tuple(keep),
        outputs=outputs,
        constants=constants,
        batch_rows=job.batch_rows,
        threads=threads_per_task(spark, slots),
        sifting=sifting,
    )
    quarantine = sifting.quarantine if sifting else None
    scan = None if job.prepare or job.stream else scans.scan_of(frame, job.source, needed)
    if scan and (groups := direct.row_groups(scan.files)):
        rows = scan.files.total_rows if scan.condition is None else None
        hands = direct.deal(groups, slots)
        scored = _score_directly(spark, scan, hands, needed, scorer, schema)
        return Scoring(scored, written, rows, quarantine)
    if not spark.sparkContext.getConf().contains(_ARROW_BATCH):
        # Batches that arrive in the size of the model's calls are not joined, which saves a copy.
        frame.sparkSession.conf.set(_ARROW_BATCH, job.batch_rows)

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return scorer(batches)

    scored = frame.select(*(f"`{name}`" for name in needed)).mapInArrow(run, schema)
    return Scoring(scored, written, None, quarantine)


def _score_directly(
    spark: SparkSession,
    scan: Scan,
    hands: Sequence[Sequence[RowGroup]],
    columns: Sequence[str],
    scorer: Scorer,
    schema: StructType,
) -> DataFrame:
    """Tasks that read their row groups themselves; each gets its number as its only row."""

    def run(numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in numbers:
            for number in batch.column(0).to_pylist():
                yield from scorer(direct.read(scan, hands[number], columns, scorer.batch_rows))

    return spark.range(0, len(hands), 1, len(hands)).mapInArrow(run, schema)


def check_features(signature: Signature, schema: StructType) -> None:
    """Hold the columns of a DataFrame against a model's signature.

    Raises:
        MissingColumnError: the input lacks features of the model.
        ColumnTypeError: a feature cannot be turned into the model's dtype.
    """
    missing = [column.name for column in signature.columns if column.name not in schema.names]
    if missing:
        raise MissingColumnError("feature", missing, schema.names)
    for spec in signature.inputs:
        for column in spec.columns:
            type_ = schema[column.name].dataType
            dtype, tensor = dtype_of(column.name, _arrow_type(type_))
            expected = spec.dtype if column.width is None else f"a list of {column.width} {spec.dtype}"
            if tensor != (column.width is not None) or not _casts(dtype, spec.dtype):
                raise ColumnTypeError(column.name, expected, type_.simpleString())


def plan_columns(
    columns: Iterable[str], signature: Signature, job: InferenceJob
) -> tuple[list[str], dict[str, str]]:
    """The kept columns, and output name -> column name.

    Raises:
        MissingColumnError: a kept column that is not there.
        InvalidJobError: output_columns names an output that the model does not have.
        ColumnCollisionError: two columns of one name would be written.
    """
    found = list(columns)
    names = [spec.name for spec in signature.outputs]
    unknown = sorted(set(job.output_columns) - set(names))
    if unknown:
        raise InvalidJobError(
            f"output_columns names {', '.join(map(repr, unknown))}, but the model's outputs are "
            f"{', '.join(map(repr, names))}"
        )
    keep = found if job.keep_columns is None else list(job.keep_columns)
    if missing := set(keep) - set(found):
        raise MissingColumnError("kept column", missing, found)
    # The partition's own columns stand in the folder's name.
    keep = [name for name in keep if name not in job.sink.partition]
    outputs = {name: job.output_columns.get(name, name) for name in names}
    written = [*keep, *job.sink.partition, *outputs.values()]
    if twice := {name for name in written if written.count(name) > 1}:
        raise ColumnCollisionError(twice)
    return keep, outputs


def output_schema(
    schema: StructType, keep: Iterable[str], outputs: dict[str, str], signature: Signature
) -> StructType:
    """The schema of what is written: kept columns with their types, outputs with the signature's."""
    from pyspark.sql.types import StructField, StructType

    specs = {spec.name: spec for spec in signature.outputs}
    return StructType(
        [
            *(schema[name] for name in keep),
            *(StructField(column, _spark_type(specs[name])) for name, column in outputs.items()),
        ]
    )


def with_accounts(schema: StructType) -> StructType:
    """A schema with the column of accounts, and rows of accounts in which everything else is null."""
    from pyspark.sql.types import StringType, StructField, StructType

    return StructType(
        [
            *(StructField(field.name, field.dataType, metadata=field.metadata) for field in schema),
            StructField(ACCOUNT, StringType()),
        ]
    )


def plan_quarantine(schema: StructType, needed: Iterable[str], job: InferenceJob) -> Quarantine:
    """Where tasks leave bad rows, and with which columns: those that the job reads, and the reason.

    Raises:
        ColumnCollisionError: a column of the source is called as the reason is.
    """
    import pyarrow as pa

    # The partition's own columns stand in the folder's name, as they do for scores.
    names = [name for name in needed if name not in job.sink.partition and name != FAULT]
    if REASON in names:
        raise ColumnCollisionError([REASON], "the source's SQL or 'prepare'")
    fields = [pa.field(name, _arrow_type(schema[name].dataType)) for name in names]
    folder = swap.staging_uri(str(job.quarantine_sink.folder), swap.new_token())
    return Quarantine(folder, pa.schema([*fields, pa.field(REASON, pa.string())]))


def _arrow_type(type_: DataType) -> Any:
    """Arrow's type for Spark's; times are in UTC, which from 4.2 on has to be said."""
    from pyspark.sql.pandas.types import to_arrow_type

    has_zone = "timezone" in inspect.signature(to_arrow_type).parameters
    zone: dict[str, Any] = {"timezone": "UTC"} if has_zone else {}
    return to_arrow_type(type_, **zone)


def _spark_type(spec: OutputSpec) -> Any:
    from pyspark.sql import types

    scalars: dict[str, Any] = {
        "float16": types.FloatType(),
        "float32": types.FloatType(),
        "float64": types.DoubleType(),
        "int8": types.ByteType(),
        "int16": types.ShortType(),
        "int32": types.IntegerType(),
        "int64": types.LongType(),
        "bool": types.BooleanType(),
        "string": types.StringType(),
    }
    if spec.dtype not in scalars:
        raise ColumnTypeError(spec.name, f"one of {', '.join(scalars)}", spec.dtype, "cast it in the model")
    type_ = scalars[spec.dtype]
    for _size in () if spec.shape in ((), (1,)) else spec.shape:
        type_ = types.ArrayType(type_)
    return type_


def _casts(found: str, wanted: str) -> bool:
    """Whether a column's element type goes into an input's dtype without losing its meaning.

    Whole numbers may go into a narrower dtype: their values are looked at when they are there.
    """
    if "string" in (found, wanted):
        return found == wanted
    if wanted.startswith(("float", "bfloat")):
        return True
    return not found.startswith("float")
