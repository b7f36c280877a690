"""What a run reads: looked up when its first try starts, and the same for every retry.

A Delta table is read as of the version that was the newest then. Where a source cannot be read as it was (a
folder of files, a database), what it looked like is kept, and a retry says what has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.errors import SourceError
from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.data import databases, iceberg, sources
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.data.files import Listing
from airflow_hydrogen.runtime.data.recipes import files_of, of_files, table_version
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors
from airflow_hydrogen.runtime.storage import filesystems

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Snapshot = dict[str, Any]
"""JSON: "source", and of version, rows, highest, files, bytes, digest and tables what is known of it."""

_WORDS = {
    "version": "its version",
    "rows": "its number of rows",
    "highest": "the highest value of its partition column",
    "files": "its number of files",
    "bytes": "its size in bytes",
    "digest": "its files",
}


@dataclass(frozen=True)
class Opened:
    """A source as this run reads it.

    Attributes:
        source: the source, its versions put in.
        frame: its rows.
        snapshot: what was found.
    """

    source: Source
    frame: DataFrame
    snapshot: Snapshot


def open_pinned(
    spark: SparkSession, source: Source, access: Access | None = None, earlier: Snapshot | None = None
) -> Opened:
    """Open a source as an earlier try of the run has found it, or as it is now.

    Args:
        spark: the session.
        source: what to read.
        access: what opens the connections that the source names.
        earlier: what the first try has found; None in the first try.

    Raises:
        SourceError: it cannot be read, or no longer as it was.
    """
    try:
        pinned, snapshot = _pin(spark, source, access or {}, earlier or {})
    except spark_errors() as error:
        raise SourceError(str(source), root_cause(error)) from error
    try:
        frame = sources.read(spark, pinned, access)
    except SourceError as error:
        if not earlier or pinned == source:
            raise
        raise SourceError(
            str(pinned),
            f"{error.reason}. The run's first try read that; clear the task to read what is there now",
        ) from error
    if not snapshot.get("tables") and "version" not in snapshot and "rows" not in snapshot:
        snapshot |= _files(frame)
    elif snapshot.get("tables") and (found := files_of(frame)) is not None:
        snapshot["digest"] = found.digest
    return Opened(pinned, frame, snapshot)


def of_listing(source: Source, listing: Listing) -> Snapshot:
    """The snapshot of files that are read as they lie."""
    return {
        "source": str(source),
        "files": len(listing.files),
        "bytes": sum(file.size for file in listing.files),
        "digest": of_files(listing),
    }


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed in a source since a run's first try, in words. Pure."""
    found = [
        f"{words} was {earlier[name]:,} and is {now[name]:,}"
        if isinstance(earlier[name], int) and isinstance(now[name], int)
        else (f"{words} changed" if name == "digest" else f"{words} was {earlier[name]} and is {now[name]}")
        for name, words in _WORDS.items()
        if name in earlier and name in now and earlier[name] != now[name]
    ]
    for name, table in now.get("tables", {}).items():
        before = earlier.get("tables", {}).get(name, {})
        found += [f"table {name!r}: {difference}" for difference in differences(before, table)]
    return found


class Kept:
    """What the first try of a run has found, in a file beside what the run makes: its retries read the same.

    Args:
        uri: of the file.
        run: the Airflow run; None: there are no retries.
    """

    def __init__(self, uri: str, run: Run | None) -> None:
        self._uri, self._run = uri, dataclasses.asdict(run) if run is not None else None
        self._found: dict[str, Snapshot] = {}
        if self._run is None:
            return
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            document = json.loads(filesystems.read_bytes(uri))
            if document["run"] == self._run:
                self._found = dict(document["snapshots"])

    def earlier(self, name: str) -> Snapshot | None:
        """What was found of a source; None where nobody has looked."""
        return self._found.get(name)

    def note(self, name: str, now: Snapshot) -> None:
        """Keep what is read, before anything is made of it, and say what has changed since the first try.

        Args:
            name: of the source, as `earlier` and messages call it.
            now: what this try has found.
        """
        earlier = self._found.get(name)
        if earlier is not None and earlier.get("source") == now["source"]:
            if found := differences(earlier, now):
                print(f"{name} has changed since the run's first try: {'; '.join(found)}", flush=True)
            return
        self._found[name] = now
        if self._run is not None:
            document = {"run": self._run, "snapshots": self._found}
            filesystems.write_bytes(self._uri, json.dumps(document, indent=1).encode())

    def forget(self) -> None:
        """Remove the file: there will be no retry."""
        filesystems.remove(self._uri)


def _pin(
    spark: SparkSession, source: Source, access: Access, earlier: Mapping[str, Any]
) -> tuple[Source, Snapshot]:
    """The source with the versions that are read, and what is known before it is read."""
    snapshot: Snapshot = {"source": str(source)}
    if earlier and earlier.get("source") != snapshot["source"]:
        print(f"the run's first try read {earlier.get('source')}, this one reads {source}", flush=True)
        earlier = {}
    if source.kind == "sql":
        tables = {}
        snapshot["tables"] = {}
        for name, table in source.tables.items():
            before = earlier.get("tables", {}).get(name, {})
            tables[name], snapshot["tables"][name] = _pin(spark, table, access, before)
        return replace(source, tables=tables), snapshot
    if source.kind in ("delta", "iceberg", "table"):
        version = source.version
        if version is None:
            version = earlier["version"] if "version" in earlier else _version(spark, source, access)
        if version is not None:
            snapshot["version"] = int(version)
            return replace(source, version=int(version), timestamp=None), snapshot
    if source.kind == "jdbc":
        extent = databases.extent(spark, source, access)
        snapshot["rows"] = extent.rows
        if extent.highest is not None:
            snapshot["highest"] = str(extent.highest)
    return source, snapshot


def _version(spark: SparkSession, source: Source, access: Access) -> int | None:
    """The version of a table that is read now; None where it has none that we can tell."""
    if source.kind == "iceberg":
        return iceberg.newest(spark, source, access)
    frame = sources.read(spark, replace(source, columns=None, where=None, where_args={}))
    return None if is_connect(spark) else table_version(frame)


def _files(frame: DataFrame) -> Snapshot:
    found = files_of(frame)
    if found is None:
        return {}
    return {"files": found.number, "bytes": found.size, "digest": found.digest}
