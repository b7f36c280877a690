"""Source -> stream: rows as Spark reads them, and how what messages hold becomes their columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import ColumnCollisionError, InvalidJobError, SourceError
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.data import kafka, sources
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.data.messages import (
    FAULT,
    NO_VALUE,
    RAW,
    VALUE,
    JsonValues,
    ParquetValues,
    Values,
    wrong,
)
from airflow_hydrogen.runtime.data.spark_types import arrow_type
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

# Spark has no values of these types: it checks them where it writes a table, and reads nothing as them.
# In a schema's JSON, in which a name never stands behind such a key.
_SIZED = re.compile(r'"(?:type|elementType|keyType|valueType)":"((?:var)?char\(\d+\))"')

KEY, HEADERS = "kafka_key", "kafka_headers"
KAFKA = (KEY, "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp", HEADERS)
"""What rows of Kafka have beside the columns of their values."""
TRACES = (*KAFKA, RAW, FAULT)
"""Columns by which a row that was set aside is found again at its source."""

# What Confluent's serializers write before a value: this byte, and four of the schema's number.
_MAGIC, _FRAME_BYTES = b"\x00", 5
_LONGEST = 2**31 - 1

# A consumer's own defaults, 500 messages and 1 MB of a partition at a time, leave it waiting. So does what it
# fetches ahead behind a batch's last message: Spark asks for offsets then, and is answered after that.
_FETCHED = {
    "kafka.max.poll.records": "10000",
    "kafka.max.partition.fetch.bytes": str(8 * 2**20),
    "kafka.fetch.max.wait.ms": "10",
}

_BROKEN = "_hydrogen_broken"
_DECODED = "_hydrogen_decoded"

# What Arrow and Spark take for the same where JSON is concerned. Of dates and timestamps Spark knows many
# spellings, and a decimal of too many digits is rounded.
_BY_TASKS = ("boolean", "byte", "short", "integer", "long", "float", "double", "string")


@dataclass(frozen=True)
class Rows:
    """Rows of a stream, or of a batch of it.

    Attributes:
        frame: what Spark reads.
        schema: of the rows that come of it.
        values: decodes its column `VALUE` in tasks; None: the frame has the rows' columns.
    """

    frame: DataFrame
    schema: StructType
    values: Values | None = None

    def of(self, batch: DataFrame) -> Rows:
        """Those of one batch."""
        return replace(self, frame=batch)

    def decoded(self) -> DataFrame:
        """All columns of all rows."""
        if self.values is None:
            return self.frame
        run = partial(self.values.rows, names=self.schema.names)
        return self.frame.mapInArrow(run, self.schema)


def open_stream(
    spark: SparkSession,
    source: Source,
    access: Access,
    max_rows: int | None,
    left_out: Collection[str] = (),
) -> Rows:
    """Open a stream.

    Args:
        spark: the session.
        source: of messages, files or changes of a table.
        access: what opens the connection that the source names.
        max_rows: of one micro-batch; None: all that are there.
        left_out: columns of `KAFKA` that nobody asks for, which Spark would make for each message.

    Returns:
        Rows with the columns of the schema, those of `KAFKA` where they come from there, and where they had
        to be decoded `RAW` and `FAULT`.

    Raises:
        InvalidJobError: a schema that is none.
        SourceError: a topic, folder or table that is not there, or a broker that does not answer.
        ColumnCollisionError: the schema names one of our own columns.
    """
    try:
        if source.kind == "kafka":
            return _messages(spark, source, access, max_rows, left_out)
        frame = _files(spark, source) if source.kind == "files_stream" else _changes(spark, source)
        return Rows(frame, frame.schema)
    except spark_errors() as error:
        absent = "DELTA_SCHEMA_NOT_SET" in str(error)
        reason = "there is no Delta table in this folder" if absent else root_cause(error)
        raise SourceError(str(source), reason) from error


def _messages(
    spark: SparkSession, source: Source, access: Access, max_rows: int | None, left_out: Collection[str]
) -> Rows:
    from pyspark.sql import functions

    reader = spark.readStream.format("kafka").options(**_FETCHED).option("startingOffsets", "earliest")
    reader = reader.options(**kafka.client_options(source, access), **source.options)
    reader = reader.option("subscribe", str(source.topic))
    reader = reader.option("includeHeaders", str(HEADERS not in left_out))
    if max_rows is not None:
        reader = reader.option("maxOffsetsPerTrigger", max_rows)
    value = functions.col(VALUE)
    asked = (name for name in KAFKA if name not in left_out)
    origins = [functions.col(name.removeprefix("kafka_")).alias(name) for name in asked]
    if (values := _by_tasks(source)) is not None:
        return _undecoded(reader.load().select(VALUE, *origins), _schema(source), values)
    decode = _decode_json if source.payload == "json" else _decode_avro
    decoded, names, broken = decode(spark, source, value)
    _require_free(names)
    fault = functions.when(value.isNull(), NO_VALUE).when(broken, wrong(str(source.payload)))
    frame = (
        reader.load()
        .withColumn(_DECODED, decoded)
        .select(
            *(functions.col(_DECODED).getField(name).alias(name) for name in names),
            *origins,
            value.alias(RAW),
            fault.alias(FAULT),
        )
        .withColumn(RAW, functions.when(functions.col(FAULT).isNotNull(), functions.col(RAW)))
    )
    return Rows(frame, frame.schema)


def _by_tasks(source: Source) -> Values | None:
    """What decodes messages in tasks; None where Spark does: Avro, and JSON with types such as dates."""
    import pyarrow as pa

    if source.payload not in ("json", "parquet"):
        return None
    schema = _schema(source)
    _require_free(schema.names)
    fields = pa.schema([(item.name, arrow_type(item.dataType)) for item in schema])
    if source.payload == "parquet":
        return ParquetValues(fields)
    is_by_tasks = all(_is_by_tasks(item.dataType.jsonValue()) for item in schema)
    return JsonValues(fields) if is_by_tasks else None


def _undecoded(frame: DataFrame, schema: StructType, values: Values) -> Rows:
    """Rows of messages that tasks decode."""
    from pyspark.sql.types import BinaryType, StringType, StructField, StructType

    # Whatever the schema says, a field may be missing in a message.
    named = [StructField(item.name, item.dataType) for item in schema]
    faults = [StructField(RAW, BinaryType()), StructField(FAULT, StringType())]
    return Rows(frame, StructType([*named, *frame.schema.fields[1:], *faults]), values)


def _is_by_tasks(type_: Any) -> bool:
    """Whether tasks decode a type of Spark's, in its JSON form."""
    if isinstance(type_, str):
        return type_ in _BY_TASKS
    return type_["type"] == "array" and _is_by_tasks(type_["elementType"])


def _decode_json(spark: SparkSession, source: Source, value: Column) -> tuple[Column, list[str], Column]:
    """The decoded value, the names of its fields, and whether it is broken."""
    from pyspark.sql import functions
    from pyspark.sql.types import ArrayType, StringType, StructType

    schema = _schema(source)
    text = value.cast("string")
    options = {"columnNameOfCorruptRecord": _BROKEN, "allowSingleQuotes": "false"}
    decoded = functions.from_json(text, schema.add(_BROKEN, StringType()), options)
    found = functions.col(_DECODED)
    names = [name for name in schema.names if name != _BROKEN]
    # Spark reads the first of several objects, and says nothing of what comes behind it.
    objects = functions.from_json(
        functions.concat(functions.lit("["), text, functions.lit("]")), ArrayType(StructType([]))
    )
    # Nothing is behind a flat object whose only closing brace ends the text: it need not be read twice.
    is_flat = (
        text.startswith("{")
        & (functions.locate("{", text, 2) == 0)
        & (functions.locate("}", text) == functions.length(text))
    )
    is_one = functions.when(is_flat, True).otherwise(functions.size(objects).eqNullSafe(1))
    return decoded, names, found.isNull() | found.getField(_BROKEN).isNotNull() | ~is_one


def _decode_avro(spark: SparkSession, source: Source, value: Column) -> tuple[Column, list[str], Column]:
    """The same; Spark makes nulls of all columns of a message that it cannot decode."""
    import json
    from functools import reduce

    from pyspark.sql import functions
    from pyspark.sql.avro.functions import from_avro

    try:
        document = json.loads(str(source.schema))
        names = [str(item["name"]) for item in document["fields"]]
    except (ValueError, KeyError, TypeError):
        raise _no_schema(source, "the JSON of an Avro record", "") from None
    if not names:
        raise _no_schema(source, "the JSON of an Avro record", "it has no fields")
    has_frame = functions.lit(True)
    if source.payload == "confluent-avro":
        has_frame = functions.substring(value, 1, 1) == functions.lit(_MAGIC)
        value = functions.substring(value, _FRAME_BYTES + 1, _LONGEST)
    decoded = from_avro(value, str(source.schema), {"mode": "PERMISSIVE"})
    found = functions.col(_DECODED)
    nothing = reduce(lambda all_, name: all_ & found.getField(name).isNull(), names, functions.lit(True))
    return decoded, names, found.isNull() | nothing | ~has_frame


def _files(spark: SparkSession, source: Source) -> DataFrame:
    from pyspark.sql import functions
    from pyspark.sql.types import StringType

    assert source.uri is not None
    assert source.format is not None
    texts = source.format in ("csv", "json")
    if source.schema is not None:
        schema = _schema(source)
        _require_free(schema.names)
    else:
        schema = _schema_of_files(spark, source)
    reader = spark.readStream.format(source.format)
    if texts:
        schema = schema.add(RAW, StringType())
        reader = reader.option("columnNameOfCorruptRecord", RAW)
    if source.format == "csv":
        # A file whose header has other columns, or another order, is an error and not read by position.
        reader = reader.option("header", "true").option("enforceSchema", "false")
    frame = reader.options(**source.options).schema(schema).load(uris.spark_uri(source.uri))
    if not texts:
        return frame
    broken = f"the line is not {source.format.upper()} of the schema"
    return frame.withColumn(FAULT, functions.when(functions.col(RAW).isNotNull(), broken))


def _schema_of_files(spark: SparkSession, source: Source) -> StructType:
    from pyspark.sql.types import StructType

    there = Source.read(str(source.format), source.uri)
    try:
        return StructType(list(sources.read(spark, there).schema))
    except SourceError as error:
        if error.reason == sources.no_files(there):
            hint = ", by which its columns are known. Give it a schema where it begins before the first file"
            raise SourceError(str(source), f"{error.reason}{hint}") from error
        raise SourceError(str(source), error.reason) from error


def _changes(spark: SparkSession, source: Source) -> DataFrame:
    assert source.uri is not None
    reader = spark.readStream.format("delta").options(**source.options)
    if source.version is not None:
        reader = reader.option("startingVersion", str(source.version))
    return reader.load(uris.spark_uri(source.uri))


def _schema(source: Source) -> StructType:
    from pyspark.sql.types import StructType

    try:
        schema: Any = StructType.fromDDL(str(source.schema))
    except spark_errors() as error:
        raise _no_schema(
            source, "Spark's DDL of columns, such as 'a DOUBLE, b INT'", root_cause(error)
        ) from None
    if not isinstance(schema, StructType) or not schema.names:
        raise _no_schema(source, "Spark's DDL of columns, such as 'a DOUBLE, b INT'", "")
    names = Counter(name.lower() for name in schema.names)
    if twice := [name for name, times in names.items() if times > 1]:
        raise _no_schema(source, "Spark's DDL of columns", f"it has {', '.join(twice)} more than once")
    if sized := _SIZED.search(schema.json()):
        raise _no_schema(source, "Spark's DDL of columns", f"{sized[1]} is for tables alone; use STRING")
    return schema


def _no_schema(source: Source, expected: str, why: str) -> InvalidJobError:
    return InvalidJobError(
        f"schema of source {source} must be {expected}, found {source.schema!r}" + (f": {why}" if why else "")
    )


def _require_free(names: Sequence[str]) -> None:
    if taken := {*TRACES, _BROKEN, _DECODED} & set(names):
        raise ColumnCollisionError(taken, "the source's schema")
