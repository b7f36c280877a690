"""Folders below the temporary one that belong to one user alone, whoever else uses the machine."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from airflow_hydrogen.contract.errors import UnwritableUriError


def private_folder(purpose: str) -> Path:
    """This user's folder for a purpose, made where it is not there.

    Args:
        purpose: stands in its name.

    Raises:
        UnwritableUriError: it cannot be made, or is not this user's alone.
    """
    root = Path(tempfile.gettempdir()) / f"airflow-hydrogen-{purpose}-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UnwritableUriError("the temporary folder", str(root), str(error)) from error
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UnwritableUriError(
            "the temporary folder",
            str(root),
            "it is no folder that belongs to this user alone; remove it, or set TMPDIR to another place",
        )
    return root
