"""Iceberg tables, by pyiceberg: Spark needs no package for them, and each release of it will do.

pyiceberg looks the table up, and plans which files a snapshot has. Where these are Parquet whose columns are
the table's, Spark reads them, and so may ranks and workers themselves (`scans`). Where they are not, because
rows of them were deleted or columns renamed, tasks read them by pyiceberg.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import catalogs, uris
from airflow_hydrogen.contract.errors import HydrogenError, InvalidJobError, SourceError
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.data import conditions
from airflow_hydrogen.runtime.data.conditions import Both, Comparison, Condition, Either, IsNull, Not, OneOf
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.data.spark_types import arrow_type
from airflow_hydrogen.runtime.spark_errors import spark_errors
from airflow_hydrogen.runtime.storage import s3

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

_FOOTER_THREADS = 16
_TASK_BYTES = 128 * 1024 * 1024
# Of the file store, as a catalog or a connection hands them out: Spark does not know them.
_CREDENTIALS = ("s3.access-key-id", "s3.session-token", "s3.remote-signing", "adls.", "gcs.")
# Spark 4.2 knows a time of the day, and reads none.
_TIME = re.compile(r"(^|[<:,])time\(\d\)")
# Types whose order Iceberg's bounds and Spark agree on. NaN has none there, and is the largest number here.
_PRUNED = ("int", "long", "string", "date", "boolean")

CLEAR = ". Clear the task, which reads the newest version"
"""What is said where a version of a table has lost a file: every try reads that version."""

Kept = Callable[["DataFrame"], "DataFrame"]


def catalog_of(place: Source | Sink, access: Access) -> Any:
    """pyiceberg's catalog of a source or sink.

    Raises:
        InvalidJobError: there is no pyiceberg here, or nobody has said where the catalog is.
        Exception: pyiceberg's own, where the catalog does not answer: see `told`.
    """
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError as error:
        raise InvalidJobError(
            f"{place} needs pyiceberg, and it cannot be imported here ({error}): install "
            "airflow-hydrogen[iceberg] where Spark's driver runs"
        ) from None
    properties = properties_of(place, access)
    return load_catalog(properties.pop("name", place.conn_id or "default"), **properties)


def properties_of(place: Source | Sink, access: Access) -> dict[str, str]:
    """The properties of the catalog that a source or sink names, and of the job's S3.

    Raises:
        InvalidJobError: nobody has said how its connection is opened.
    """
    if place.conn_id is None:
        return catalogs.opening_s3(place.catalog, s3.current())
    if place.conn_id not in access:
        raise InvalidJobError(
            f"{place} needs access[{place.conn_id!r}]: pyiceberg's properties of the catalog, such as uri "
            "and credential; the operators take them from Airflow's connection"
        )
    return catalogs.opening_s3(access[place.conn_id], s3.current())


def told(error: Exception, place: Source | Sink, access: Access) -> str:
    """What an error of pyiceberg says, without the secrets of its catalog."""
    return catalogs.masked(_said(error), properties_of(place, access))


def _said(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "") or repr(error)
    return f"{type(error).__name__}: {text}"


def newest(spark: SparkSession, source: Source, access: Access) -> int | None:
    """The snapshot that a source reads now, or read at its time; None where the table has none.

    Raises:
        SourceError: there is no such table, or none at that time.
    """
    with _told(source, access):
        return _newest(spark, source, catalog_of(source, access).load_table(str(source.table_name)))


def read(spark: SparkSession, source: Source, access: Access, kept: Kept) -> DataFrame:
    """Open a snapshot of a table.

    Args:
        spark: the session.
        source: what to read.
        access: what opens its catalog.
        kept: leaves those rows of a frame that the source's condition asks for. It is done to the result
            again: here it says which files are not read.

    Raises:
        SourceError: the table or its snapshot is not there, or cannot be read by pyiceberg.
    """
    with _told(source, access):
        reading = _reading(spark, source, access)
        if reading.snapshot_id is None:
            return _empty(spark, reading.struct)
        tasks = reading.tasks(None if source.where is None else _asked(spark, reading, kept))
        if not tasks:
            return _empty(spark, reading.struct)
        if reading.is_plain(tasks):
            files = [uris.spark_file(task.file.file_path) for task in tasks]
            return spark.read.schema(reading.struct).parquet(*files)
        return _by_pyiceberg(spark, source, reading, tasks)


@contextmanager
def _told(source: Source, access: Access) -> Iterator[None]:
    """Turns what pyiceberg and its clients raise into a SourceError, without secrets."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (HydrogenError, *spark_errors())):
            raise
        raise SourceError(str(source), told(error, source, access)) from None


@dataclass(frozen=True)
class _Reading:
    """One snapshot of a table.

    Attributes:
        table: pyiceberg's.
        snapshot_id: None where the table is empty.
        schema: its columns, of pyiceberg's types.
        struct: the same, of Spark's.
        is_current: the schema is the one that the table has now.
    """

    table: Any
    snapshot_id: int | None
    schema: Any
    struct: StructType
    is_current: bool

    def tasks(self, asked: Any) -> list[Any]:
        """The files that may hold rows of an expression, with what was deleted of them."""
        from pyiceberg.expressions import AlwaysTrue

        scan = self.table.scan(row_filter=asked or AlwaysTrue(), snapshot_id=self.snapshot_id)
        return sorted(scan.plan_files(), key=lambda task: str(task.file.file_path))

    def is_plain(self, tasks: Sequence[Any]) -> bool:
        """Whether the files hold the rows as they are, under the names and in the types of the schema."""
        from pyiceberg.manifest import FileFormat

        job = s3.current()
        ours = {} if job is None else job.iceberg_properties()
        given = self.table.io.properties.items()
        if any(name.startswith(_CREDENTIALS) and ours.get(name) != value for name, value in given):
            return False
        if any(task.delete_files or task.file.file_format != FileFormat.PARQUET for task in tasks):
            return False
        names = {str(task.file.file_path) for task in tasks}
        if len(names) < len(tasks) or any(_is_passed_over(name) for name in names):
            return False
        with ThreadPoolExecutor(_FOOTER_THREADS, "footers") as pool:
            return all(pool.map(self._is_plain, tasks))

    def _is_plain(self, task: Any) -> bool:
        import pyarrow.parquet as pq
        from pyiceberg.io.pyarrow import pyarrow_to_schema

        with self.table.io.new_input(task.file.file_path).open() as stream:
            columns = pq.read_metadata(stream).schema.to_arrow_schema()
        mapping = self.table.metadata.name_mapping()
        file = pyarrow_to_schema(columns, mapping, downcast_ns_timestamp_to_us=True)
        partitioned = {part.source_id for part in self.table.specs()[task.file.spec_id].fields}
        stored = {field.field_id: field for field in file.fields}
        # Spark does not look at capital letters.
        names = [field.name.lower() for field in file.fields]
        return all(
            _is_null(field, names, partitioned)
            if (found := stored.get(field.field_id)) is None
            else _is_same(field, found, names)
            for field in self.schema.fields
        )


def _is_passed_over(path: str) -> bool:
    """Whether Spark takes a file for one that is not of the table, by its name, and says nothing."""
    name = path.rpartition("/")[2]
    return name.startswith(("_", ".")) or name.endswith("._COPYING_")


def _is_same(field: Any, found: Any, names: Sequence[str]) -> bool:
    """Whether a file's column is read as a table's by its name; `names` are the file's, in small letters."""
    is_same = (found.name, found.field_type) == (field.name, field.field_type)
    return is_same and names.count(field.name.lower()) == 1


def _is_null(field: Any, names: Sequence[str], partitioned: Collection[int]) -> bool:
    """Whether a column that is not in a file is null in its rows, and its value stands nowhere else."""
    has_value = field.field_id in partitioned or field.initial_default is not None
    return not field.required and not has_value and field.name.lower() not in names


def _newest(spark: SparkSession, source: Source, table: Any) -> int | None:
    if source.timestamp is None:
        snapshot = table.current_snapshot()
        return None if snapshot is None else int(snapshot.snapshot_id)
    snapshot = table.snapshot_as_of_timestamp(_milliseconds(spark, source))
    if snapshot is None:
        raise SourceError(str(source), "the table had no snapshot at that time, or has it no longer")
    return int(snapshot.snapshot_id)


def _reading(spark: SparkSession, source: Source, access: Access) -> _Reading:
    table = catalog_of(source, access).load_table(str(source.table_name))
    snapshot_id = _newest(spark, source, table) if source.version is None else int(source.version)
    current = table.current_snapshot()
    schema = table.schema()
    if snapshot_id is not None and (current is None or current.snapshot_id != snapshot_id):
        snapshot = table.snapshot_by_id(snapshot_id)
        if snapshot is None:
            raise SourceError(str(source), f"the table has no snapshot {snapshot_id}, or no longer")
        schema = table.schemas()[snapshot.schema_id]
    struct = struct_of(schema, source)
    is_current = schema.fields == table.schema().fields
    schema = type(schema)(*(field for field in schema.fields if field.name in struct.names))
    return _Reading(table, snapshot_id, schema, struct, is_current)


def struct_of(schema: Any, source: Source) -> StructType:
    """The columns of a table of pyiceberg's as Spark's.

    Those that Spark has no type for are left out where `columns` does not name them.

    Raises:
        SourceError: such a column is wanted.
    """
    from pyspark.sql.types import StructField, StructType

    types = types_of(schema)
    wanted = types if source.columns is None else source.columns
    for field in schema.fields:
        if types[field.name] is None and field.name in wanted:
            raise SourceError(
                str(source),
                f"its column {field.name!r} is of type {field.field_type}, which Spark does not have; "
                "leave it out with columns",
            )
    return StructType([StructField(name, type_) for name, type_ in types.items() if type_ is not None])


def types_of(schema: Any) -> dict[str, DataType | None]:
    """Column of a table of pyiceberg's -> its type of Spark's; None where Spark has none."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyspark.errors import PySparkException
    from pyspark.sql.pandas.types import from_arrow_type

    types: dict[str, DataType | None] = {}
    for column in schema_to_pyarrow(schema, include_field_ids=False):
        try:
            # As Spark's own Iceberg reader: with a time zone a point in time, without one none.
            found = from_arrow_type(column.type, prefer_timestamp_ntz=True)
        except PySparkException:
            types[column.name] = None
        else:
            types[column.name] = None if _TIME.search(found.simpleString()) else found
    return types


def _milliseconds(spark: SparkSession, source: Source) -> int:
    """The source's time since 1970, in the session's time zone, as Spark reads it for other tables."""
    from pyspark.sql import functions

    time = functions.lit(source.timestamp).try_cast("timestamp")
    [[found]] = spark.range(1).select(functions.unix_millis(time)).collect()
    if found is None:
        raise SourceError(
            str(source), f"timestamp {source.timestamp!r} is no time such as '2013-07-01 12:00:00'"
        )
    return int(found)


def _empty(spark: SparkSession, struct: StructType) -> DataFrame:
    return spark.createDataFrame(spark.sparkContext.emptyRDD(), struct)


# --- which files -----------------------------------------------------------------------------------------


def _asked(spark: SparkSession, reading: _Reading, kept: Kept) -> Any:
    """What files are asked: true of every file that may hold a row of the condition; None: of all."""
    if not reading.is_current:  # pyiceberg looks for names in the schema of now
        return None
    plan = kept(_empty(spark, reading.struct))._jdf.queryExecution().optimizedPlan()
    found = None
    while (kind := plan.getClass().getSimpleName()) in ("Filter", "Project"):
        if kind == "Filter":
            found = _both(found, _of_plan(plan.condition(), reading.schema))
        plan = plan.child()
    return found


def _of_plan(expression: Any, schema: Any) -> Any:
    if expression.getClass().getSimpleName() == "And":
        return _both(_of_plan(expression.left(), schema), _of_plan(expression.right(), schema))
    condition = conditions.translate(expression)
    return None if condition is None else _expression(condition, schema)


def _expression(condition: Condition, schema: Any) -> Any:
    """A condition as pyiceberg's, or what is true wherever it is; None where nothing is known."""
    from pyiceberg import expressions

    # Spark writes a name as the condition does, whatever its capital letters: such a one is not known.
    types = {field.name: str(field.field_type) for field in schema.fields if field.field_type.is_primitive}
    match condition:
        case Both():
            return _both(_expression(condition.left, schema), _expression(condition.right, schema))
        case Either():
            left, right = _expression(condition.left, schema), _expression(condition.right, schema)
            return None if left is None or right is None else expressions.Or(left, right)
        case Not(IsNull(column)) if column in types:
            return expressions.NotNull(column)
        case IsNull(column) if column in types:
            return expressions.IsNull(column)
        case Comparison(sign, column, value) if types.get(column) in _PRUNED:
            kinds: Mapping[str, Any] = {
                "=": expressions.EqualTo,
                "<=>": expressions.EqualTo,
                "<": expressions.LessThan,
                "<=": expressions.LessThanOrEqual,
                ">": expressions.GreaterThan,
                ">=": expressions.GreaterThanOrEqual,
            }
            return kinds[sign](column, value)
        case OneOf(column, values) if types.get(column) in _PRUNED:
            return expressions.In(column, values)
    return None


def _both(one: Any, other: Any) -> Any:
    from pyiceberg.expressions import And

    if one is None or other is None:
        return other if one is None else one
    return And(one, other)


# --- read by pyiceberg -----------------------------------------------------------------------------------


def _by_pyiceberg(spark: SparkSession, source: Source, reading: _Reading, tasks: Sequence[Any]) -> DataFrame:
    """Tasks of Spark read files by pyiceberg; each gets its number as its only row."""
    import pyarrow as pa

    hands = _dealt(tasks)
    # Executors that have no pyiceberg are to say so, and not what they cannot unpickle.
    dealt = pickle.dumps((reading.table.metadata, reading.table.io, reading.schema, hands))
    where = str(source)
    schema = pa.schema([pa.field(item.name, arrow_type(item.dataType)) for item in reading.struct])

    def run(numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in numbers:
            for number in batch.column(0).to_pylist():
                for rows in rows_of(where, dealt, number):
                    yield rows.cast(schema)

    return spark.range(0, len(hands), 1, len(hands)).mapInArrow(run, reading.struct)


def rows_of(where: str, dealt: bytes, number: int) -> Iterator[pa.RecordBatch]:
    """The rows of the files of one task.

    Args:
        where: the source, for messages.
        dealt: pickled: the table's metadata, its store, the columns, and the files of every task.
        number: the task's.

    Raises:
        InvalidJobError: there is no pyiceberg here.
        SourceError: a file is gone, or cannot be read.
    """
    try:
        import pyiceberg  # noqa: F401
    except ImportError as error:
        raise InvalidJobError(
            f"source {where} is read by pyiceberg in Spark's tasks, and it cannot be imported there "
            f"({error}): install airflow-hydrogen[iceberg] on executors"
        ) from None
    metadata, io, projected, hands = pickle.loads(dealt)
    for task in hands[number]:
        try:
            yield from _rows(metadata, io, projected, task)
        except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among these
            said = catalogs.masked(_said(error), io.properties)
            gone = CLEAR if isinstance(error, FileNotFoundError) else ""
            raise SourceError(where, f"{task.file.file_path}: {said}{gone}") from None


def _rows(metadata: Any, io: Any, projected: Any, task: Any) -> Iterator[pa.RecordBatch]:
    """The rows of a file, without those that were deleted, in batches as they are read."""
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan, _read_all_delete_files

    # `ArrowScan.to_record_batches` would hold all of the file.
    scan = ArrowScan(metadata, io, projected, AlwaysTrue())
    yield from scan._record_batches_from_scan_tasks_and_deletes([task], _read_all_delete_files(io, [task]))


def _dealt(tasks: Sequence[Any]) -> list[list[Any]]:
    """Files for tasks, of about 128 MB each; a file is never cut."""
    hands: list[list[Any]] = []
    size = _TASK_BYTES
    for task in tasks:
        if size >= _TASK_BYTES:
            hands.append([])
            size = 0
        hands[-1].append(task)
        size += task.file.file_size_in_bytes
    return hands
