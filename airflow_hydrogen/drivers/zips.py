"""Zips that are the same bytes for the same files, and files that lie in zips.

A path may go on inside a zip, as `zipimport` spells it: `/dags/flights.zip/helpers.py`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path


def write_zip(target: Path, files: Iterable[tuple[Path, Path]]) -> Path:
    """Zip files under other names: (name, file)."""
    target.write_bytes(zipped(files))
    return target


def zipped(files: Iterable[tuple[Path, Path]]) -> bytes:
    """The zip of files under other names: (name, file)."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for inside, file in sorted(files):
            # A fixed date and mode: the same files give the same bytes.
            entry = zipfile.ZipInfo(inside.as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, read_bytes(file))
    return written.getvalue()


def archive_of(path: Path) -> tuple[Path, str] | None:
    """The zip that a path goes through and the name inside it, or None for a path of the filesystem."""
    for parent in (path, *path.parents):
        if parent.exists():
            inside = path.relative_to(parent).as_posix()
            return (parent, "" if inside == "." else inside) if zipfile.is_zipfile(parent) else None
    return None


def is_file(path: Path) -> bool:
    """Whether there is such a file, on the filesystem or in a zip."""
    if path.is_file():
        return True
    if (found := archive_of(path)) is None:
        return False
    with zipfile.ZipFile(found[0]) as archive:
        return found[1] in archive.namelist()


def read_bytes(path: Path) -> bytes:
    """The content of a file, on the filesystem or in a zip.

    Raises:
        OSError: there is no such file.
    """
    if path.is_file() or (found := archive_of(path)) is None:
        return path.read_bytes()
    with zipfile.ZipFile(found[0]) as archive:
        try:
            return archive.read(found[1])
        except KeyError:
            raise FileNotFoundError(f"{found[0]} has no {found[1]}") from None


def files_below(folder: Path) -> dict[Path, int]:
    """The files below a folder, on the filesystem or in a zip, with their sizes in bytes."""
    if folder.is_dir():
        return {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    if (found := archive_of(folder)) is None:
        return {}
    archive_path, inside = found
    with zipfile.ZipFile(archive_path) as archive:
        return {
            archive_path / info.filename: info.file_size
            for info in sorted(archive.infolist(), key=lambda info: info.filename)
            if not info.is_dir() and (archive_path / info.filename).is_relative_to(archive_path / inside)
        }
