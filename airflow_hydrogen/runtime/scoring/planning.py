"""What a scoring will do: checked against the model before any row is read, computed when it is placed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.differences import plan_columns, require_fit
from airflow_hydrogen.contract.errors import (
    ColumnCollisionError,
    ColumnTypeError,
)
from airflow_hydrogen.contract.jobs import BatchRows, InferenceJob
from airflow_hydrogen.contract.signatures import OutputSpec, Signature
from airflow_hydrogen.contract.stores import is_s3
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.data import scans
from airflow_hydrogen.runtime.data.messages import FAULT, RAW, VALUE
from airflow_hydrogen.runtime.data.recipes import same_files
from airflow_hydrogen.runtime.data.scans import Scan
from airflow_hydrogen.runtime.data.spark_types import arrow_type, file_metadata, file_schema, is_plain
from airflow_hydrogen.runtime.data.streams import TRACES, Rows
from airflow_hydrogen.runtime.gang import profiles
from airflow_hydrogen.runtime.gang.slots import task_slots, threads_per_task
from airflow_hydrogen.runtime.models import engines
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.scoring import direct
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT
from airflow_hydrogen.runtime.scoring.direct import RowGroup
from airflow_hydrogen.runtime.scoring.inference import REASON, Scorer, Sifting
from airflow_hydrogen.runtime.scoring.partitions import Partitions
from airflow_hydrogen.runtime.session import is_local
from airflow_hydrogen.runtime.sinks.divided_files import PARTITION
from airflow_hydrogen.runtime.sinks.tables import LABEL, Types
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

_ARROW_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
_ARROW_BATCH_DEFAULT = "10000"
_CODEC = "spark.sql.parquet.compression.codec"
_CODECS = {"uncompressed": "none", "lz4_raw": "lz4"}


@dataclass(frozen=True)
class Scoring:
    """What is to be done.

    Attributes:
        schema: of what is written: kept columns and predictions.
        rows: how many there are; None where that takes reading them.
        types: of the partition's columns that the source has.
        bad_rows: the schema of rows that cannot be scored; None: they fail, or are dropped.
        scorer: what each task does.
        job: what is scored.
        run: gives tasks their batches: scorer and schema of its answers -> their frame.
        through_spark: the rows that Spark reads and gives the tasks; None: tasks read files themselves.
        require_same_files: raises where files that Spark has read were written anew meanwhile.
        codec: of Parquet files that Spark would write.
        spark: its version.
        finish: what Spark adds to the scored rows, and then has to write them; None: nothing.
    """

    schema: StructType
    rows: int | None
    types: Types
    bad_rows: pa.Schema | None
    scorer: Scorer
    job: InferenceJob
    run: Callable[[Scorer, StructType], DataFrame]
    through_spark: DataFrame | None
    require_same_files: Callable[[], None]
    codec: str
    spark: str
    finish: Callable[[DataFrame], DataFrame] | None = None

    def frame(self, output: TaskFiles | None = None, bad_output: TaskFiles | None = None) -> DataFrame:
        """The scored rows and the accounts of the tasks, or the accounts alone.

        Args:
            output: where tasks write scored rows themselves.
            bad_output: where they write those that cannot be scored.
        """
        scorer = replace(self.scorer, output=output, bad_output=bad_output)
        if output is not None:
            return self.run(scorer, _answers(None))
        scored = self.run(scorer, _answers(self.schema, divided=scorer.partitions is not None))
        return scored if self.finish is None else self.finish(scored)

    def is_written_by_workers(self, folder: str) -> bool:
        """Whether tasks may write the files of a folder.

        The store has to be one from which they load the model, or that the job's connection opens to them,
        and the types have to be among those that they write as Spark does.
        """
        model, target = uris.parse(self.job.model_uri), uris.parse(folder)
        of_model = (target.store, target.authority) == (model.store, model.authority)
        is_seen = target.scheme == "file" or of_model or (self.job.s3 is not None and is_s3(folder))
        are_plain = all(is_plain(item.dataType.jsonValue()) for item in self.schema)
        return is_seen and are_plain and self.finish is None

    def files(self, folder: str) -> TaskFiles:
        """Where tasks write scored rows, with what Spark would put into the files."""
        return TaskFiles(
            purpose="sink",
            folder=folder,
            schema=file_schema(self.schema),
            compression=_CODECS.get(self.codec, self.codec),
            metadata=file_metadata(self.schema, self.spark),
            copied=self.through_spark is not None,
        )


def score(
    spark: SparkSession,
    frame: DataFrame,
    manifest: Manifest,
    job: InferenceJob,
    label: Mapping[str, Any] | None = None,
    added: Mapping[str, str] | None = None,
    undecoded: Rows | None = None,
) -> Scoring:
    """The kept columns and predictions: checked now, computed when they are placed.

    Args:
        spark: the session.
        frame: the rows.
        manifest: of the model.
        job: what is scored.
        label: what made the predictions, for the metadata of their columns.
        added: columns that every row gets behind them -> their text.
        undecoded: the same rows, for tasks to decode what is needed of them; None: Spark gives them columns.

    Raises:
        MissingColumnError, ColumnTypeError, ColumnCollisionError, InvalidJobError: the columns do not fit the
            model, or the sink.
        SourceMisfitError: more than one of these.
    """
    require_fit(manifest.signature, columns_of(frame.schema), job)
    # By the others rows are found again that were set aside.
    wanted = TRACES if job.on_bad_row == "quarantine" else (RAW, FAULT)
    traces = [name for name in wanted if job.stream is not None and name in frame.columns]
    # What was decoded has both; a column of the source's own may be called like the one.
    ours = (RAW, FAULT) if FAULT in traces else ()
    columns = [name for name in frame.columns if name not in ours]
    keep, outputs = plan_columns(columns, manifest.signature, job)
    profile = profiles.of_scoring(spark, job.gpus_per_task)
    slots = task_slots(spark, profile).total
    found = {name.lower(): name for name in frame.columns}
    partition = {name: found[name.lower()] for name in job.sink.partition if name.lower() in found}
    constants = {column: job.sink.partition[name] for name, column in partition.items()}
    partitions = Partitions.of(job.sink, frame.schema)
    features = [column.name for column in manifest.signature.columns]
    divided_by = partitions.columns if partitions else ()
    needed = list(dict.fromkeys([*features, *keep, *constants, *divided_by, *traces]))
    scorer = Scorer(
        model_uri=uris.canonical(job.model_uri),
        manifest=manifest,
        predictor=job.predictor,
        engine=engines.choose(job.model_uri, manifest, job.engine, job.predictor, job.gpus_per_task),
        keep=tuple(keep),
        outputs=outputs,
        constants=constants,
        batch_rows=job.batch_rows,
        threads=threads_per_task(spark, slots),
        sifting=_sifting(job),
        added=added or {},
        partitions=partitions,
        s3=job.s3,
        hides_gpus=not is_local(spark),
    )
    scan = None if job.prepare or job.stream else scans.scan_of(frame, job.source, needed)
    groups = direct.row_groups(scan.files) if scan else []
    rows, run = None, partial(_read_by_spark, profile, frame, needed)
    if undecoded is not None:
        run = partial(_decoded_by_tasks, profile, undecoded, needed)
    if scan and groups:
        rows = scan.files.total_rows if scan.condition is None else None
        run = partial(_read_by_tasks, profile, spark, scan, direct.deal(groups, slots), needed)
    return Scoring(
        schema=output_schema(frame.schema, keep, outputs, manifest.signature, label, scorer.added),
        rows=rows,
        types={name: frame.schema[column].dataType for name, column in partition.items()},
        bad_rows=quarantine_schema(frame.schema, needed, job) if job.on_bad_row == "quarantine" else None,
        scorer=scorer,
        job=job,
        run=run,
        through_spark=None if groups else frame,
        require_same_files=(lambda: None) if groups or job.stream else same_files(frame, str(job.source)),
        codec=str(spark.conf.get(_CODEC)).lower(),
        spark=spark.version,
    )


def _sifting(job: InferenceJob) -> Sifting | None:
    if job.on_bad_row == "fail":
        return None
    return Sifting(str(job.sink), job.max_bad_rows if isinstance(job.max_bad_rows, int) else None)


def _read_by_tasks(
    profile: ResourceProfile | None,
    spark: SparkSession,
    scan: Scan,
    hands: Sequence[Sequence[RowGroup]],
    columns: Sequence[str],
    scorer: Scorer,
    schema: StructType,
) -> DataFrame:
    """Tasks read their row groups themselves; each gets its number as its only row."""

    def run(numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in numbers:
            for number in batch.column(0).to_pylist():
                rows = direct.rows_at_once(scan, hands[number], scorer.batch_rows)
                yield from scorer(direct.read(scan, hands[number], columns, rows))

    return spark.range(0, len(hands), 1, len(hands)).mapInArrow(run, schema, profile=profile)


def _read_by_spark(
    profile: ResourceProfile | None,
    frame: DataFrame,
    columns: Sequence[str],
    scorer: Scorer,
    schema: StructType,
) -> DataFrame:
    """Spark reads, and gives tasks batches."""
    _cut_batches(frame.sparkSession, scorer.batch_rows)

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return scorer(batches)

    needed = frame.select(*(f"`{name}`" for name in columns))
    return needed.mapInArrow(run, schema, profile=profile)


def _decoded_by_tasks(
    profile: ResourceProfile | None, rows: Rows, columns: Sequence[str], scorer: Scorer, schema: StructType
) -> DataFrame:
    """Spark reads, and gives tasks batches of what they have to decode."""
    _cut_batches(rows.frame.sparkSession, scorer.batch_rows)
    values = rows.values
    assert values is not None

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return scorer(values.rows(batches, columns))

    untouched = [name for name in rows.frame.columns if name in columns]
    return rows.frame.select(VALUE, *untouched).mapInArrow(run, schema, profile=profile)


def _cut_batches(spark: SparkSession, rows: BatchRows) -> None:
    """Batches that arrive in the size of the model's calls are not joined, which saves a copy."""
    if rows == "auto":
        return
    if is_connect(spark):
        if spark.conf.get(_ARROW_BATCH) == _ARROW_BATCH_DEFAULT:
            spark.conf.set(_ARROW_BATCH, rows)
    elif not spark.sparkContext.getConf().contains(_ARROW_BATCH):
        spark.conf.set(_ARROW_BATCH, rows)


def columns_of(schema: StructType) -> list[tuple[str, str]]:
    """Columns and types of a DataFrame, as `contract.differences` is told them."""
    from pyspark.sql.types import UserDefinedType

    def spelled(type_: Any) -> str:
        while isinstance(type_, UserDefinedType):
            type_ = type_.sqlType()
        return str(type_.simpleString())

    return [(field.name, spelled(field.dataType)) for field in schema]


def output_schema(
    schema: StructType,
    keep: Iterable[str],
    outputs: Mapping[str, str],
    signature: Signature,
    label: Mapping[str, Any] | None = None,
    added: Iterable[str] = (),
) -> StructType:
    """The schema of what is written: kept columns with their types, outputs with the signature's, texts."""
    from pyspark.sql.types import StringType, StructField, StructType

    specs = {spec.name: spec for spec in signature.outputs}
    return StructType(
        [
            *(schema[name] for name in keep),
            *(
                StructField(column, _spark_type(specs[name]), metadata={LABEL: label} if label else None)
                for name, column in outputs.items()
            ),
            *(StructField(name, StringType()) for name in added),
        ]
    )


def quarantine_schema(schema: StructType, needed: Iterable[str], job: InferenceJob) -> pa.Schema:
    """The columns of bad rows: those that the job reads, and the reason.

    Raises:
        ColumnCollisionError: a column of the source is called as the reason is.
    """
    import pyarrow as pa

    # The partition's own columns stand in the folder's name, as they do for scores.
    own = {name.lower() for name in job.sink.partition_columns}
    names = [name for name in needed if name.lower() not in own and name != FAULT]
    if REASON in names:
        raise ColumnCollisionError([REASON], "the source's SQL or 'prepare'")
    fields = [pa.field(name, arrow_type(schema[name].dataType)) for name in names]
    return pa.schema([*fields, pa.field(REASON, pa.string())])


def _answers(schema: StructType | None, *, divided: bool = False) -> StructType:
    """What tasks answer: accounts, and scored rows of a schema, each null where the other one is."""
    from pyspark.sql.types import IntegerType, StringType, StructField, StructType

    rows = schema.fields if schema is not None else ()
    return StructType(
        [
            *(StructField(field.name, field.dataType, metadata=field.metadata) for field in rows),
            *([StructField(PARTITION, IntegerType())] if divided else []),
            StructField(ACCOUNT, StringType()),
        ]
    )


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
