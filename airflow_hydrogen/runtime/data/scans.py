"""What Spark would scan for a frame: files, values of partition columns, and the condition that is left.

All of it comes from Spark's own plan, so that files are those that Spark would read: it has resolved the
condition, pruned the partitions and reconstructed a Delta table's log. Where a plan is anything but a scan
of Parquet with conditions that Arrow decides alike (`conditions`), it is left to Spark.
"""

from __future__ import annotations

import datetime
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.data import conditions
from airflow_hydrogen.runtime.data.conditions import Condition
from airflow_hydrogen.runtime.data.files import (
    DatasetFiles,
    ListedFile,
    Listing,
    PartitionValue,
    list_dataset,
    read_footers,
)
from airflow_hydrogen.runtime.data.footers import ColumnBytes
from airflow_hydrogen.runtime.data.sources import is_plain_parquet
from airflow_hydrogen.runtime.data.spark_types import arrow_type
from airflow_hydrogen.runtime.storage import s3

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructField, StructType

_DELTA = "org.apache.spark.sql.delta."
# Reader features that change nothing in how a file without deletion vector and mapped columns is read.
_HARMLESS = {"deletionVectors", "columnMapping", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}
_WHOLE = re.compile(r"-?[0-9]+")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_ELSEWHERE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")
_EPOCH = datetime.date(1970, 1, 1)


@dataclass(frozen=True)
class Scan:
    """Rows that can be read without Spark.

    Attributes:
        files: the files, and the columns that were asked for, with those of the condition.
        condition: what a row of them is asked; None where all are wanted.
    """

    files: DatasetFiles
    condition: Condition | None


@dataclass(frozen=True)
class _Plan:
    """A scan of files in Spark's physical plan, and the conditions above it."""

    scan: Any
    filters: tuple[Any, ...]

    @property
    def location(self) -> Any:
        return self.scan.relation().location()

    @property
    def root(self) -> str:
        """The folder, or the first of the files."""
        return str(self.location.rootPaths().head().toString())

    @property
    def schema(self) -> StructType:
        from pyspark.sql.types import StructType

        return StructType.fromJson(json.loads(self.scan.relation().schema().json()))

    @property
    def partition_schema(self) -> StructType:
        from pyspark.sql.types import StructType

        return StructType.fromJson(json.loads(self.scan.relation().partitionSchema().json()))


@dataclass(frozen=True)
class _Columns:
    """The columns of files, where no plan is there to be asked."""

    schema: StructType

    @property
    def partition_schema(self) -> StructType:
        from pyspark.sql.types import StructType

        return StructType()


def scan_of(frame: DataFrame, source: Source, columns: Sequence[str]) -> Scan | None:
    """The files that hold a frame's rows, where they can be read as Spark would.

    Args:
        frame: the source's rows, with nothing done to them.
        source: what the frame reads.
        columns: those that are needed.

    Returns:
        The list, made once, or None where Spark has to read.
    """
    if is_connect(frame):
        return _scan_on_connect(frame, source, columns)
    from py4j.protocol import Py4JError

    try:
        return _scan_of(frame, source, columns)
    except Py4JError as error:  # plans are no public interface: another release may have another one
        print(f"{source}: Spark reads it, because its plan cannot be looked into: {error}", flush=True)
        return None


def _scan_of(frame: DataFrame, source: Source, columns: Sequence[str]) -> Scan | None:
    is_delta = source.kind in ("delta", "table")
    is_plain = source.kind == "iceberg" or is_plain_parquet(replace(source, where=None, where_args={}))
    if not is_delta and not is_plain:
        return None
    plan = _plan_of(frame)
    if plan is None or plan.location.getClass().getName().startswith(_DELTA) != is_delta:
        return None
    if not _is_seen_by_all(plan.root, dict(frame.sparkSession.sparkContext.getConf().getAll())):
        return None
    wanted = [conditions.translate(condition) for condition in plan.filters]
    known = [condition for condition in wanted if condition is not None]
    if len(known) < len(wanted):
        return None
    condition = conditions.all_of(known)
    needed = list(dict.fromkeys([*columns, *sorted(condition.columns if condition else ())]))
    if source.kind == "iceberg":
        found = _named_files(plan)
    else:
        found = _delta_files(plan) if is_delta else _parquet_files(plan, source)
    return None if found is None else _scan(found, plan, needed, condition)


def _scan_on_connect(frame: DataFrame, source: Source, columns: Sequence[str]) -> Scan | None:
    """A folder of files that are all wanted: whatever else there is to a scan, its plan alone would tell."""
    assert source.uri is not None or not is_plain_parquet(source)
    if not is_plain_parquet(source) or not _is_seen_by_all(str(source.uri), {}):
        return None
    listing = list_dataset(str(source.uri))
    if listing.partitioned:
        return None
    found = _Found(listing, ((),), (0,) * len(listing.files))
    return _scan(found, _Columns(frame.schema), list(columns), None)


def _plan_of(frame: DataFrame) -> _Plan | None:
    """Project, filter, scan: nothing else, and no column that is not one of the files'."""
    execution = frame._jdf.queryExecution()
    if execution.optimizedPlan().subqueriesAll().size():
        return None
    node, filters = execution.sparkPlan(), []
    while (kind := node.getClass().getSimpleName()) != "FileSourceScanExec":
        if kind == "FilterExec":
            filters.append(node.condition())
        elif kind != "ProjectExec" or any(
            item.getClass().getSimpleName() != "AttributeReference" for item in _sequence(node.projectList())
        ):
            return None
        node = node.child()
    if not node.relation().fileFormat().getClass().getSimpleName().endswith("ParquetFileFormat"):
        return None
    return _Plan(node, tuple(filters))


def _is_seen_by_all(uri: str, settings: Mapping[str, str]) -> bool:
    """Whether whoever reads without Spark sees the files that Spark sees.

    Args:
        uri: of the files.
        settings: Spark's: a bucket may have an endpoint and keys of its own, which are Spark's alone.
    """
    if uris.local_path(uri) is not None:
        return True
    of_bucket = f"spark.hadoop.fs.s3a.bucket.{uris.parse(uri).authority}."
    return s3.is_open_to_all(uri) and not any(name.startswith(of_bucket) for name in settings)


@dataclass(frozen=True)
class _Found:
    """Files, the values of the partition columns that occur, and which of these each file has."""

    listing: Listing
    partitions: tuple[tuple[PartitionValue, ...], ...]
    numbers: tuple[int, ...]


def _parquet_files(plan: _Plan, source: Source) -> _Found | None:
    """The files of a folder; Spark says what the names of partition folders mean and which are wanted."""
    assert source.uri is not None
    root = uris.parse(source.uri).path
    if plan.location.getClass().getSimpleName() != "InMemoryFileIndex":
        return None
    listing = list_dataset(source.uri)
    schema = plan.partition_schema
    if not schema.fields:
        return None if listing.partitioned else _Found(listing, ((),), (0,) * len(listing.files))
    folders: dict[str, int] = {}
    partitions: list[tuple[PartitionValue, ...]] = []
    for partition in _sequence(
        plan.location.listFiles(plan.scan.partitionFilters(), plan.scan.dataFilters())
    ):
        if partition.files().isEmpty():
            continue
        values = _row(partition.values(), schema)
        folder = str(partition.files().head().getPath().getParent().toUri().getPath())
        if values is None or not folder.startswith(f"{root}/"):
            return None
        folders[folder.removeprefix(f"{root}/")] = len(partitions)
        partitions.append(values)
    files = tuple(file for file in listing.files if file.name.rpartition("/")[0] in folders)
    numbers = tuple(folders[file.name.rpartition("/")[0]] for file in files)
    return _Found(replace(listing, files=files), tuple(partitions), numbers)


def _named_files(plan: _Plan) -> _Found | None:
    """The files that Spark was told one by one, and which have all columns in them."""
    if plan.location.getClass().getSimpleName() != "InMemoryFileIndex" or plan.partition_schema.fields:
        return None
    found = [
        ListedFile(str(status.getPath().toUri().getPath()), status.getLen(), status.getModificationTime())
        for status in _sequence(plan.location.allFiles())
        if status.getPath().toUri().getScheme() == "file"
    ]
    root = posixpath.commonpath([posixpath.dirname(file.name) for file in found]) if found else ""
    if not root or len(found) < plan.location.allFiles().size():
        return None
    files = tuple(
        ListedFile(posixpath.relpath(file.name, root), file.size, file.modified_ns * 1_000_000)
        for file in sorted(found)
    )
    return _Found(Listing(root, files), ((),), (0,) * len(files))


def _row(row: Any, schema: StructType) -> tuple[PartitionValue, ...] | None:
    """A row of Catalyst's, where Python has each of its values exactly."""
    getters = {"int": "getInt", "bigint": "getLong", "date": "getInt", "string": "getUTF8String"}
    values: list[PartitionValue] = []
    for place, field in enumerate(schema.fields):
        getter = getters.get(field.dataType.simpleString())
        if getter is None:
            return None
        value = None if row.isNullAt(place) else getattr(row, getter)(place)
        values.append(str(value.toString()) if getter == "getUTF8String" and value is not None else value)
    return tuple(values)


def _delta_files(plan: _Plan) -> _Found | None:
    """The files of a Delta table's snapshot, as Delta itself lists them."""
    location = plan.location
    if location.getClass().getSimpleName() != "PreparedDeltaFileIndex":
        return None
    uri = str(location.path().toString())
    if not _is_readable(location.preparedScan().scannedSnapshot()):
        return None
    added = location.matchingFiles(plan.scan.partitionFilters(), plan.scan.dataFilters())
    schema = plan.partition_schema
    partitions: dict[tuple[PartitionValue, ...], int] = {}
    files, numbers = [], []
    for file in _actions(added):
        # Only a shallow clone's files lie elsewhere.
        if file.get("deletionVector") or _ELSEWHERE.match(file["path"]):
            return None
        try:
            values = tuple(_value(file["partitionValues"].get(item.name), item) for item in schema.fields)
        except ValueError:
            return None
        numbers.append(partitions.setdefault(values, len(partitions)))
        files.append(ListedFile(unquote(file["path"]), file["size"], file["modificationTime"] * 1_000_000))
    return _Found(Listing(uri, tuple(files)), tuple(partitions) or ((),), tuple(numbers))


def _actions(added: Any) -> list[dict[str, Any]]:
    """Delta's list of files as its log writes them; one call for all of them."""
    from pyspark import SparkContext

    jvm: Any = SparkContext._jvm
    found: list[dict[str, Any]] = json.loads(
        jvm.org.apache.spark.sql.delta.util.JsonUtils.toJson(added, None)
    )
    return found


def _is_readable(snapshot: Any) -> bool:
    """Whether the files of a snapshot are plain Parquet, whose columns have the table's names."""
    protocol = json.loads(snapshot.protocol().json())["protocol"]
    features = set(protocol.get("readerFeatures", ()))
    return (
        protocol["minReaderVersion"] <= 3
        and features <= _HARMLESS
        and snapshot.metadata().columnMappingMode().name() == "none"
    )


def _value(text: str | None, field: StructField) -> PartitionValue:
    """A partition value from its text in Delta's log.

    Raises:
        ValueError: of a type, or in a spelling, of which one cannot be sure.
    """
    type_ = field.dataType.simpleString()
    if text is None:
        return None
    if type_ == "string" and text:
        return text
    if type_ in ("tinyint", "smallint", "int", "bigint") and _WHOLE.fullmatch(text):
        return int(text)
    if type_ == "date" and _DAY.fullmatch(text):
        return (datetime.date.fromisoformat(text) - _EPOCH).days
    if type_ == "boolean" and text in ("true", "false"):
        return text == "true"
    raise ValueError(f"{type_} {text!r}")


def _scan(
    found: _Found, plan: _Plan | _Columns, columns: Sequence[str], condition: Condition | None
) -> Scan | None:
    import pyarrow as pa

    partition_columns = tuple(plan.partition_schema.names)
    table = plan.schema
    # Spark takes a condition's names in its spelling, whatever their capital letters.
    if len({name.lower() for name in table.names}) < len(table.names) or not set(columns) <= set(table.names):
        return None
    schema = pa.schema([pa.field(name, arrow_type(table[name].dataType)) for name in columns])
    stored = [item for item in schema if item.name not in partition_columns]
    # Where partition columns stand in the files too, as in those of Delta, their values there count nothing.
    asked = condition if condition and not condition.columns & set(partition_columns) else None
    files = read_footers(found.listing, [item.name for item in stored], asked)
    if not all(_fits(there, stored, table, partition_columns) for there in files.schemas):
        return None
    absent = [item for item in schema if item not in stored or item.name not in files.columns]
    sizes = dict(files.columns) | {item.name: _bytes_of(item.type) for item in absent}
    files = replace(
        files,
        files=tuple(
            file._replace(partition=number) for file, number in zip(files.files, found.numbers, strict=True)
        ),
        columns=sizes,
        partition_columns=partition_columns,
        partitions=found.partitions,
    )
    files = files.with_schema(schema)
    return None if files.has_legacy_dates else Scan(files, condition)


def _fits(
    there: pa.Schema, stored: Sequence[pa.Field], table: StructType, partition_columns: Sequence[str]
) -> bool:
    """Whether a file's columns are the table's: of Spark's types, or not there at all."""
    types = {item.name: item.type for item in there}
    lower = {name.lower() for name in types}
    if any(name.lower() in lower and name not in types for name in partition_columns):
        return False
    for item in stored:
        if item.name in types:
            if types[item.name] != item.type:
                return False
        # Spark does not look at capital letters, and a default may stand for what is not there.
        elif item.name.lower() in lower or "EXISTS_DEFAULT" in table[item.name].metadata:
            return False
    return True


def _bytes_of(type_: pa.DataType) -> ColumnBytes:
    try:
        return ColumnBytes(0.0, type_.bit_width / 8)
    except ValueError:  # strings and lists
        return ColumnBytes(0.0, 16.0)


def _sequence(items: Any) -> list[Any]:
    return [items.apply(place) for place in range(items.size())]
