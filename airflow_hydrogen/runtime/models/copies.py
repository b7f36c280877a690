"""Copies of models on this host: one for each version, shared by all processes of one user.

Spark ends its Python workers with SIGKILL, so that nothing can be tidied up at their end. Whoever uses a copy
therefore holds a shared lock (`flock`) on its folder, which the kernel releases whatever happens to the
process, and whoever opens one removes those that nobody holds and nobody has used for a while.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from airflow_hydrogen.contract.errors import ModelChangedError
from airflow_hydrogen.contract.private_folders import private_folder

KEPT_S = 3600.0
"""How long a copy that nobody uses is kept for the next task, in seconds."""

_PURPOSE = "models"
_PARTIAL = ".partial"
_DISCARDED = ".discarded-"


@contextlib.contextmanager
def hold(version: str, fetch: Callable[[Path], None], verify: Callable[[Path], None]) -> Iterator[Path]:
    """A verified copy of a model, which is not removed as long as the block lasts.

    Processes that ask for one version at the same time wait for the first of them to fetch it. A copy that is
    found damaged is thrown away and fetched again.

    Args:
        version: of the model: equal versions have equal files.
        fetch: puts the model's files into an empty folder.
        verify: looks at the files of a folder; raises ModelChangedError.

    Raises:
        ModelChangedError: what was fetched is not that version.
        UnwritableUriError: the temporary folder cannot be used.
    """
    root = private_folder(_PURPOSE)
    _sweep(root, version)
    held = _acquire(root / version, fetch, verify)
    try:
        os.utime(held)  # when it was last used
        yield root / version
    finally:
        os.close(held)


def _acquire(copy: Path, fetch: Callable[[Path], None], verify: Callable[[Path], None]) -> int:
    """A shared lock on a good copy. Each turn of the loop ends, or another process has done something."""
    partial = copy.with_name(f"{copy.name}{_PARTIAL}")
    while True:
        held = _lock(copy, fcntl.LOCK_SH)
        if held is None:
            held = _build(copy, partial, fetch, verify)
            if held is not None:
                return held
            continue
        try:
            verify(copy)
            return held
        except ModelChangedError:  # something else than this package has been at it
            _discard(copy, held)
            os.close(held)
        except BaseException:
            os.close(held)
            raise


def _build(
    copy: Path, partial: Path, fetch: Callable[[Path], None], verify: Callable[[Path], None]
) -> int | None:
    """Make the copy and return a shared lock on it, or wait for the process that makes it: None."""
    try:
        partial.mkdir(mode=0o700)
    except FileExistsError:  # another process makes it, and may have moved it to its place by now
        if partial.is_symlink() or partial.is_file():
            raise
    builder = _lock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if builder is None:
        waiter = _lock(partial, fcntl.LOCK_SH)  # granted when the builder is done, or dead
        if waiter is not None:
            os.close(waiter)
        return None
    try:
        if not copy.exists():  # else it was finished just before this process got the lock
            _empty(partial)  # of a process that died
            fetch(partial)
            verify(partial)
            partial.rename(copy)
            fcntl.flock(builder, fcntl.LOCK_SH)
            if _is_at(builder, copy):
                return builder
        _discard(partial, builder)
    except BaseException:
        _discard(partial, builder)
        os.close(builder)
        raise
    os.close(builder)
    return None


def _lock(folder: Path, kind: int) -> int | None:
    """A lock on a folder, or None where it is not there, has been moved meanwhile, or (LOCK_NB) is locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    locked = False
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, kind)
            locked = _is_at(descriptor, folder)
    finally:
        if not locked:
            os.close(descriptor)
    return descriptor if locked else None


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.lstat())
    except FileNotFoundError:
        return False


def _sweep(root: Path, version: str) -> None:
    """Remove what no process holds and none has used for a while, but the version that is asked for."""
    for folder in root.iterdir():
        # There may be hundreds, and a lock takes several calls: first see whether it is worth one.
        if folder.name == version or not _is_left(folder):
            continue
        held = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if held is None:
            continue
        try:
            if _is_left(folder):  # nobody has used it since
                _discard(folder, held)
        finally:
            os.close(held)


def _is_left(folder: Path) -> bool:
    """Whether none has used it for a while, or all are done with it."""
    if folder.name.startswith(_DISCARDED):
        return True
    try:
        return time.time() - folder.lstat().st_mtime > KEPT_S
    except FileNotFoundError:  # another process has swept it
        return False


def _discard(folder: Path, descriptor: int) -> None:
    """Take a folder out of the way at once, then remove its files. Not one that has taken its place."""
    aside = folder.with_name(f"{_DISCARDED}{secrets.token_hex(6)}")
    root = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(root, fcntl.LOCK_EX)  # so that nobody else discards between the next two lines
        if not _is_at(descriptor, folder):
            return
        folder.rename(aside)
    finally:
        os.close(root)
    shutil.rmtree(aside, ignore_errors=True)  # the next sweep finds what is left


def _empty(folder: Path) -> None:
    for child in folder.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
