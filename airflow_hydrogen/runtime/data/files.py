"""The one list of a Parquet dataset's files and row groups.

Whoever decides makes the list once (the driver) and hands it out; ranks and workers are told, and look at
nothing for themselves. What is listed is what Spark reads: `spark.read.parquet(folder)` takes the files that
lie in the folder itself and, where folders below it are named like `ds=2013-01-01`, those in these too.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    DatasetChangedError,
    PartitionFilesError,
    SchemaMismatchError,
    SourceError,
)
from airflow_hydrogen.runtime.data.conditions import Condition
from airflow_hydrogen.runtime.data.footers import ColumnBytes, Footer
from airflow_hydrogen.runtime.data.opened import OpenedFile
from airflow_hydrogen.runtime.storage import filesystems
from airflow_hydrogen.runtime.storage.partition_files import is_hidden, newest_lists, visible_files

# pyarrow is imported late: the list passes through Spark's Python workers on its way to the ranks.
if TYPE_CHECKING:
    import pyarrow as pa

_FOOTER_THREADS = 16
_LOOKS = 5

PartitionValue = str | int | bool | None
"""Of a partition column; a date is the number of its day since 1970."""


class ListedFile(NamedTuple):
    """A file as the store lists it; `name` is relative to the dataset's folder."""

    name: str
    size: int
    modified_ns: int


class DataFile(NamedTuple):
    """A file with what its footer says.

    Attributes:
        name: relative to the dataset's folder; "" where the dataset is one file.
        size: bytes.
        schema: which of the dataset's schemas it has.
        rows: rows of each row group.
        sizes: uncompressed bytes of each row group, of the columns that were asked for.
        partition: which of the dataset's partitions it belongs to.
        skipped: row groups that hold no row of the condition that was asked for.
    """

    name: str
    size: int
    schema: int
    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    partition: int = 0
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class SchemaDifference:
    """The first column in which a file differs from the first file; None for a column that is not there."""

    file: str
    column: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        found = f"{self.found} in {self.file!r}" if self.found else f"not in {self.file!r}"
        expected = f"{self.expected} in the first file" if self.expected else "not in the first file"
        return f"column {self.column!r} is {found}, and {expected}"


@dataclass(frozen=True)
class Listing:
    """What Spark would read below a URI.

    Attributes:
        uri: a folder, or one file.
        files: in name order.
        partitioned: columns hide in the names of folders, as in `ds=2013-01-01/`.
        single: the URI is one file.
        chosen: lists of ours say which of the files there are the rows (`storage.partition_files`): Spark,
            which does not know of them, has to be told each file.
    """

    uri: str
    files: tuple[ListedFile, ...]
    partitioned: bool = False
    single: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class DatasetFiles:
    """Files and row groups of a dataset: a value that travels to ranks and workers.

    Attributes:
        uri: the folder, or the one file.
        files: in name order, those without rows left out.
        columns: bytes of each column.
        partition_columns: columns that have one value in a file, which is not read from it.
        partitions: values of these columns, by the number that a file names.
        legacy: a file has dates and times by the calendar of before 1582.
    """

    uri: str
    files: tuple[DataFile, ...]
    columns: Mapping[str, ColumnBytes]
    _schemas: tuple[bytes, ...] = field(repr=False)
    partition_columns: tuple[str, ...] = ()
    partitions: tuple[tuple[PartitionValue, ...], ...] = ()
    _schema: bytes | None = field(default=None, repr=False)
    legacy: bool = False

    @property
    def has_legacy_dates(self) -> bool:
        """Whether Spark alone can read these columns: old writers counted days in another calendar."""
        import pyarrow as pa

        return self.legacy and any(pa.types.is_temporal(item.type) for item in self.schema)

    @property
    def is_remote(self) -> bool:
        """Whether each read waits for a network."""
        return uris.local_path(self.uri) is None

    @property
    def total_rows(self) -> int:
        """Rows in all files."""
        return sum(sum(file.rows) for file in self.files)

    @functools.cached_property
    def schemas(self) -> tuple[pa.Schema, ...]:
        """The schemas that occur, the first file's first."""
        import pyarrow as pa

        return tuple(pa.ipc.read_schema(pa.py_buffer(schema)) for schema in self._schemas)

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Columns of the rows: the first file's, unless others were asked for."""
        import pyarrow as pa

        return self.schemas[0] if self._schema is None else pa.ipc.read_schema(pa.py_buffer(self._schema))

    def with_schema(self, schema: pa.Schema) -> DatasetFiles:
        """The same files, of which only these columns are read. A file that lacks one holds nulls there."""
        return replace(self, _schema=schema.serialize().to_pybytes())

    def select(self, columns: Sequence[str]) -> DatasetFiles:
        """The same files, of which only these columns, which the first one has, are read."""
        import pyarrow as pa

        return self.with_schema(pa.schema([self.schema.field(name) for name in columns]))

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        """Made once: the filesystem of an object store looks for credentials and opens connections."""
        return filesystems.resolve(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        """What travels: the fields, and nothing that a process has looked up for itself."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def difference(self) -> SchemaDifference | None:
        """Where the files' schemas differ: a column too few or too many, or another type.

        The order of the columns does not count, nor whether nulls are allowed, nor columns that are not read.
        """
        schemas = self.schemas
        if self._schema is not None:
            read = set(self.schema.names) - set(self.partition_columns)
            schemas = tuple([item for item in schema if item.name in read] for schema in schemas)
        expected, *others = [{item.name: item.type for item in schema} for schema in schemas] or [{}]
        for number, found in enumerate(others, 1):
            for column in (*expected, *found):
                if expected.get(column) != found.get(column):
                    name = next(file.name for file in self.files if file.schema == number)
                    types = (expected.get(column), found.get(column))
                    return SchemaDifference(name, column, *(type_ and str(type_) for type_ in types))
        return None

    def require_one_schema(self) -> None:
        """Refuse files that cannot be read as one table.

        Raises:
            SchemaMismatchError: naming file, column and types.
        """
        difference = self.difference()
        if difference is not None:
            raise SchemaMismatchError(self.uri, str(difference))

    def open(self, file: DataFile, buffer_bytes: int | None) -> OpenedFile:
        """Open a file of the list, if it is still the one that was listed.

        Args:
            file: one of `files`.
            buffer_bytes: column chunks are read in pieces of this size, however large they are; None: whole,
                and those that lie side by side in one request, when a row group is read.

        Raises:
            DatasetChangedError: it is gone, or is another one by now.
        """
        import pyarrow.parquet as pq

        filesystem, root = self._place
        try:
            stream = filesystem.open_input_file(_path(root, file.name))
        except FileNotFoundError:
            raise DatasetChangedError(self.uri, file.name, "it is gone") from None
        size = stream.size()
        if size != file.size:
            stream.close()
            raise DatasetChangedError(self.uri, file.name, f"it had {file.size:,} bytes and has {size:,}")
        opened = pq.ParquetFile(stream, buffer_size=buffer_bytes or 0, pre_buffer=buffer_bytes is None)
        rows = opened.metadata.num_rows
        if (opened.metadata.num_row_groups, rows) != (len(file.rows), sum(file.rows)):
            opened.close(force=True)
            raise DatasetChangedError(self.uri, file.name, f"it had {sum(file.rows):,} rows and has {rows:,}")
        return OpenedFile(opened, self._absent(file))

    def _absent(self, file: DataFile) -> dict[str, pa.Scalar]:
        """The columns that are not in a file, with the one value that they have in its rows."""
        import pyarrow as pa

        if self._schema is None:
            return {}
        values = (
            dict(zip(self.partition_columns, self.partitions[file.partition], strict=True))
            if self.partition_columns
            else {}
        )
        there = set(self.schemas[file.schema].names)
        return {
            item.name: pa.scalar(values.get(item.name), item.type)
            for item in self.schema
            if item.name in values or item.name not in there
        }


def list_dataset(uri: str) -> Listing:
    """The Parquet files that Spark reads below a URI; none where there is nothing.

    A folder that is replaced between two looks is looked at again.

    Raises:
        PartitionFilesError: a file that a list of ours names is not there, however often one looks.
    """
    for _ in range(_LOOKS - 1):
        with contextlib.suppress(PartitionFilesError, FileNotFoundError):
            return _look(uri)
    return _look(uri)


def _look(uri: str) -> Listing:
    from pyarrow.fs import FileSelector, FileType

    filesystem, root = filesystems.resolve(uri)
    itself = filesystem.get_file_info(root)
    if itself.type == FileType.File:
        files, _ = as_spark_lists([ListedFile(itself.base_name, itself.size, itself.mtime_ns or 0)])
        return Listing(uri, tuple(files), single=True)
    prefix = len(root.rstrip("/")) + 1
    found = [
        ListedFile(info.path[prefix:], info.size, info.mtime_ns or 0)
        for info in filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        if info.type == FileType.File
    ]
    chosen = bool(newest_lists(file.name for file in found))
    if chosen:
        sizes = [(file.name, file.size) for file in found]
        kept = {name for name, _ in visible_files(sizes, lambda name: _read(filesystem, root, name))}
        found = [file for file in found if file.name in kept]
    files, partitioned = as_spark_lists(found)
    return Listing(uri, tuple(files), partitioned, chosen=chosen)


def as_spark_lists(found: Iterable[ListedFile]) -> tuple[list[ListedFile], bool]:
    """Those of all files below a folder that Spark takes rows from. Pure.

    Returns:
        The files in name order, and whether columns hide in the names of folders. Without such columns
        only files that lie in the folder itself count.
    """
    shown = sorted(file for file in found if not is_hidden(file.name))
    # An empty file holds no rows, and yet makes its folder a partition.
    partitioned = any("=" in file.name.rpartition("/")[0] for file in shown)
    return [file for file in shown if file.size and (partitioned or "/" not in file.name)], partitioned


def read_footers(
    listing: Listing, columns: Sequence[str] | None = None, condition: Condition | None = None
) -> DatasetFiles:
    """Complete a list by what the files' footers say: each is read once, several at a time.

    Args:
        listing: the files.
        columns: those whose bytes count; all by default.
        condition: row groups whose statistics say that they hold no row of it are marked.

    Raises:
        SourceError: a file that is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem, root = filesystems.resolve(listing.uri)

    def footer_of(file: ListedFile) -> Footer:
        name = "" if listing.single else file.name
        try:
            with filesystem.open_input_file(_path(root, name)) as stream:
                return Footer.of(pq.read_metadata(stream), columns, condition)
        except FileNotFoundError:
            raise DatasetChangedError(listing.uri, file.name, "it is gone") from None
        except pa.ArrowInvalid as error:
            raise SourceError(f"parquet {listing.uri!r}", f"file {file.name!r}: {error}") from error

    schemas: dict[bytes, int] = {}
    files: list[DataFile] = []
    stored: dict[str, float] = {}
    decoded: dict[str, float] = {}
    legacy = False
    with ThreadPoolExecutor(_FOOTER_THREADS, "footers") as pool:
        for file, footer in zip(listing.files, pool.map(footer_of, listing.files), strict=True):
            number = schemas.setdefault(footer.schema, len(schemas))
            legacy = legacy or footer.legacy
            for name, size in footer.columns.items():
                stored[name] = stored.get(name, 0.0) + size.stored
                decoded[name] = decoded.get(name, 0.0) + size.decoded
            files.append(
                DataFile(
                    "" if listing.single else file.name,
                    file.size,
                    number,
                    footer.rows,
                    footer.sizes,
                    skipped=footer.skipped,
                )
            )
    rows = max(1, sum(sum(file.rows) for file in files))
    sizes = {name: ColumnBytes(stored[name] / rows, decoded[name] / rows) for name in stored}
    return DatasetFiles(listing.uri, tuple(files), sizes, tuple(schemas), legacy=legacy)


def count_rows(uri: str) -> int:
    """Rows of the Parquet files below a URI, from their footers."""
    return read_footers(list_dataset(uri)).total_rows


def _read(filesystem: Any, root: str, name: str) -> bytes:
    with filesystem.open_input_stream(_path(root, name)) as stream:
        return bytes(stream.read())


def _path(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if name else root
