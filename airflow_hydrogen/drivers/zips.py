"""Zips that are the same bytes for the same files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path


def write_zip(target: Path, files: Iterable[tuple[Path, Path]]) -> Path:
    """Zip files under other names: (name, file)."""
    with zipfile.ZipFile(target, "w") as archive:
        for inside, file in sorted(files):
            # A fixed date and mode: the same files give the same bytes.
            entry = zipfile.ZipInfo(inside.as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())
    return target
