"""DataFrame -> Parquet that suits a gang."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    DataError,
    EmptyDatasetError,
    SchemaMismatchError,
    UnwritableUriError,
)
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.data import recipes, scans, snapshots
from airflow_hydrogen.runtime.data.counting import write_files
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.data.files import DatasetFiles, Listing, list_dataset, read_footers
from airflow_hydrogen.runtime.data.snapshots import Kept, Snapshot
from airflow_hydrogen.runtime.data.sources import Prepare, explained, is_plain_parquet, prepared
from airflow_hydrogen.runtime.storage import filesystems

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_FILES_PER_RANK = 4
_ROW_GROUP_BYTES = 16 * 1024 * 1024
_MAX_ROW_GROUP_BYTES = 256 * 1024 * 1024
_MARKER = "_STAGED.json"
_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class StagedDataset:
    """Parquet that the ranks read.

    Attributes:
        files: the list that they read by.
        fingerprint: hash of all that decides the rows.
        in_place: the source itself, because it fits already.
        snapshot: what the rows were made of (`snapshots.Snapshot`).
    """

    files: DatasetFiles
    fingerprint: str
    in_place: bool
    snapshot: Snapshot

    @property
    def uri(self) -> str:
        """Its folder."""
        return self.files.uri

    @property
    def rows(self) -> int:
        """Rows in it."""
        return self.files.total_rows


def stage(
    spark: SparkSession,
    name: str,
    source: Source,
    uri: str,
    *,
    ranks: int,
    prepare: Prepare | None = None,
    prepare_kwargs: Mapping[str, Any] | None = None,
    access: Access | None = None,
    kept: Kept | None = None,
) -> StagedDataset:
    """Make a dataset ready for a gang.

    Parquet of one schema whose row groups are small enough is read in place: plain files, partition folders
    and Delta tables, `columns` of them, and the partitions that a condition leaves. Everything else goes
    through Spark once and is written with several files a rank and row groups of 16 MB, its rows shuffled.
    What an earlier try wrote is used again, if everything that decides the rows is as it was.

    Args:
        spark: the session.
        name: the dataset's name.
        source: where its rows come from.
        uri: the folder to write below; it is visible to every rank.
        ranks: size of the gang.
        prepare, prepare_kwargs: the user's function.
        access: what opens the connections that the source names.
        kept: what the run's first try has found, which a retry reads where it can.

    Raises:
        SourceError: the source cannot be read.
        EmptyDatasetError: no rows.
    """
    label = f"dataset {name!r}"
    kept = kept or Kept(uri, None)
    plain, difference = None, None
    if prepare is None and is_plain_parquet(source):
        assert source.uri is not None
        listing = list_dataset(source.uri)
        plain = _plain_files(listing, source.columns)
        difference = plain.difference() if plain else None
        if plain and _fit(plain):
            fingerprint = recipes.of_files(listing, source.columns)
            snapshot = snapshots.of_listing(source, listing)
            kept.note(label, snapshot)
            return StagedDataset(plain, fingerprint, True, snapshot)
    if difference is not None:
        print(f"{label}: {difference}; Spark reads the files by the schema of one", flush=True)
    opened = snapshots.open_pinned(spark, source, access, kept.earlier(label))
    kept.note(label, opened.snapshot)
    frame = prepared(opened.frame, prepare, prepare_kwargs or {})
    recipe = recipes.recipe(frame, opened.source, prepare, prepare_kwargs or {}, ranks)
    if prepare is None and plain is None:
        scan = scans.scan_of(frame, opened.source, frame.columns)
        # Equal steps need to know how many rows there are: nobody counts those that a condition leaves.
        if scan and scan.condition is None and _fit(scan.files):
            return StagedDataset(scan.files, recipes.fingerprint(recipe), True, opened.snapshot)
    before = _prepared_before(name, uri, recipe, opened.snapshot)
    if before is not None:
        return before
    folder = uris.join(uri, secrets.token_hex(6))
    try:
        with explained(opened.source):
            require_same_files = recipes.same_files(frame, str(opened.source))
            rows = _write(frame, folder, ranks * _FILES_PER_RANK)
            require_same_files()
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
        raise EmptyDatasetError(name, str(source))
    document = {"recipe": recipe, "rows": rows}
    filesystems.write_bytes(uris.join(folder, _MARKER), json.dumps(document, indent=1).encode())
    return StagedDataset(files, recipes.fingerprint(recipe), False, opened.snapshot)


def _prepared_before(
    name: str, uri: str, recipe: Mapping[str, str], snapshot: Snapshot
) -> StagedDataset | None:
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
            return StagedDataset(written, recipes.fingerprint(recipe), False, snapshot)
        print(f"dataset {name!r}: prepared again: {'; '.join(reasons)}", flush=True)
        filesystems.remove(place)  # what is there is no longer what it says
    return None


def _write(frame: DataFrame, uri: str, files: int) -> int:
    """Write rows shuffled; the number of those that were written.

    The rows of each partition are dealt out to all files in an order that Spark repeats where it has to run a
    task again, so that each comes once. Within a file their order is random.
    """
    from pyspark.sql import functions

    shuffled = frame.repartition(files).sortWithinPartitions(functions.rand(_SHUFFLE_SEED))
    return write_files(shuffled, uri, options={"parquet.block.size": str(_ROW_GROUP_BYTES)})


def _plain_files(listing: Listing, columns: Sequence[str] | None) -> DatasetFiles | None:
    """The files of a folder without partition folders; None where Spark has to say what its columns are."""
    if listing.partitioned or not listing.files:
        return None
    files = read_footers(listing, columns)
    if columns is None:
        return files
    return None if set(columns) - set(files.schema.names) else files.select(columns)


def _fit(files: DatasetFiles) -> bool:
    """Whether a gang can read files as they lie: rows of one schema, in row groups of moderate size."""
    return (
        files.total_rows > 0
        and files.difference() is None
        and not files.has_legacy_dates
        and all(size <= _MAX_ROW_GROUP_BYTES for file in files.files for size in file.sizes)
    )
