"""The folder of a server: what lies in it, who holds which lock, and how it comes and goes.

All servers of a user lie in one folder, which is that user's alone:

    KEY/            a server
        keeper      locked as long as its keeper lives
        users       locked, shared, by everybody who uses it; by its keeper alone once it is to end
        plan.json   what its keeper is told
        server.json where it answers, once it does
        ...
    .new-KEY-...    is being made
    .ended-KEY-...  is being ended; nobody can join it any more

Locks are `flock`s, which the kernel releases whatever happens to a process. A folder is made elsewhere and
moved to its place with its locks held: what stands there without a keeper is left of one that has died.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract.private_folders import private_folder
from airflow_hydrogen.hooks.local_servers.processes import end_marked
from airflow_hydrogen.hooks.local_servers.settings import this_machine
from airflow_hydrogen.hooks.programs import write_secretly

NEW, ENDED = ".new-", ".ended-"

_PURPOSE = "servers"
_GRACE_S = 5.0
_TAIL_LINES = 20
_TAIL_BYTES = 16384
_BEING_MADE_S = 60.0
_FOREIGN_S = 24 * 3600.0


def servers_folder() -> Path:
    """This user's folder of servers.

    Raises:
        UnwritableUriError: it cannot be made, or is not this user's alone.
    """
    return private_folder(_PURPOSE)


@dataclass(frozen=True)
class ServerFolder:
    """A server's folder, whether it is there or not.

    Attributes:
        path: of mode 0700, as all files in it are of mode 0600.
    """

    path: Path

    @property
    def keeper(self) -> Path:
        """Locked as long as the keeper lives, which looks at it now and then."""
        return self.path / "keeper"

    @property
    def users(self) -> Path:
        """Locked by those who use the server; its time of change says when one has come or gone."""
        return self.path / "users"

    @property
    def log(self) -> Path:
        """What the server, its workers and its keeper write."""
        return self.path / "log"

    @property
    def properties(self) -> Path:
        """Spark's settings, the token among them."""
        return self.path / "spark.properties"

    @property
    def work(self) -> Path:
        """Where the server runs, and keeps what it cannot keep in memory."""
        return self.path / "work"

    def plan(self) -> dict[str, Any]:
        """What the keeper was told; empty where that cannot be read."""
        return _read(self.path / "plan.json")

    def server(self) -> dict[str, Any]:
        """Where the server answers; empty where it does not yet."""
        return _read(self.path / "server.json")

    def write_server(self, document: dict[str, Any]) -> None:
        """Say, all at once, where the server answers."""
        part = self.path / "server.part"
        write_secretly(part, json.dumps(document))
        part.replace(self.path / "server.json")


def make(root: Path, key: str, plan: dict[str, Any]) -> tuple[ServerFolder, int] | None:
    """Make a server's folder with its keeper's lock, and move it to its place.

    Args:
        root: of all servers.
        key: of this one.
        plan: for its keeper.

    Returns:
        The folder, and a file whose lock is the keeper's as soon as it has inherited it; None where a folder
        stands there.
    """
    made = ServerFolder(root / f"{NEW}{key}-{secrets.token_hex(6)}")
    made.path.mkdir(mode=0o700)
    keeper = None
    try:
        keeper = _create(made.keeper)
        fcntl.flock(keeper, fcntl.LOCK_EX)
        for file in (made.users, made.log):
            os.close(_create(file))
        made.work.mkdir(mode=0o700)
        write_secretly(made.path / "plan.json", json.dumps(plan))
        made.path.rename(root / key)
    except BaseException as error:
        if keeper is not None:
            os.close(keeper)
        shutil.rmtree(made.path, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return None
        raise
    return ServerFolder(root / key), keeper


def _create(file: Path) -> int:
    """A new file of this user's alone; what is written goes to its end."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    return os.open(file, flags, 0o600)


def locked(file: Path, kind: int) -> int | None:
    """A lock on the file that stands at a path, without waiting for it; None where that cannot be."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if lock(descriptor, kind) and is_at(descriptor, file):
        return descriptor
    os.close(descriptor)
    return None


def lock(descriptor: int, kind: int) -> bool:
    """Lock an open file, if that can be done without waiting."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, file: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except OSError:
        return False


def is_kept(keeper: int) -> bool:
    """Whether the keeper lives whose file is open here."""
    if not lock(keeper, fcntl.LOCK_SH):
        return True
    fcntl.flock(keeper, fcntl.LOCK_UN)
    return False


def keep_files(folder: Path) -> None:
    """Keep what removes unused temporary files from a folder's. When they were changed stays as it is."""
    for file in (folder, *folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # it was faster
            os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def log_tail(log: int) -> str:
    """The last lines of a log that is open, wherever it has gone."""
    size = os.fstat(log).st_size
    text = os.pread(log, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def set_aside(folder: Path) -> Path | None:
    """Move a server's folder, of which the caller is sure, to where nobody joins it; None: it is gone."""
    aside = folder.with_name(f"{ENDED}{folder.name}-{secrets.token_hex(6)}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return None
    return aside


def sweep(root: Path) -> None:
    """End and remove what servers have left whose keeper has died, in this life of the machine or before."""
    for path in root.iterdir():
        if not is_of_this_machine(path):
            # Of a container whose processes cannot be seen from here.
            if _age_s(path / "keeper") > _FOREIGN_S:
                shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(NEW) or _age_s(path) > _BEING_MADE_S:
            _sweep(path)


def is_of_this_machine(path: Path) -> bool:
    """Whether the processes of a folder's server would be seen from here."""
    machine = path.name.removeprefix(NEW).removeprefix(ENDED).partition("-")[0]
    return machine == this_machine()


def _sweep(path: Path) -> None:
    # One at a time: what one has moved away, another may have made anew before it is moved again.
    with _alone(path.parent):
        if has_keeper(path):
            return
        aside = path if path.name.startswith((NEW, ENDED)) else set_aside(path)
    if aside is not None:
        remove(aside, ServerFolder(aside).plan().get("mark"))


def remove(aside: Path | None, mark: str | None) -> None:
    """End what is left of a server, and remove its folder.

    Args:
        aside: where nobody joins it any more; None: it is gone.
        mark: of its processes; None: it had none yet.
    """
    if mark is not None:
        end_marked(mark, _GRACE_S)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)  # the next sweep finds what is left


def has_keeper(path: Path) -> bool:
    """Whether the keeper of a server's folder lives."""
    try:
        keeper = os.open(path / "keeper", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return is_kept(keeper)
    finally:
        os.close(keeper)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_ctime
    except OSError:
        return 0.0


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found
