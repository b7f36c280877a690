"""Which files of a folder are its rows: those that its list names, or all where it has no list.

Where a folder cannot be exchanged for another at once (object stores, HDFS, NFS), a swap brings the new
files in beside the old ones and then writes a list of them, `_hydrogen_files-00000002-<token>.json`: from
that moment they are the folder's rows. Readers that ask here see the old rows or the new ones, never both
and never none. Spark and pyarrow skip the list itself, because of its underscore.

Lists are numbered and the highest counts. None is ever overwritten, so that a try that was overtaken and
comes late changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import PartitionFilesError
from airflow_hydrogen.runtime.storage import filesystems

FORMAT_VERSION = 1

_LIST = re.compile(r"_hydrogen_files-(\d{8,})-[0-9a-z]+\.json")
# Spark lists these, for their schemas, and reads no rows from them.
_SUMMARIES = ("_metadata", "_common_metadata")
_LOOKS = 5


@dataclass(frozen=True)
class FileList:
    """What a list of files says.

    Attributes:
        files: (name below the folder, bytes) of every file that holds rows.
        rows: rows in them, or None where nobody has counted.
        run: the Airflow run that wrote them, or None.
        model: the model that made them, or None.
    """

    files: tuple[tuple[str, int], ...]
    rows: int | None = None
    run: dict[str, Any] | None = None
    model: str | None = None

    def dumps(self) -> bytes:
        """The content of the list's file."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1).encode()

    @classmethod
    def loads(cls, where: str, content: bytes) -> FileList:
        """Read the content of a list's file.

        Args:
            where: the file, for messages.

        Raises:
            PartitionFilesError: it cannot be read, or has another format version.
        """
        try:
            document = json.loads(content)
            version = document.pop("format_version")
            document["files"] = tuple((str(name), int(size)) for name, size in document["files"])
            found = cls(**document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PartitionFilesError(where, f"cannot be read ({error!r})") from error
        if version != FORMAT_VERSION:
            raise PartitionFilesError(where, f"has format version {version!r}, expected {FORMAT_VERSION}")
        return found


def is_hidden(name: str) -> bool:
    """Whether Spark skips a file, because of its own name or that of a folder on the way to it."""
    *folders, file = name.split("/")
    return _is_skipped(file) or any(
        _is_skipped(folder) and not folder.startswith(_SUMMARIES) for folder in folders
    )


def _is_skipped(part: str) -> bool:
    return (part.startswith("_") and "=" not in part) or part.startswith(".") or part.endswith("._COPYING_")


def list_name(number: int, token: str) -> str:
    """The name of a list in its folder."""
    return f"_hydrogen_files-{number:08d}-{token}.json"


def list_number(name: str) -> int | None:
    """The number of a list by its name in its folder; None for other files."""
    match = _LIST.fullmatch(name)
    return int(match[1]) if match else None


def newest_lists(names: Iterable[str]) -> dict[str, str]:
    """The lists that count: folder ("" for the root) -> name of the list below the root."""
    newest: dict[str, tuple[int, str]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        number = list_number(base)
        if number is not None and not (folder and is_hidden(folder)):
            newest[folder] = max(newest.get(folder, (-1, "")), (number, name))
    return {folder: name for folder, (_number, name) in newest.items()}


def visible_files(
    found: Iterable[tuple[str, int]], read_list: Callable[[str], bytes]
) -> list[tuple[str, int]]:
    """The files that hold the rows of a folder. Pure but for `read_list`.

    The list nearest above a file decides about it, so that partitions of a table have one each.

    Args:
        found: (name below the folder, bytes) of every file there, lists included.
        read_list: gives the content of a list by its name in `found`.

    Returns:
        (name, bytes) in the order of names, without hidden and empty files.

    Raises:
        PartitionFilesError: a list names a file that was not found, or not with that size. It was
            replaced between the two looks, or somebody removed a file.
    """
    sizes = dict(found)
    lists = newest_lists(sizes)
    wanted = {
        f"{folder}/{name}" if folder else name: (where, size)
        for folder, where in lists.items()
        for name, size in FileList.loads(where, read_list(where)).files
        if _nearest(f"{folder}/{name}" if folder else name, lists) == folder
    }
    for name, (where, size) in wanted.items():
        if sizes.get(name) != size:
            there = f"{sizes[name]} bytes" if name in sizes else "no such file"
            raise PartitionFilesError(where, f"names {name!r} with {size} bytes, found {there}")
    return sorted(
        (name, size)
        for name, size in sizes.items()
        if name in wanted or (size and not is_hidden(name) and _nearest(name, lists) is None)
    )


def listed_files(uri: str) -> list[tuple[str, int]]:
    """The files that hold the rows of a folder, which may be a table with partitions; see `visible_files`.

    A folder that is replaced between two looks is looked at again.

    Returns:
        (name below `uri`, bytes); none where there is no such folder. A single file stands for itself.

    Raises:
        PartitionFilesError: a file that a list names is not there, however often one looks.
    """

    def look() -> list[tuple[str, int]]:
        found = filesystems.list_files(uri)
        return visible_files(found, lambda name: filesystems.read_bytes(uris.join(uri, name)))

    for _ in range(_LOOKS - 1):
        with contextlib.suppress(PartitionFilesError, FileNotFoundError):
            return look()
    return look()


def _nearest(name: str, folders: Collection[str]) -> str | None:
    """The deepest of the folders that a file lies in, itself or further down."""
    folder = name
    while folder:
        folder = folder.rpartition("/")[0]
        if folder in folders:
            return folder
    return None
