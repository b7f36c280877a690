"""Put a complete folder in the place of another."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from pathlib import Path

from airflow_hydrogen.contract import uris
from airflow_hydrogen.runtime.storage import filesystems

_AT_FDCWD = -100


_RENAME_EXCHANGE = 2


def replace_tree(staged: str, target: str) -> None:
    """Put a complete folder in the place of another, on any filesystem.

    Local folders are exchanged at once (`replace_folder`). On an object store the old files are removed
    before the new ones are copied: a reader may find fewer files in between, and a failure there leaves
    the staged folder to copy again.
    """
    staged_path, target_path = uris.local_path(staged), uris.local_path(target)
    if staged_path is not None and target_path is not None:
        replace_folder(staged_path, target_path)
        return
    filesystems.remove(target)
    filesystems.move(staged, target)


def replace_folder(staged: Path, target: Path) -> None:
    """Put a complete local folder in the place of another at once.

    On Linux the two are exchanged by one system call (renameat2 with RENAME_EXCHANGE), so a reader finds
    the old folder or the new one and never none. Where the filesystem cannot do that (NFS), the old one
    is moved aside first and moved back if the second rename fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        staged.rename(target)  # nothing there, or an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
    if not _exchange(staged, target):
        aside = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
        target.rename(aside)
        try:
            staged.rename(target)
        except OSError:
            aside.rename(target)
            raise
        staged = aside
    shutil.rmtree(staged, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))
