"""Source -> DataFrame, and DataFrame -> Parquet that suits a gang."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import EmptyDatasetError, EntrypointError, SourceError
from airflow_hydrogen.contract.jobs import Source
from airflow_hydrogen.runtime.data.dataset import has_partition_folders, parquet_files
from airflow_hydrogen.runtime.storage import filesystems

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Prepare = Callable[..., "DataFrame"]

_CSV_DEFAULTS = {"header": "true", "inferSchema": "true"}
_FILES_PER_RANK = 4
_ROW_GROUP_BYTES = 16 * 1024 * 1024
_MAX_ROW_GROUP_BYTES = 256 * 1024 * 1024
_MARKER = "_STAGED.json"


@dataclass(frozen=True)
class StagedDataset:
    """Parquet that the ranks read.

    Attributes:
        uri: its folder.
        rows: rows in it.
        fingerprint: hash of the names and sizes of the files that the rows came from.
        in_place: the source itself, because it fits already.
    """

    uri: str
    rows: int
    fingerprint: str
    in_place: bool


def read(spark: SparkSession, source: Source) -> DataFrame:
    """Open a source as a DataFrame.

    Raises:
        SourceError: a path that is not there, a query or condition that does not resolve.
    """
    from pyspark.errors import AnalysisException, ParseException

    try:
        frame = _READERS[source.kind](spark, source)
        return frame if source.where is None else frame.where(source.where)
    except (AnalysisException, ParseException) as error:
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
    prepared = prepare(spark, frame, **kwargs)
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
    through Spark once and is written with several files a rank and row groups of 16 MB, its rows dealt out
    round-robin. What an earlier try wrote from the same files is used again.

    Args:
        spark: the session.
        name: the dataset's name.
        source: where its rows come from.
        uri: the folder to write to; it is visible to every rank.
        ranks: size of the gang.
        prepare, prepare_kwargs: the user's function.

    Raises:
        SourceError: the source cannot be read.
        EmptyDatasetError: no rows.
    """
    if prepare is None and source.kind == "parquet" and source.where is None:
        assert source.uri is not None
        rows = _rows_that_fit(source.uri)
        if rows:
            files = [
                (path, size) for path, size in filesystems.list_files(source.uri) if path.endswith(".parquet")
            ]
            return StagedDataset(source.uri, rows, _fingerprint(files), in_place=True)
    frame = read_prepared(spark, source, prepare, prepare_kwargs or {})
    fingerprint = _fingerprint([(file, _size(uris.from_input_file(file))) for file in frame.inputFiles()])
    marker = uris.join(uri, _MARKER)
    if filesystems.exists(marker):
        found = json.loads(filesystems.read_bytes(marker))
        if found["fingerprint"] == fingerprint:
            print(
                f"dataset {name!r}: using the {found['rows']:,} rows that an earlier try prepared", flush=True
            )
            return StagedDataset(uri, found["rows"], fingerprint, in_place=False)
    (
        frame.repartition(ranks * _FILES_PER_RANK)
        .write.mode("overwrite")
        .option("parquet.block.size", _ROW_GROUP_BYTES)
        .parquet(uris.spark_uri(uri))
    )
    rows = count_rows(uri)
    if not rows:
        raise EmptyDatasetError(name, describe(source))
    filesystems.write_bytes(marker, json.dumps({"fingerprint": fingerprint, "rows": rows}).encode())
    return StagedDataset(uri, rows, fingerprint, in_place=False)


def count_rows(uri: str) -> int:
    """Rows of the Parquet files below a URI, from their footers."""
    return sum(metadata.num_rows for metadata in _footers(uri))


def describe(source: Source) -> str:
    """How messages call a source."""
    where = f" where {source.where}" if source.where else ""
    return f"sql {source.query!r}{where}" if source.kind == "sql" else f"{source.kind} {source.uri!r}{where}"


def _rows_that_fit(uri: str) -> int:
    """Rows of Parquet that a gang can read as it lies; 0 where it cannot, or there is none.

    It can where row groups are of moderate size and no column hides in folder names (`ds=2013-01-01/`).
    """
    if has_partition_folders(uri):
        return 0
    rows = 0
    for metadata in _footers(uri):
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        if any(group.total_byte_size > _MAX_ROW_GROUP_BYTES for group in groups):
            return 0
        rows += metadata.num_rows
    return rows


def _footers(uri: str) -> list[Any]:
    import pyarrow.parquet as pq

    filesystem, _ = filesystems.resolve(uri)
    if not filesystems.exists(uri):
        return []
    footers = []
    for path in parquet_files(uri):
        with filesystem.open_input_file(path) as stream:
            footers.append(pq.read_metadata(stream))
    return footers


def _size(uri: str) -> int:
    filesystem, path = filesystems.resolve(uri)
    return int(filesystem.get_file_info(path).size or 0)


def _fingerprint(files: list[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()


def _read_files(spark: SparkSession, source: Source) -> DataFrame:
    assert source.uri is not None
    defaults = _CSV_DEFAULTS if source.kind == "csv" else {}
    reader = spark.read.format(source.kind).options(**{**defaults, **source.options})
    return reader.load(uris.spark_uri(source.uri))


def _read_sql(spark: SparkSession, source: Source) -> DataFrame:
    """Bind the tables to this query alone: the session's own views stay as they are."""
    assert source.query is not None
    session = spark.newSession()
    for name, table in source.tables.items():
        read(session, table).createOrReplaceTempView(name)
    return session.sql(source.query)


_READERS: dict[str, Callable[[SparkSession, Source], DataFrame]] = {
    "parquet": _read_files,
    "csv": _read_files,
    "json": _read_files,
    "sql": _read_sql,
}
