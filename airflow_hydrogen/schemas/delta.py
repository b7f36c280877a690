"""Columns of a Delta table, by the newest schema in its log."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.schemas import types
from airflow_hydrogen.schemas.stores import Entry, Store
from airflow_hydrogen.schemas.types import Columns
from airflow_hydrogen.schemas.unsure import UnsureError

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10}))?\.parquet")
# Here catalogs keep commits that are not in the log yet. Empty folders are everywhere.
_STAGED = ("_commits", "_staged_commits")


def columns_of(source: Source) -> Columns:
    """The columns of the newest version, or of the one that the source names.

    Names are the logical ones, whatever the files call the columns.

    Raises:
        UnsureError: the log does not say it, or not alone.
        OSError: the log cannot be reached, or read.
    """
    assert source.uri is not None
    if source.timestamp is not None:
        raise UnsureError("which version it had at a time, Delta says")
    store = Store(source.uri)
    entries = store.entries(posixpath.join(store.path, "_delta_log"))
    if any(store.entries(entry.path) for entry in entries if entry.name in _STAGED):
        raise UnsureError("its newest version is a catalog's to say")
    for metadata in _metadata(store, entries, None if source.version is None else int(source.version)):
        if any("coordinatedCommits" in key for key in metadata.get("configuration") or {}):
            raise UnsureError("its newest version is a catalog's to say")
        return types.require_distinct(types.of_spark_json(metadata["schemaString"]))
    raise UnsureError("its log holds no schema")


def _metadata(store: Store, entries: Sequence[Entry], pinned: int | None) -> Iterator[dict[str, Any]]:
    """The table's metadata as the log tells it, the newest first."""
    commits = {int(found[1]): entry for entry in entries if (found := _COMMIT.fullmatch(entry.name))}
    version = max(commits, default=-1) if pinned is None else pinned
    checkpoints = _checkpoints(entries)
    while version >= 0:
        if version not in commits and version not in checkpoints:
            raise UnsureError(f"its log does not say what version {version} has changed")
        if version in commits:
            actions = [json.loads(line) for line in store.read(commits[version].path).splitlines() if line]
            yield from (action["metaData"] for action in actions if action.get("metaData"))
        if version in checkpoints:
            for part in checkpoints[version]:
                yield from _of_checkpoint(store, part)
        version -= 1


def _checkpoints(entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    """Version -> all parts of its checkpoint."""
    parts: dict[tuple[int, int], list[Entry]] = {}
    for entry in entries:
        if found := _CHECKPOINT.fullmatch(entry.name):
            parts.setdefault((int(found[1]), int(found[2] or 1)), []).append(entry)
    return {version: found for (version, count), found in parts.items() if len(found) == count}


def _of_checkpoint(store: Store, part: Entry) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with store.open(part.path) as file:
        wanted = ["metaData.schemaString", "metaData.configuration"]
        rows = pq.ParquetFile(file).read(columns=wanted).column("metaData").to_pylist()
    for row in rows:
        if row and row["schemaString"]:
            yield {**row, "configuration": dict(row["configuration"] or ())}
