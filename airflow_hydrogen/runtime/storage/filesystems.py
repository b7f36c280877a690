"""URI -> filesystem. Everything that the runtime stores goes through here.

Local paths, `file://`, and whatever `pyarrow.fs.FileSystem.from_uri` knows: `s3://`, `gs://`, `abfs://`,
`hdfs://`. Hadoop's spellings of S3 (`s3a://`, `s3n://`) are understood. What the characters of a URI mean
says `contract/uris.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import UnwritableUriError
from airflow_hydrogen.runtime.storage import s3

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_T = TypeVar("_T")
_R = TypeVar("_R")

_COPY_BYTES = 8 * 1024 * 1024
_AT_ONCE = 16  # requests to a store


def resolve(uri: str) -> tuple[FileSystem, str]:
    """The filesystem of a URI and the path on it."""
    from pyarrow.fs import FileSystem, LocalFileSystem

    path = uris.local_path(uri)
    if path is not None:
        return LocalFileSystem(), str(path)
    access, location = s3.current(), uris.parse(uri)
    if access is not None and location.store == "s3":
        return s3.filesystem(access, location), f"{location.authority}{location.path}".rstrip("/")
    filesystem, inner = FileSystem.from_uri(uris.arrow_uri(uri))
    return filesystem, inner


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    from pyarrow.fs import FileType

    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type != FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """The whole of a small file.

    Raises:
        FileNotFoundError: no such file.
    """
    filesystem, path = resolve(uri)
    if uris.local_path(uri) is None and _renames(filesystem):
        # `write_bytes` may be, or have died, between its two last steps.
        for candidate in (path, _next(path)):
            with contextlib.suppress(FileNotFoundError), filesystem.open_input_stream(candidate) as stream:
                return bytes(stream.read())
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Write a small file completely or not at all, and its folders.

    What is there is overwritten at once. On HDFS, whose rename overwrites nothing, the new file lies beside
    the old one first, where `read_bytes` finds it once the old one is removed.
    """
    from pyarrow.fs import FileType

    path = uris.local_path(uri)
    if path is None:
        filesystem, inner = resolve(uri)
        folder, _, name = inner.rpartition("/")
        filesystem.create_dir(folder, recursive=True)
        if not _renames(filesystem):
            # An object appears when its upload is complete, and not before.
            with filesystem.open_output_stream(inner) as stream:
                stream.write(data)
            return
        whole = f"{folder}/{_temporary(name)}"
        with filesystem.open_output_stream(whole) as stream:
            stream.write(data)
        if exists(uri):
            following = _next(inner)
            if filesystem.get_file_info(following).type == FileType.File:
                filesystem.delete_file(following)
            filesystem.move(whole, following)
            filesystem.delete_file(inner)
            whole = following
        filesystem.move(whole, inner)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary(path.name))
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(uri: str) -> None:
    """Make a folder, and those above it; object stores have none."""
    filesystem, path = resolve(uri)
    if _renames(filesystem):
        filesystem.create_dir(path, recursive=True)


def open_output(uri: str) -> Any:
    """A stream into a new file of a folder that is there; the file is whole when the stream is closed."""
    filesystem, path = resolve(uri)
    return filesystem.open_output_stream(path)


def _temporary(name: str) -> str:
    """A hidden name beside a file, other for every writer."""
    hidden = name if name.startswith((".", "_")) else f".{name}"
    return f"{hidden}.{secrets.token_hex(4)}"


def _next(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.next"


def list_files(uri: str) -> list[tuple[str, int]]:
    """Files below a folder as (path relative to it, bytes), sorted; a single file stands for itself."""
    from pyarrow.fs import FileSelector, FileType

    filesystem, path = resolve(uri)
    itself = filesystem.get_file_info(path)
    if itself.type == FileType.File:
        return [(itself.base_name, itself.size)]
    infos = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    prefix = len(path.rstrip("/")) + 1
    return sorted((info.path[prefix:], info.size) for info in infos if info.type == FileType.File)


def list_folders(uri: str) -> list[str]:
    """Names of the folders right below a folder, sorted."""
    return [name for name, is_folder in list_names(uri) if is_folder]


def list_names(uri: str) -> list[tuple[str, bool]]:
    """What lies right below a folder as (name, whether it is a folder), sorted."""
    from pyarrow.fs import FileSelector, FileType

    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    return sorted((info.base_name, info.type == FileType.Directory) for info in infos)


def list_siblings(uri: str, purpose: re.Pattern[str]) -> list[str]:
    """The hidden neighbours of `uri` (`uris.sibling`) for a purpose.

    Args:
        uri: the folder or file.
        purpose: matches the whole of it, random parts included: `scores.staging-eu` has neighbours too, whose
            names begin as those of `scores` do.
    """
    return list_siblings_of_all([uri], purpose)


def list_siblings_of_all(targets: Collection[str], purpose: re.Pattern[str]) -> list[str]:
    """The hidden neighbours of many: each folder that they lie in is listed once; see `list_siblings`."""
    from pyarrow.fs import FileSelector

    folders: dict[str, dict[str, str]] = {}
    for uri in targets:
        beginning = uris.sibling(uri, "")
        folder, _, prefix = beginning.rpartition("/")
        folders.setdefault(folder, {})[prefix] = beginning

    def siblings(folder: str, beginnings: Mapping[str, str]) -> list[str]:
        filesystem, inner = resolve(folder or "/")
        infos = filesystem.get_file_info(FileSelector(inner or "/", allow_not_found=True))
        return [
            beginnings[name[:end]] + name[end:]
            for name in [info.base_name for info in infos if info.base_name.startswith(".")]
            for end in range(1, len(name))
            if name[:end] in beginnings and purpose.fullmatch(name[end:])
        ]

    found = many(lambda item: siblings(*item), folders.items())
    return [uri for some in found for uri in some]


def remove(uri: str) -> None:
    """Remove a file or a folder with all that it holds; nothing there is fine."""
    from pyarrow.fs import FileType

    filesystem, path = resolve(uri)
    kind = filesystem.get_file_info(path).type
    if kind == FileType.Directory:
        filesystem.delete_dir(path)
    elif kind == FileType.File:
        filesystem.delete_file(path)


def upload(folder: Path, uri: str) -> None:
    """Copy a local folder to a URI; what was there is replaced file by file."""
    from pyarrow.fs import LocalFileSystem, copy_files

    filesystem, path = resolve(uri)
    filesystem.create_dir(path, recursive=True)
    copy_files(str(folder), path, source_filesystem=LocalFileSystem(), destination_filesystem=filesystem)


def download(uri: str, folder: Path) -> None:
    """Copy what lies below a URI to a local folder."""
    from pyarrow.fs import LocalFileSystem, copy_files

    filesystem, path = resolve(uri)
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(path, str(folder), source_filesystem=filesystem, destination_filesystem=LocalFileSystem())


def download_file(uri: str, path: Path) -> None:
    """Copy one file to a local path.

    Raises:
        FileNotFoundError: no such file.
    """
    filesystem, inner = resolve(uri)
    with filesystem.open_input_stream(inner) as stream, path.open("wb") as file:
        shutil.copyfileobj(stream, file, _COPY_BYTES)


def transfer(source: str, target: str) -> None:
    """Bring one file to another name on its filesystem, where nothing is yet.

    It is renamed where that is one step. Object stores copy it, without bringing it here, and the source
    stays.
    """
    filesystem, inner_source = resolve(source)
    _, inner_target = resolve(target)
    if _renames(filesystem):
        filesystem.create_dir(inner_target.rpartition("/")[0], recursive=True)
        filesystem.move(inner_source, inner_target)
    else:
        filesystem.copy_file(inner_source, inner_target)


def transfer_all(names: Mapping[str, str]) -> None:
    """Bring many files to other names as `transfer` does.

    Args:
        names: URI of a file -> the one that it gets.
    """
    many(lambda item: transfer(*item), names.items())


def many(act: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Do something with many, some at the same time: a store takes long for each.

    When an error is raised none is under way any more.

    Args:
        act: is called on threads.
        items: what it is called with.

    Returns:
        What it has answered, in the order of the items.
    """
    items = list(items)
    if len(items) == 1:
        return [act(items[0])]
    with ThreadPoolExecutor(_AT_ONCE, "stores") as pool:
        return list(pool.map(act, items))


def _renames(filesystem: FileSystem) -> bool:
    """Whether a rename is one step, and not a copy of every byte."""
    return filesystem.type_name in ("local", "hdfs")


def require_writable(argument: str, uri: str) -> None:
    """Write and remove a small file beside `uri`, so that a wrong place is found before any work is done.

    Raises:
        UnwritableUriError: the probe could not be written.
    """
    made = _missing_folders(uri)
    probe = uris.sibling(uri, f"probe-{secrets.token_hex(4)}")
    try:
        path = uris.local_path(uri)
        if path is not None and path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file")
        write_bytes(probe, b"")
        remove(probe)
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among these
        raise UnwritableUriError(argument, uri, f"{str(error) or repr(error)}{_by_whom(uri)}") from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _by_whom(uri: str) -> str:
    """For messages: the connection with whose keys a URI was tried."""
    access = s3.current()
    return f" (with the keys of aws_conn_id={access.conn_id!r})" if access and s3.is_open_to_all(uri) else ""


def _missing_folders(uri: str) -> list[Path]:
    """Local parents that do not exist yet, deepest first: the probe must not leave them behind."""
    path = uris.local_path(uri)
    return [] if path is None else list(_until_existing(path.parent))


def _until_existing(path: Path) -> Iterator[Path]:
    while not path.exists() and path != path.parent:
        yield path
        path = path.parent
