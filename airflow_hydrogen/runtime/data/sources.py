"""Source -> DataFrame."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import EntrypointError, MissingColumnError, SourceError
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.data import connected, databases, iceberg
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.data.files import Listing, list_dataset, read_footers
from airflow_hydrogen.runtime.spark_errors import original_error, root_cause, spark_errors
from airflow_hydrogen.runtime.storage import s3

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, DataFrameReader, SparkSession
    from pyspark.sql.types import StructType

Prepare = Callable[..., "DataFrame"]

# Arrow's names of types of which Spark reads the same in every Parquet file.
_SAME_TYPES = {*("int8", "int16", "int32", "int64", "float", "double", "bool"), *("string", "date32[day]")}
_CSV_DEFAULTS = {"header": "true", "inferSchema": "true"}
_FILTERED = "airflow_hydrogen_rows"
# Of Spark's errors, and of the stack of those that come from elsewhere.
_FAILED_READ = re.compile(
    r"\[FAILED_READ_FILE\b|\bjdbc\.JDBCRDD\b|\bjdbc\.JdbcUtils\$\$anon|\bkafka010\.KafkaIllegalStateException\b"
)
_AFTER_A_FILE_IS_GONE = {
    "files_stream": ". Bring it back: files of a stream stay until they have been scored",
    "delta_stream": ". Begin anew with another checkpoint and another sink: the table was vacuumed",
}
_GLOB = frozenset("*?[]{}\\")


def read(spark: SparkSession, source: Source, access: Access | None = None) -> DataFrame:
    """Open a source as a DataFrame.

    Args:
        spark: the session.
        source: what to read.
        access: what opens the connections that the source names.

    Raises:
        SourceError: a path or table that is not there, a query or condition that does not resolve, a database
            that does not answer.
        MissingColumnError: one of `columns` is not there.
    """
    try:
        if is_connect(spark) and source.uri is not None:
            connected.refresh_files(spark, uris.spark_uri(source.uri))
        frame = _selected(_filtered(spark, source, access or {}), source)
        if is_connect(spark):
            if source.uri is None:
                connected.refresh_tables(frame)
            frame.schema  # noqa: B018 - its server resolves a plan when it is asked for something
        return frame
    except spark_errors() as error:
        empty = "UNABLE_TO_INFER_SCHEMA" in str(error)
        raise SourceError(str(source), no_files(source) if empty else root_cause(error)) from error


def no_files(source: Source) -> str:
    """What is said of a folder without files."""
    return f"there are no {source.format or source.kind} files in it"


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Say so where what Spark computes fails of its source, which has changed since it was opened.

    Raises:
        SourceError: a file or a message is gone or cannot be read, or a database refuses to be read.
    """
    try:
        yield
    except spark_errors() as error:
        original = original_error(error)
        if isinstance(original, SourceError):  # of a task that reads without Spark
            raise original from None
        if not is_failed_read(error):
            raise
        reason = root_cause(error)
        if "FILE_NOT_EXIST" in reason:
            anew = iceberg.CLEAR if _is_pinned(source) else ". Run the task again, which lists the files anew"
            reason = reason.rstrip(".") + _AFTER_A_FILE_IS_GONE.get(source.kind, anew)
        elif "data may have been lost" in reason:
            reason += " With the option failOnDataLoss='false' the stream goes on behind them"
        raise SourceError(str(source), reason) from error


def _is_pinned(source: Source) -> bool:
    """Whether every try of a run reads the same version of a source, or of a table of it."""
    return any(place.version is not None for place in (source, *source.tables.values()))


def is_failed_read(error: Exception) -> bool:
    """Whether Spark could not read a file, the rows of a database or the messages of a topic."""
    return isinstance(error, spark_errors()) and _FAILED_READ.search(str(error)) is not None


def prepared(frame: DataFrame, prepare: Prepare | None, kwargs: Mapping[str, Any]) -> DataFrame:
    """Hand a frame through the user's `prepare`.

    Raises:
        EntrypointError: `prepare` returned something else than a DataFrame.
    """
    from pyspark.sql import DataFrame

    if prepare is None:
        return frame
    # In the frame's own session, which may be another one: there its views are found.
    found = prepare(frame.sparkSession, frame, **kwargs)
    if not isinstance(found, DataFrame):
        name = f"{prepare.__module__}:{getattr(prepare, '__qualname__', prepare)}"
        raise EntrypointError(name, f"returned a {type(found).__name__}, prepare must return a DataFrame")
    if is_connect(found):
        connected.refresh_tables(found)
    return found


def is_plain_parquet(source: Source) -> bool:
    """Whether a source is the rows of Parquet files as they lie, without filter, option or pattern."""
    return (
        source.kind == "parquet"
        and source.where is None
        and not source.options
        and not set(source.uri or "") & _GLOB
    )


def _filtered(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    session = _session_that_binds(spark) if source.where_args else spark
    return _kept(session, source, _READERS[source.kind](session, source, access))


def _kept(session: SparkSession, source: Source, frame: DataFrame) -> DataFrame:
    """The rows of a source that its condition asks for."""
    if source.where is None:
        return frame
    if not source.where_args:
        return frame.where(source.where)
    # `DataFrame.where` binds nothing: ask a view, in a session of its own.
    frame.createOrReplaceTempView(_FILTERED)
    # On lines of its own, so that a comment at the end of the condition ends with it.
    condition = f"SELECT * FROM {_FILTERED} WHERE (\n{source.where}\n)"
    return session.sql(condition, args=dict(source.where_args))


def _selected(frame: DataFrame, source: Source) -> DataFrame:
    if source.columns is None:
        return frame
    if missing := set(source.columns) - set(frame.columns):
        raise MissingColumnError("column", missing, frame.columns)
    return frame.select(*(quoted(name) for name in source.columns))


def quoted(name: str) -> str:
    """A column's name as Spark's SQL writes it, whatever is in it."""
    return "`" + name.replace("`", "``") + "`"


def _read_files(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    assert source.uri is not None
    defaults = _CSV_DEFAULTS if source.kind == "csv" else {}
    reader = spark.read.format(source.kind).options(**{**defaults, **source.options})
    return reader.load(uris.spark_uri(source.uri))


def _read_parquet(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    assert source.uri is not None
    reader = spark.read.format("parquet").options(**source.options)
    listing = list_dataset(source.uri)
    merges = spark.conf.get("spark.sql.parquet.mergeSchema", "false") == "true"  # of all files
    if not source.options and not merges and (schema := _schema_of(listing)) is not None:
        reader = reader.schema(schema)
    if not listing.chosen:
        return reader.load(uris.spark_uri(source.uri))
    if not listing.files:
        raise SourceError(str(source), "the list of files in it names none")
    files = [uris.spark_uri(uris.join(source.uri, file.name)) for file in listing.files]
    return reader.option("basePath", uris.spark_uri(source.uri)).load(files)


def _schema_of(listing: Listing) -> StructType | None:
    """What Spark would find with a job of its own, which takes a second, in the first file's footer.

    None where it has to look itself: types that it may take for others than Arrow does, columns in the names
    of folders, and object stores where credentials may be Spark's alone.
    """
    from pyspark.sql.pandas.types import from_arrow_type
    from pyspark.sql.types import StructField, StructType

    is_open = uris.local_path(listing.uri) is not None or s3.is_open_to_all(listing.uri)
    if not listing.files or listing.partitioned or not is_open:
        return None
    [found] = read_footers(replace(listing, files=listing.files[:1])).schemas
    distinct = len({name.lower() for name in found.names}) == len(found.names)
    if not distinct or not all(str(item.type) in _SAME_TYPES for item in found):
        return None
    return StructType([StructField(item.name, from_arrow_type(item.type)) for item in found])


def _read_delta(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    assert source.uri is not None
    return _as_of(spark.read.format("delta"), source).load(uris.spark_uri(source.uri))


def _read_iceberg(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    return iceberg.read(spark, source, access, partial(_kept, spark, source))


def _read_table(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    assert source.table_name is not None
    return _as_of(spark.read, source).table(source.table_name)


def _as_of(reader: DataFrameReader, source: Source) -> DataFrameReader:
    if source.version is not None:
        return reader.option("versionAsOf", str(source.version))
    return reader if source.timestamp is None else reader.option("timestampAsOf", source.timestamp)


def _read_tfrecords(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    from airflow_hydrogen.runtime.data.tfrecords import read_tfrecords

    assert source.uri is not None
    # A condition may name others than `columns`.
    columns = source.columns if source.columns is not None and source.where is None else ()
    return read_tfrecords(spark, source.uri, source.options, columns)


def _read_database(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    return databases.read(spark, source, access)


def _read_any(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    assert source.format is not None
    reader = spark.read.format(source.format).options(**source.options)
    return reader.load() if source.uri is None else reader.load(uris.spark_uri(source.uri))


def _read_sql(spark: SparkSession, source: Source, access: Access) -> DataFrame:
    """Bind the tables to this query alone: the session's own views stay as they are."""
    assert source.query is not None
    session = _session_that_binds(spark)
    for name, table in source.tables.items():
        _of_session(session, read(session, table, access)).createOrReplaceTempView(name)
    return session.sql(source.query, args=dict(source.query_args))


def _of_session(session: SparkSession, frame: DataFrame) -> DataFrame:
    """The same rows in another session, where their view is to be found."""
    from pyspark.sql import DataFrame

    if frame.sparkSession is session or is_connect(session):
        return frame
    datasets: Any = session._jvm.org.apache.spark.sql.classic.Dataset  # type: ignore[union-attr]
    plan = frame._jdf.queryExecution().analyzed()
    return DataFrame(datasets.ofRows(session._jsparkSession, plan), session)


def _session_that_binds(spark: SparkSession) -> SparkSession:
    """A session of its own, in which names stand for values.

    Spark 4.2 puts values in before it parses, but not where an extension brings a parser of its own, as Delta
    does. This setting has it bind them when names are resolved, as Spark 4.0 did.
    """
    if is_connect(spark):
        return spark  # names travel with their values, and the session is the job's alone
    session = spark.newSession()
    session.conf.set("spark.sql.legacy.parameterSubstitution.constantsOnly", "true")
    return session


_READERS: dict[str, Callable[[SparkSession, Source, Access], DataFrame]] = {
    "parquet": _read_parquet,
    "orc": _read_files,
    "avro": _read_files,
    "csv": _read_files,
    "json": _read_files,
    "tfrecord": _read_tfrecords,
    "delta": _read_delta,
    "iceberg": _read_iceberg,
    "table": _read_table,
    "hive": _read_table,
    "jdbc": _read_database,
    "read": _read_any,
    "sql": _read_sql,
}
