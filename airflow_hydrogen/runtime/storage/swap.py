"""Put new rows in the place of a folder's old ones: by one try alone, completely or not at all.

There are two ways, and `Replacement.commit` chooses:

- *Exchange*, for local folders on Linux: one system call swaps the new folder and the old one.
- *Switch*, for every other store: the new files are brought in beside the old ones under names of their
  own, and a list of files is written, which makes them the folder's rows (`partition_files`). Only then
  the old ones are removed.

A try may replace many folders. Each of them has an owner and a hidden neighbour of its own, and is replaced
as if it were the only one: who takes one of them takes nothing of the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    FilesLostError,
    PartitionFilesError,
    PartitionTakenError,
    PartlyReplacedError,
)
from airflow_hydrogen.runtime.storage import filesystems, partition_files
from airflow_hydrogen.runtime.storage.partition_files import FileList

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV)

# What tries stage, whether or not they were about to remove it, and owner files that were being written.
_LEFTOVER = re.compile(r"staging-[0-9a-f]{12}(?:\.gone)*|owner\.[0-9a-f]{8}")

_CLAIMS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replacement:
    """One try to replace a folder.

    Attributes:
        target: the folder.
        token: of this try alone, so that two tries share no folder and no file.
        number: of the list of files that it may write, higher than those of all tries before.
        run: the Airflow run, or None.
        name: of what is replaced, for messages.
    """

    target: str
    token: str
    number: int
    run: Mapping[str, Any] | None
    name: str

    @property
    def staged(self) -> str:
        """Where the new files are put together: a hidden neighbour of the target."""
        return staging_uri(self.target, self.token)

    def commit(self, *, rows: int | None = None, model: str | None = None) -> None:
        """Put the staged files in the place of the old ones.

        Args:
            rows: how many there are, for the list of files.
            model: what made them, likewise.

        Raises:
            PartitionTakenError: a newer try has begun.
            FilesLostError: what was brought in is not what was staged.
        """
        self.require_owner()
        staged, target = uris.local_path(self.staged), uris.local_path(self.target)
        if staged is None or target is None or not exchange(staged, target):
            self._switch(rows, model)

    def require_owner(self) -> None:
        """Raise PartitionTakenError where a newer try has begun."""
        found = _read_owner(self.target)
        if found is None or found["token"] != self.token:
            raise PartitionTakenError(self.name, _describe(found) if found else None)

    def _switch(self, rows: int | None, model: str | None) -> None:
        brought = {
            _own_name(self.token, name): (name, size)
            for name, size in partition_files.listed_files(self.staged)
        }
        before = self._freeze()
        try:
            filesystems.transfer_all(
                {
                    uris.join(self.staged, staged_name): uris.join(self.target, name)
                    for name, (staged_name, _size) in brought.items()
                }
            )
            there = dict(filesystems.list_files(self.target))
            lost = [name for name, (_, size) in brought.items() if there.get(name) != size]
            if lost:
                raise FilesLostError(self.target, lost)
            self.require_owner()
        except Exception:
            for name in brought:  # readers that know no lists would count them with the old ones
                sweep(uris.join(self.target, name))
            raise
        files = tuple((name, size) for name, (_, size) in brought.items())
        run = dict(self.run) if self.run is not None else None
        written = self._write_list(self.number, FileList(files, rows, run, model))
        # A try that was stopped for long after it had looked who owns the target may be too late. Both
        # write before they look, here and in `_freeze`, so that one at least sees the other.
        if self._newest_list() != written:
            raise PartitionTakenError(self.target, None)
        for name in before:
            filesystems.remove(uris.join(self.target, name))

    def _newest_list(self) -> str | None:
        found = filesystems.list_files(self.target)
        return partition_files.newest_lists(name for name, _size in found).get("")

    def _freeze(self) -> list[str]:
        """See to it that a list names what is there now, before new files come.

        Returns:
            Every file there: old ones, and what tries left behind that died.
        """
        found = [name for name, _size in filesystems.list_files(self.target)]
        lists = partition_files.newest_lists(found)
        if set(lists) == {""}:
            return found
        try:
            visible = tuple(partition_files.listed_files(self.target))
        except PartitionFilesError as error:
            log.warning("%s; it is replaced now", error)  # its files are not whole, and go
            return found
        if "" not in lists:
            written = self._write_list(self.number - 1, FileList(visible))
            found = [name for name, _size in filesystems.list_files(self.target)]
            if any(partition_files.list_number(name) for name in found if name != written):
                filesystems.remove(uris.join(self.target, written))
                raise PartitionTakenError(self.target, None)
        else:
            written = self._write_list(self.number - 1, FileList(visible))
        for folder, name in lists.items():
            if folder:  # of partitions below, where a table becomes one partition
                filesystems.remove(uris.join(self.target, name))
                found.remove(name)
        return found

    def _write_list(self, number: int, files: FileList) -> str:
        name = partition_files.list_name(number, self.token)
        filesystems.write_bytes(uris.join(self.target, name), files.dumps())
        return name


@contextmanager
def replacing(
    target: str, run: Mapping[str, Any] | None = None, name: str | None = None
) -> Iterator[Replacement]:
    """Begin a try to replace a folder: the block stages files and commits.

    The newest try wins: it takes the target from an older one that still runs, which fails when it
    commits. What older tries staged is removed, whether they died or not.

    Args:
        target: the folder. It need not exist.
        run: the Airflow run, for messages and for the list of files.
        name: of what is replaced, for messages, where that is not the target.

    Raises:
        PartitionTakenError: a newer try has begun meanwhile.
    """
    target = uris.canonical(target)
    with _replacing([Replacement(target, new_token(), 0, run, name or target)]) as [replacement]:
        yield replacement


@contextmanager
def replacing_all(
    targets: Sequence[str], run: Mapping[str, Any] | None = None
) -> Iterator[list[Replacement]]:
    """Begin a try to replace many folders; see `replacing`.

    Args:
        targets: the folders.
        run: as for `replacing`.

    Raises:
        PartitionTakenError: a newer try has begun to replace one of them.
    """
    targets, token = [uris.canonical(target) for target in targets], new_token()
    with _replacing([Replacement(target, token, 0, run, target) for target in targets]) as replacements:
        yield replacements


@contextmanager
def _replacing(wanted: Sequence[Replacement]) -> Iterator[list[Replacement]]:
    """Claim what is to be replaced, and give it up when the block ends, with what is staged by then."""
    stale = filesystems.list_siblings_of_all([replacement.target for replacement in wanted], _LEFTOVER)
    claimed: dict[str, Replacement] = {}

    def claim(replacement: Replacement) -> None:
        claimed[replacement.target] = _begin(replacement)

    def sweep_staged() -> None:
        filesystems.many(sweep, [replacement.staged for replacement in claimed.values()])

    try:
        filesystems.many(claim, wanted)
        # Only what was there before the claim: a try that begins after this one is none of its business.
        filesystems.many(sweep, stale)
        yield [claimed[replacement.target] for replacement in wanted]
    except Exception as error:
        sweep_staged()
        taken = taken_meanwhile(claimed.values(), error)
        filesystems.many(_release, claimed.values())
        if taken is not None:
            raise taken from error
        raise
    except BaseException:  # it is being ended, and has no time for more
        sweep_staged()
        raise
    sweep_staged()
    filesystems.many(_release, claimed.values())


def _begin(replacement: Replacement) -> Replacement:
    """Write that a target belongs to this try, and number its list of files."""
    target = replacement.target
    owner = _read_owner(target)
    found = partition_files.newest_lists(name for name, _size in filesystems.list_files(target))
    numbers = [partition_files.list_number(name.rpartition("/")[2]) or 0 for name in found.values()]
    # One number for the list of the new files, one before it for that of the old ones (`_freeze`).
    number = max([0, *numbers, owner["number"] if owner else 0]) + 2
    claim = {"token": replacement.token, "number": number, "run": replacement.run}
    _claim(target, json.dumps(claim).encode())
    return dataclasses.replace(replacement, number=number)


def exchange(staged: Path, target: Path) -> bool:
    """Put a complete local folder in the place of another at once, and remove the other.

    On Linux the two are exchanged by one system call (renameat2 with RENAME_EXCHANGE), so a reader finds
    the old folder or the new one and never none.

    Returns:
        False where this filesystem cannot do that (NFS): nothing has changed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        staged.rename(target)  # nothing there, or an empty folder
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
    if not _exchange(staged, target):
        return False
    shutil.rmtree(staged, ignore_errors=True)  # what is left of it is hidden, and goes with the next swap
    return True


def _exchange(first: Path, second: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


# --- who owns a target -----------------------------------------------------------------------------------


def _claim(target: str, claim: bytes) -> None:
    """Write who owns a target.

    Others who begin at the same moment may take the unfinished file for a leftover and sweep it: each of them
    does so once, and the next one is not on their list.
    """
    for _attempt in range(_CLAIMS):
        with contextlib.suppress(FileNotFoundError):
            return filesystems.write_bytes(_owner_uri(target), claim)
    raise PartitionTakenError(target, None)


def _owner_uri(target: str) -> str:
    return uris.sibling(target, "owner")


def _read_owner(target: str) -> dict[str, Any] | None:
    """What the newest try has written of itself, or None where it has finished."""
    try:
        found = json.loads(filesystems.read_bytes(_owner_uri(target)))
        return {"token": str(found["token"]), "number": int(found["number"]), "run": found["run"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s cannot be read and is written anew", _owner_uri(target))
        return None


def _describe(owner: Mapping[str, Any]) -> str:
    run = owner["run"]
    if not isinstance(run, Mapping):
        return "another application, outside Airflow"
    names = ", ".join(f"{name}={value!r}" for name, value in run.items())
    return f"another try ({names})"


def taken_meanwhile(replacements: Iterable[Replacement], error: Exception) -> PartitionTakenError | None:
    """Why a try failed whose staged files a newer one has removed under its hands.

    Args:
        replacements: of the try.
        error: with which it failed.

    Returns:
        None where no newer one is to blame, or the error says it already.
    """
    if isinstance(error, (PartitionTakenError, PartlyReplacedError)):
        return None
    found = filesystems.many(_taken, replacements)
    return next((taken for taken in found if taken is not None), None)


def _taken(replacement: Replacement) -> PartitionTakenError | None:
    try:
        replacement.require_owner()
    except PartitionTakenError as taken:
        return taken
    except OSError:
        log.warning("who owns %s cannot be found out either", replacement.target, exc_info=True)
    return None


def _release(replacement: Replacement) -> None:
    """Forget the owner. It is left where a newer try has begun meanwhile."""
    try:
        replacement.require_owner()
    except (PartitionTakenError, OSError):
        return
    sweep(_owner_uri(replacement.target))


def staging_uri(target: str, token: str) -> str:
    """A hidden neighbour of a target, which the next try removes where this one dies.

    Args:
        target: the folder that is to be replaced.
        token: of `new_token`.
    """
    return uris.sibling(target, f"staging-{token}")


def new_token() -> str:
    """What no other try has in the names of its files."""
    return secrets.token_hex(6)


def sweep(uri: str) -> None:
    """Remove what nobody needs; what cannot be removed now is left to the next try."""
    path = uris.local_path(uri)
    try:
        if path is not None and path.is_dir():
            # At once, so that an older try cannot put a folder in place that is half removed.
            path = path.rename(path.with_name(f"{path.name}.gone"))
            uri = str(path)
        filesystems.remove(uri)
    except OSError:
        log.warning("%s could not be removed; the next run that writes there does it", uri, exc_info=True)


def _own_name(token: str, name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{token}-{base}" if folder else f"{token}-{base}"
