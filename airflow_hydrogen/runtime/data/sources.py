"""Source -> DataFrame, and DataFrame -> Parquet that suits a gang."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    DataError,
    EmptyDatasetError,
    EntrypointError,
    SchemaMismatchError,
    SourceError,
    UnwritableUriError,
)
from airflow_hydrogen.contract.jobs import Source
from airflow_hydrogen.runtime.data import recipes
from airflow_hydrogen.runtime.data.counting import write_parquet
from airflow_hydrogen.runtime.data.files import DatasetFiles, Listing, list_dataset, read_footers
from airflow_hydrogen.runtime.storage import filesystems

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

Prepare = Callable[..., "DataFrame"]

# Arrow's names of types of which Spark reads the same in every Parquet file.
_SAME_TYPES = {*("int8", "int16", "int32", "int64", "float", "double", "bool"), *("string", "date32[day]")}
_CSV_DEFAULTS = {"header": "true", "inferSchema": "true"}
_FILES_PER_RANK = 4
_ROW_GROUP_BYTES = 16 * 1024 * 1024
_MAX_ROW_GROUP_BYTES = 256 * 1024 * 1024
_MARKER = "_STAGED.json"
_FILTERED = "airflow_hydrogen_rows"
_SHUFFLE_SEED = 0
_GLOB = frozenset("*?[]{}\\")


@dataclass(frozen=True)
class StagedDataset:
    """Parquet that the ranks read.

    Attributes:
        files: the list that they read by.
        fingerprint: hash of all that decides the rows.
        in_place: the source itself, because it fits already.
    """

    files: DatasetFiles
    fingerprint: str
    in_place: bool

    @property
    def uri(self) -> str:
        """Its folder."""
        return self.files.uri

    @property
    def rows(self) -> int:
        """Rows in it."""
        return self.files.total_rows


def read(spark: SparkSession, source: Source) -> DataFrame:
    """Open a source as a DataFrame.

    Raises:
        SourceError: a path that is not there, a query or condition that does not resolve.
    """
    from pyspark.errors import AnalysisException, ParseException, SparkRuntimeException

    try:
        if source.where is None:
            return _READERS[source.kind](spark, source)
        if not source.where_args:
            return _READERS[source.kind](spark, source).where(source.where)
        # `DataFrame.where` binds nothing: ask a view, in a session of its own.
        session = spark.newSession()
        _READERS[source.kind](session, source).createOrReplaceTempView(_FILTERED)
        # On lines of its own, so that a comment at the end of the condition ends with it.
        condition = f"SELECT * FROM {_FILTERED} WHERE (\n{source.where}\n)"
        return session.sql(condition, args=dict(source.where_args))
    except (AnalysisException, ParseException, SparkRuntimeException) as error:
        raise SourceError(describe(source), str(error).strip().splitlines()[0]) from error


def read_prepared(
    spark: SparkSession, source: Source, prepare: Prepare | None, kwargs: Mapping[str, Any]
) -> DataFrame:
    """Open a source and hand it through the user's `prepare`.

    Raises:
        SourceError: the source cannot be read.
        EntrypointError: `prepare` returned something else than a DataFrame.
    """
    from pyspark.sql import DataFrame

    frame = read(spark, source)
    if prepare is None:
        return frame
    # In the frame's own session, which may be another one: there its views are found.
    prepared = prepare(frame.sparkSession, frame, **kwargs)
    if not isinstance(prepared, DataFrame):
        name = f"{prepare.__module__}:{getattr(prepare, '__qualname__', prepare)}"
        raise EntrypointError(name, f"returned a {type(prepared).__name__}, prepare must return a DataFrame")
    return prepared


def stage(
    spark: SparkSession,
    name: str,
    source: Source,
    uri: str,
    *,
    ranks: int,
    prepare: Prepare | None = None,
    prepare_kwargs: Mapping[str, Any] | None = None,
) -> StagedDataset:
    """Make a dataset ready for a gang.

    A plain Parquet source whose row groups are small enough is read in place. Everything else goes
    through Spark once and is written with several files a rank and row groups of 16 MB, its rows shuffled.
    What an earlier try wrote is used again, if everything that decides the rows is as it was.

    Args:
        spark: the session.
        name: the dataset's name.
        source: where its rows come from.
        uri: the folder to write below; it is visible to every rank.
        ranks: size of the gang.
        prepare, prepare_kwargs: the user's function.

    Raises:
        SourceError: the source cannot be read.
        EmptyDatasetError: no rows.
    """
    difference = None
    if prepare is None and is_plain_parquet(source):
        assert source.uri is not None
        listing = list_dataset(source.uri)
        files = None if listing.partitioned else read_footers(listing)
        difference = files.difference() if files else None
        if files and files.total_rows and difference is None and _fit(files):
            return StagedDataset(files, recipes.of_files(listing), in_place=True)
    if difference is not None:
        print(f"dataset {name!r}: {difference}; Spark reads the files by the schema of one", flush=True)
    frame = read_prepared(spark, source, prepare, prepare_kwargs or {})
    recipe = recipes.recipe(frame, source, prepare, prepare_kwargs or {}, ranks)
    prepared = _prepared_before(name, uri, recipe)
    if prepared is not None:
        return prepared
    folder = uris.join(uri, secrets.token_hex(6))
    try:
        rows = _write(frame, folder, ranks * _FILES_PER_RANK)
    except Exception as error:
        if difference is None or "PARQUET_COLUMN_DATA_TYPE_MISMATCH" not in str(error):
            raise
        assert source.uri is not None
        raise SchemaMismatchError(source.uri, str(difference)) from error
    files = read_footers(list_dataset(folder))
    if files.total_rows != rows:
        raise UnwritableUriError(
            "model_uri",
            folder,
            f"Spark wrote {rows:,} rows there and the driver finds {files.total_rows:,}: all hosts must see "
            "the same folder",
        )
    if not rows:
        raise EmptyDatasetError(name, describe(source))
    document = {"recipe": recipe, "rows": rows}
    filesystems.write_bytes(uris.join(folder, _MARKER), json.dumps(document, indent=1).encode())
    return StagedDataset(files, recipes.fingerprint(recipe), in_place=False)


def _prepared_before(name: str, uri: str, recipe: Mapping[str, str]) -> StagedDataset | None:
    """What an earlier try has prepared, if it is whole and by the same recipe; anything else is removed.

    Every try writes to a folder of its own: one that is not as dead as it seems must not add to another's.
    """
    for folder in filesystems.list_folders(uri):
        place = uris.join(uri, folder)
        try:
            found = json.loads(filesystems.read_bytes(uris.join(place, _MARKER)))
            written = read_footers(list_dataset(place))
            reasons = recipes.changes(found["recipe"], recipe)
        except (FileNotFoundError, ValueError, KeyError, TypeError, DataError):
            filesystems.remove(place)  # its try was killed, or something has damaged it since
            continue
        if not reasons and written.total_rows != found["rows"]:
            reasons = [f"{found['rows']:,} rows were written and {written.total_rows:,} are there"]
        if not reasons:
            print(
                f"dataset {name!r}: using the {found['rows']:,} rows that an earlier try prepared", flush=True
            )
            return StagedDataset(written, recipes.fingerprint(recipe), in_place=False)
        print(f"dataset {name!r}: prepared again: {'; '.join(reasons)}", flush=True)
        filesystems.remove(place)  # what is there is no longer what it says
    return None


def is_plain_parquet(source: Source) -> bool:
    """Whether a source is the rows of Parquet files as they lie, without filter, option or pattern."""
    return (
        source.kind == "parquet"
        and source.where is None
        and not source.options
        and not set(source.uri or "") & _GLOB
    )


def count_rows(uri: str) -> int:
    """Rows of the Parquet files below a URI, from their footers."""
    return read_footers(list_dataset(uri)).total_rows


def _write(frame: DataFrame, uri: str, files: int) -> int:
    """Write rows shuffled; the number of those that were written.

    The rows of each partition are dealt out to all files in an order that Spark repeats where it has to run a
    task again, so that each comes once. Within a file their order is random.
    """
    from pyspark.sql import functions

    shuffled = frame.repartition(files).sortWithinPartitions(functions.rand(_SHUFFLE_SEED))
    return write_parquet(shuffled, uri, **{"parquet.block.size": _ROW_GROUP_BYTES})


def describe(source: Source) -> str:
    """How messages call a source."""
    where = f" where {source.where}" if source.where else ""
    if values := {**source.where_args, **source.query_args}:
        where += f" with {', '.join(f'{name}={value!r}' for name, value in values.items())}"
    return f"sql {source.query!r}{where}" if source.kind == "sql" else f"{source.kind} {source.uri!r}{where}"


def _fit(files: DatasetFiles) -> bool:
    """Whether a gang can read files as they lie: whether their row groups are of moderate size."""
    return all(size <= _MAX_ROW_GROUP_BYTES for file in files.files for size in file.sizes)


def _read_files(spark: SparkSession, source: Source) -> DataFrame:
    assert source.uri is not None
    defaults = _CSV_DEFAULTS if source.kind == "csv" else {}
    reader = spark.read.format(source.kind).options(**{**defaults, **source.options})
    if source.kind != "parquet":
        return reader.load(uris.spark_uri(source.uri))
    listing = list_dataset(source.uri)
    merges = spark.conf.get("spark.sql.parquet.mergeSchema", "false") == "true"  # of all files
    if not source.options and not merges and (schema := _schema_of(listing)) is not None:
        reader = reader.schema(schema)
    if not listing.chosen:
        return reader.load(uris.spark_uri(source.uri))
    if not listing.files:
        raise SourceError(describe(source), "the list of files in it names none")
    files = [uris.spark_uri(uris.join(source.uri, file.name)) for file in listing.files]
    return reader.option("basePath", uris.spark_uri(source.uri)).load(files)


def _schema_of(listing: Listing) -> StructType | None:
    """What Spark would find with a job of its own, which takes a second, in the first file's footer.

    None where it has to look itself: types that it may take for others than Arrow does, columns in the names
    of folders, and object stores, whose credentials may be Spark's alone.
    """
    from pyspark.sql.pandas.types import from_arrow_type
    from pyspark.sql.types import StructField, StructType

    if not listing.files or listing.partitioned or uris.local_path(listing.uri) is None:
        return None
    [found] = read_footers(replace(listing, files=listing.files[:1])).schemas
    distinct = len({name.lower() for name in found.names}) == len(found.names)
    if not distinct or not all(str(item.type) in _SAME_TYPES for item in found):
        return None
    return StructType([StructField(item.name, from_arrow_type(item.type)) for item in found])


def _read_sql(spark: SparkSession, source: Source) -> DataFrame:
    """Bind the tables to this query alone: the session's own views stay as they are."""
    assert source.query is not None
    session = spark.newSession()
    for name, table in source.tables.items():
        read(session, table).createOrReplaceTempView(name)
    return session.sql(source.query, args=dict(source.query_args))


_READERS: dict[str, Callable[[SparkSession, Source], DataFrame]] = {
    "parquet": _read_files,
    "csv": _read_files,
    "json": _read_files,
    "sql": _read_sql,
}
