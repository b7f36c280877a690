"""Columns of Parquet, ORC and CSV files: what some of them say, where these agree."""

from __future__ import annotations

import csv
import itertools
import posixpath
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.schemas import types
from airflow_hydrogen.schemas.stores import Entry, Store
from airflow_hydrogen.schemas.types import Columns
from airflow_hydrogen.schemas.unsure import UnsureError

_GLOB = frozenset("*?[]{}\\")
# Of the first and of the last files: Spark takes one file's schema, and what it is where files differ depends
# on more than can be seen from here.
_SAMPLES = 4
_HEADER_BYTES = 64 * 1024
_CSV_OPTIONS = {"header", "inferschema", "sep", "delimiter"}
_SPARK_SCHEMA = b"org.apache.spark.sql.parquet.row.metadata"


def columns_of(source: Source) -> Columns:
    """The columns that Spark finds in files, those of partition folders included.

    Raises:
        UnsureError: that depends on more than can be seen in a few files.
        OSError: the files cannot be reached, or read.
    """
    assert source.uri is not None
    if set(source.uri) & _GLOB:
        raise UnsureError("its URI is a pattern")
    if source.options and source.kind != "csv":
        raise UnsureError("its options are Spark's")
    store = Store(source.uri)
    found = [_columns_of_file(store, entry, source) for entry in _samples(store)]
    if not found:
        raise UnsureError("no file is there")
    first, *others = found
    if any(sorted(other, key=str) != sorted(first, key=str) for other in others):
        raise UnsureError("its files differ in their columns")
    return types.require_distinct(first)


def _samples(store: Store) -> list[Entry]:
    root = store.entry(store.path)
    if root is None:
        return []
    if not root.is_folder:
        return [root]
    first = list(itertools.islice(store.data_files(store.path), _SAMPLES))
    last = itertools.islice(store.data_files(store.path, backwards=True), _SAMPLES)
    return list(dict.fromkeys([*first, *last]))


def _columns_of_file(store: Store, entry: Entry, source: Source) -> Columns:
    read: Callable[[Any, Source], Columns] = _READERS[source.kind]
    with store.open(entry.path) as file:
        inner = read(file, source)
    partitions = _partition_columns(posixpath.relpath(posixpath.dirname(entry.path), store.path))
    if entry.path == store.path:
        partitions = []
    # A partition's column that is in the files too has the folder's values.
    taken = {name.lower() for name in partitions}
    return [
        *((name, type_) for name, type_ in inner if name.lower() not in taken),
        *((name, None) for name in partitions),
    ]


def _partition_columns(folder: str) -> list[str]:
    return [unquote(part.partition("=")[0]) for part in folder.split("/") if "=" in part]


def _of_parquet(file: Any, source: Source) -> Columns:
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    found = [(field.name, types.of_arrow(field.type)) for field in schema]
    written = (schema.metadata or {}).get(_SPARK_SCHEMA)
    if not written:
        return found
    told = types.of_spark_json(written.decode())
    if not _agree(told, found):
        raise UnsureError("somebody has changed a file that Spark wrote, and left Spark's schema in it")
    return told


def _agree(some: Columns, others: Columns) -> bool:
    """Whether these are the same columns, as far as their types are known."""
    return len(some) == len(others) and all(
        name == other and (type_ == other_type or None in (type_, other_type))
        for (name, type_), (other, other_type) in zip(some, others, strict=True)
    )


def _of_orc(file: Any, source: Source) -> Columns:
    from pyarrow import orc

    return [(field.name, types.of_arrow(field.type)) for field in orc.ORCFile(file).schema]


def _of_csv(file: Any, source: Source) -> Columns:
    options = {name.lower(): value for name, value in source.options.items()}
    if set(options) - _CSV_OPTIONS or options.get("header", "true").lower() != "true":
        raise UnsureError("its options are Spark's")
    separator = options.get("sep", options.get("delimiter", ","))
    line = _first_line(bytes(file.read(_HEADER_BYTES)))
    if len(separator) != 1 or '"' in line or "\\" in line:
        raise UnsureError("its header needs Spark's own parser")
    names = next(csv.reader([line], delimiter=separator, quoting=csv.QUOTE_NONE))
    if not all(name and name == name.strip() for name in names):
        raise UnsureError("a name in its header is empty, or has blanks around it")
    return [(name, None) for name in names]


def _first_line(head: bytes) -> str:
    try:
        # Cut at the line's end first: the head may end within a letter.
        line, end, _ = head.partition(b"\n")
        text = line.decode("ascii").rstrip("\r")
    except UnicodeDecodeError:
        raise UnsureError("its header is not plain ASCII") from None
    if not text.strip() or "\r" in text or "\0" in text or (not end and len(head) == _HEADER_BYTES):
        raise UnsureError("its header is not in its first line")
    return text


_READERS: dict[str, Callable[[Any, Source], Columns]] = {
    "parquet": _of_parquet,
    "orc": _of_orc,
    "csv": _of_csv,
}
