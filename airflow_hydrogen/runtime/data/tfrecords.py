"""TFRecord files of `tf.train.Example` -> DataFrame, without TensorFlow.

A file is a sequence of records: the length (8 bytes), its checksum (4), the data, their checksum (4); see
https://www.tensorflow.org/tutorials/load_data/tfrecord. Spark lists the files and deals them out, so that
patterns, partition folders and the fingerprint of prepared data are those of its other sources. Python
workers read them, each file one task's.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import MissingColumnError, SourceError
from airflow_hydrogen.runtime.data.spark_types import arrow_type
from airflow_hydrogen.runtime.storage import filesystems, s3

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructField, StructType

_SAMPLED_RECORDS = 1_000
_BATCH_ROWS = 4_096
_BATCH_BYTES = 16 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 12
_CHECKSUM_BYTES = 4
_MASK = 0xA282EAD8  # of TensorFlow, so that checksums of data that hold checksums stay good ones
# What `binaryFile` knows; it gives these columns, and those of partition folders behind them.
_LISTING_OPTIONS = {
    option.lower(): option
    for option in ("pathGlobFilter", "recursiveFileLookup", "modifiedBefore", "modifiedAfter", "basePath")
}
_FILE_COLUMNS = ("path", "modificationTime", "length", "content")
_TYPES = {
    "int64_list": ("tinyint", "smallint", "int", "bigint"),
    "float_list": ("float", "double"),
    "bytes_list": ("binary", "string"),
}
_INFERRED = {"int64_list": "bigint", "float_list": "float", "bytes_list": "binary"}
_HINT = "pass a schema, such as schema='age BIGINT, pixels ARRAY<FLOAT>, name STRING'"


class Feature(NamedTuple):
    """How a feature becomes a column.

    Attributes:
        name: of both.
        kind: "int64_list", "float_list" or "bytes_list".
        is_list: the column is an array; else each record has one value, or none, which is null.
        type: Arrow's, of a value.
    """

    name: str
    kind: str
    is_list: bool
    type: pa.DataType


def read_tfrecords(
    spark: SparkSession, uri: str, options: Mapping[str, str], columns: Sequence[str] = ()
) -> DataFrame:
    """Open TFRecord files, plain or gzip, as a DataFrame.

    Args:
        spark: the session.
        uri: a file, a folder or a pattern, as for Spark's readers.
        options: `schema`, Spark's DDL of the columns; without it they are found in the first 1,000 records
            of the first file: a column is an array where one of these has another number of values than
            one, and bytes are binary. Besides, `pathGlobFilter` and what else Spark lists files by.
        columns: of the schema, those to read; all by default.

    Raises:
        SourceError: an unknown option, a schema that no feature fits, or none to be found.
        MissingColumnError: one of `columns` is not there.
    """
    where = f"tfrecord {uri!r}"
    given = {name.lower(): value for name, value in options.items()}
    schema = given.pop("schema", None)
    if unknown := sorted(set(given) - set(_LISTING_OPTIONS)):
        known = ", ".join(["schema", *_LISTING_OPTIONS.values()])
        raise SourceError(where, f"unknown option {', '.join(map(repr, unknown))}; expected {known}")
    # What is in no column is left out only where somebody has chosen the columns.
    is_chosen = bool(columns) or schema is not None
    listed = {_LISTING_OPTIONS[name]: value for name, value in given.items()}
    files = spark.read.format("binaryFile").options(**listed).load(uris.spark_uri(uri))
    if schema is None:
        schema = _inferred_schema(where, files)
    fields = _struct(_fields(where, schema))
    if columns:
        if missing := set(columns) - set(fields.names):
            raise MissingColumnError("column", missing, fields.names)
        fields = _struct([fields[name] for name in columns])
    features = [_feature(where, field.name, field.dataType) for field in fields]
    folders = [field for field in files.schema if field.name not in _FILE_COLUMNS]
    if twice := {field.name for field in folders} & set(fields.names):
        raise SourceError(where, f"{sorted(twice)} are both features and folders: {_HINT}")

    access = s3.current()

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        s3.use(access)
        for batch in batches:
            for place, path in enumerate(batch.column(0).to_pylist()):
                for rows in read_file(path, features, is_chosen=is_chosen):
                    same = np.full(rows.num_rows, place)
                    of_folder = [batch.column(number).take(same) for number in range(1, batch.num_columns)]
                    names = [*rows.schema.names, *batch.schema.names[1:]]
                    yield pa.RecordBatch.from_arrays([*rows.columns, *of_folder], names=names)

    paths = files.select("path", *(f"`{field.name}`" for field in folders))
    return paths.mapInArrow(read, _struct([*fields, *folders]))


def read_file(uri: str, features: Sequence[Feature], *, is_chosen: bool) -> Iterator[pa.RecordBatch]:
    """The records of one file in batches of bounded size.

    Args:
        uri: the file.
        features: the columns.
        is_chosen: a record may have other features than these; else that is an error.

    Raises:
        SourceError: a file that is cut off or damaged, and what does not fit a column; with the number of the
            record, counted from 1.
    """
    known = frozenset(feature.name for feature in features)
    numbered = enumerate(_examples(uri), 1)
    while batch := _some(numbered):
        arrays: list[list[Any]] = [[] for _ in features]
        for number, (example, _) in batch:
            found = example.features.feature
            present = 0
            for feature, values in zip(features, arrays, strict=True):
                message = found.get(feature.name)
                present += message is not None
                values.append(None if message is None else _value(uri, number, feature, message))
            if not is_chosen and present < len(found):
                strange = next(name for name in found if name not in known)
                raise _damaged(
                    uri,
                    number,
                    f"feature {strange!r} is not among the first records of the first file; {_HINT}",
                )
        columns = [
            _column(uri, batch[0][0], feature, values)
            for feature, values in zip(features, arrays, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, names=[feature.name for feature in features])


def _some(numbered: Iterator[tuple[int, tuple[Any, int]]]) -> list[tuple[int, tuple[Any, int]]]:
    batch, size = [], 0
    for item in itertools.islice(numbered, _BATCH_ROWS):
        batch.append(item)
        size += item[1][1]
        if size >= _BATCH_BYTES:
            break
    return batch


# --- files -------------------------------------------------------------------------------------------


def records(uri: str) -> Iterator[bytes]:
    """The records of a TFRecord file, each checked.

    Raises:
        SourceError: a file that is cut off, damaged, or something else.
    """
    with _opened(uri) as stream:
        number = 0
        while header := _read(stream, _HEADER_BYTES, uri, number + 1):
            number += 1
            if len(header) < _HEADER_BYTES:
                raise _damaged(uri, number, "the file ends in the middle of it")
            if not _is_intact(header[:8], header[8:]):
                kind = ", or the file is no TFRecord file, plain or gzip" if number == 1 else ""
                raise _damaged(uri, number, f"its length has another checksum: it is damaged{kind}")
            (length,) = struct.unpack("<Q", header[:8])
            data = _read(stream, length, uri, number)
            checksum = _read(stream, _CHECKSUM_BYTES, uri, number)
            if len(data) < length or len(checksum) < _CHECKSUM_BYTES:
                raise _damaged(uri, number, "the file ends in the middle of it")
            if not _is_intact(data, checksum):
                raise _damaged(uri, number, "its data have another checksum: it is damaged")
            yield data


def _examples(uri: str) -> Iterator[tuple[Any, int]]:
    """The examples of a file, with their bytes."""
    from google.protobuf.message import DecodeError

    kind = example_class()
    for number, data in enumerate(records(uri), 1):
        try:
            example = kind.FromString(data)
        except DecodeError as error:
            raise _damaged(uri, number, f"it is no tf.train.Example: {error}") from None
        if example.feature_lists:
            raise _damaged(uri, number, "it is a tf.train.SequenceExample; expected tf.train.Example")
        yield example, len(data)


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    """The file's plain bytes. That it is gzip is seen by its first bytes: names say nothing."""
    filesystem, path = filesystems.resolve(uri)
    with filesystem.open_input_file(path) as file:
        start = file.read(_HEADER_BYTES)
        file.seek(0)
        # A record's length may begin as gzip does, but then it has its checksum.
        is_gzip = start.startswith(_GZIP) and not _is_intact(start[:8], start[8:])
        plain = pa.CompressedInputStream(file, "gzip") if is_gzip else file
        with pa.BufferedInputStream(plain, _BUFFER_BYTES) as stream:
            yield stream


def _read(stream: Any, size: int, uri: str, number: int) -> bytes:
    try:
        return bytes(stream.read(size))
    except OSError as error:
        raise _damaged(uri, number, f"it cannot be decompressed: {error}") from error


def _is_intact(data: bytes, checksum: bytes) -> bool:
    crc = _crc32c()(data)
    return checksum == struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _damaged(uri: str, number: int, problem: str) -> SourceError:
    return SourceError(f"tfrecord {uri!r}", f"record {number}: {problem}")


# --- records -> columns ------------------------------------------------------------------------------


def _value(uri: str, number: int, feature: Feature, message: Any) -> Any:
    """What a cell of the column holds. Asked for each cell: what is usual comes first."""
    values = getattr(message, feature.kind).value
    count = len(values)
    if not count:
        kind = message.WhichOneof("kind")
        if kind not in (None, feature.kind):
            raise _damaged(
                uri, number, f"feature {feature.name!r} is a {kind}, expected {feature.kind}; {_HINT}"
            )
        return values if feature.is_list and kind else None
    if feature.is_list:
        return values
    if count > 1:
        raise _damaged(uri, number, f"feature {feature.name!r} has {count} values, expected one; {_HINT}")
    return values[0]


def _column(uri: str, first: int, feature: Feature, values: list[Any]) -> pa.Array:
    try:
        if not feature.is_list:
            return pa.array(values, feature.type)
        ends = itertools.accumulate((len(row) if row is not None else 0 for row in values), initial=0)
        # A list without a beginning is null; the last number is where the last list ends.
        offsets = [end if row is not None else None for row, end in zip([*values, ()], ends, strict=True)]
        flat = pa.array(itertools.chain.from_iterable(row for row in values if row is not None), feature.type)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    except (pa.ArrowInvalid, OverflowError, UnicodeDecodeError) as error:
        records = f"records {first} to {first + len(values) - 1}"
        raise SourceError(
            f"tfrecord {uri!r}",
            f"{records}: feature {feature.name!r} does not fit {feature.type}: {error}; {_HINT}",
        ) from error


def _inferred_schema(where: str, files: DataFrame) -> str:
    """The DDL of what is in the first records of the first file that has any."""
    # Spark shows them as URIs, encoded.
    for uri in sorted(unquote(path) for path in files.inputFiles()):
        sample = list(itertools.islice(_examples(uri), _SAMPLED_RECORDS))
        if sample:
            found = _inferred(where, sample).items()
            return ", ".join(f"`{name.replace('`', '``')}` {type_}" for name, type_ in found)
    raise SourceError(where, f"there is no record by which to know the columns; {_HINT}")


def _inferred(where: str, sample: Iterable[tuple[Any, int]]) -> dict[str, str]:
    kinds: dict[str, str | None] = {}
    lists: set[str] = set()
    for example, _ in sample:
        for name, message in example.features.feature.items():
            kind = message.WhichOneof("kind")
            before = kinds.get(name)
            if kind is None:
                kinds.setdefault(name, None)
                continue
            if before not in (None, kind):
                raise SourceError(
                    where, f"feature {name!r} is a {before} in one record and a {kind} in another"
                )
            kinds[name] = kind
            if len(getattr(message, kind).value) != 1:
                lists.add(name)
    if not kinds:
        raise SourceError(where, "the first records have no features: they are no tf.train.Example")
    if empty := sorted(name for name, kind in kinds.items() if kind is None):
        raise SourceError(where, f"feature {empty[0]!r} has no value in the first records; {_HINT}")
    found = {name: _INFERRED[kind] for name, kind in sorted(kinds.items()) if kind is not None}
    return {name: f"array<{type_}>" if name in lists else type_ for name, type_ in found.items()}


def _fields(where: str, ddl: str) -> list[StructField]:
    from pyspark.sql.types import StructType

    found = StructType.fromDDL(ddl)
    if not isinstance(found, StructType) or not found.fields:
        raise SourceError(where, f"schema {ddl!r} has no columns; {_HINT}")
    return found.fields


def _feature(where: str, name: str, type_: DataType) -> Feature:
    from pyspark.sql.types import ArrayType

    is_list = isinstance(type_, ArrayType)
    element = type_.elementType if isinstance(type_, ArrayType) else type_
    kind = next((kind for kind, types in _TYPES.items() if element.simpleString() in types), None)
    if kind is None:
        known = ", ".join(itertools.chain(*_TYPES.values()))
        raise SourceError(
            where,
            f"column {name!r} of the schema is {type_.simpleString()}; expected {known}, or an array of one",
        )
    return Feature(name, kind, is_list, arrow_type(element))


def _struct(fields: Iterable[StructField]) -> StructType:
    from pyspark.sql.types import StructType

    return StructType(list(fields))


# --- libraries ---------------------------------------------------------------------------------------


@functools.cache
def _crc32c() -> Any:
    try:
        import google_crc32c
    except ImportError as error:
        raise _missing("google-crc32c") from error
    return google_crc32c.value


@functools.cache
def example_class() -> Any:
    """Protobuf's class of `tf.train.Example`, made without TensorFlow's files.

    `feature_lists` is what a `SequenceExample` has in that place.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise _missing("protobuf") from error
    of = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="example", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, bool], within: Any = None) -> Any:
        made = (within.nested_type if within is not None else file.message_type).add(name=name)
        for number, (field, type_, repeated) in enumerate(fields, 1):
            made.field.add(
                name=field,
                number=number,
                type=type_,
                label=of.LABEL_REPEATED if repeated else of.LABEL_OPTIONAL,
            )
        return made

    message("BytesList", ("value", of.TYPE_BYTES, True))
    message("FloatList", ("value", of.TYPE_FLOAT, True))
    message("Int64List", ("value", of.TYPE_INT64, True))
    kinds = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}
    feature = message("Feature", *((kind, of.TYPE_MESSAGE, False) for kind in kinds))
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.type_name, field.oneof_index = f".example.{kinds[field.name]}", 0
    features = message("Features", ("feature", of.TYPE_MESSAGE, True))
    entry = message(
        "FeatureEntry", ("key", of.TYPE_STRING, False), ("value", of.TYPE_MESSAGE, False), within=features
    )
    entry.field[1].type_name = ".example.Feature"
    entry.options.map_entry = True
    features.field[0].type_name = ".example.Features.FeatureEntry"
    example = message(
        "Example", ("features", of.TYPE_MESSAGE, False), ("feature_lists", of.TYPE_BYTES, False)
    )
    example.field[0].type_name = ".example.Features"
    pool = descriptor_pool.DescriptorPool()  # its own: TensorFlow's classes may be here too
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("example.Example"))


def _missing(package: str) -> SourceError:
    return SourceError(
        "tfrecord",
        f"{package} is not installed here: install airflow-hydrogen[tfrecord] on driver and executors",
    )
