"""Folders and files of a store, listed only as far as somebody asks."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple

from airflow_hydrogen.contract import uris
from airflow_hydrogen.schemas.unsure import UnsureError

# Spark takes its schema from these where they are.
_SUMMARIES = ("_metadata", "_common_metadata")
# A list of ours says which files of the folder count.
_LISTS = "_hydrogen_files-"


class Entry(NamedTuple):
    """A file or a folder by its path in the store."""

    path: str
    is_folder: bool
    size: int

    @property
    def name(self) -> str:
        """Its own, without the folders."""
        return posixpath.basename(self.path)


class Store:
    """A filesystem, as pyarrow reaches it: with the environment's credentials.

    Args:
        uri: of any place in it.
    """

    def __init__(self, uri: str) -> None:
        from pyarrow.fs import FileSystem, LocalFileSystem

        self._filesystem: Any
        path = uris.local_path(uri)
        if path is not None:
            self._filesystem, self.path = LocalFileSystem(), str(path)
        else:
            self._filesystem, self.path = FileSystem.from_uri(uris.arrow_uri(uri))

    def open(self, path: str) -> Any:
        """A file, to be read at any place in it."""
        return self._filesystem.open_input_file(path)

    def read(self, path: str) -> bytes:
        """The whole of a small file."""
        with self._filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    def entry(self, path: str) -> Entry | None:
        """What lies there, if anything does."""
        return _entry(self._filesystem.get_file_info(path))

    def entries(self, folder: str) -> list[Entry]:
        """What lies right below a folder, in the order of names."""
        from pyarrow.fs import FileSelector

        found = map(_entry, self._filesystem.get_file_info(FileSelector(folder)))
        return sorted(entry for entry in found if entry is not None)

    def data_files(self, folder: str, *, backwards: bool = False) -> Iterator[Entry]:
        """The files that Spark reads below a folder, found one after another.

        Args:
            folder: a table's, whose partitions may be folders.
            backwards: the last ones first.

        Raises:
            UnsureError: it holds what makes Spark, or us, read other files.
        """
        found = self.entries(folder)
        for entry in found:
            if entry.name in _SUMMARIES or entry.name.startswith(_LISTS):
                raise UnsureError(f"{entry.path} says which of its files or columns count")
        for entry in reversed(found) if backwards else found:
            if _is_hidden(entry.name):
                continue
            if not entry.is_folder:
                if entry.size:
                    yield entry
            elif "=" in entry.name:
                yield from self.data_files(entry.path, backwards=backwards)
            else:
                raise UnsureError(f"its folder {entry.path} is no partition")


def _entry(info: Any) -> Entry | None:
    from pyarrow.fs import FileType

    if info.type == FileType.NotFound:
        return None
    return Entry(info.path, info.type == FileType.Directory, info.size or 0)


def _is_hidden(name: str) -> bool:
    return (name.startswith("_") and "=" not in name) or name.startswith(".") or name.endswith("._COPYING_")
