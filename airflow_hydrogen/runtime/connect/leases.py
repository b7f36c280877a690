"""Which session of a server is whose: one job has it at a time, and the next one meets its workers again.

A server keeps Python workers, and the models in them, for each session. But what shares a session shares its
temporary views and settings as well. So sessions are leased: a job takes the first that no other job of this
machine has. The file that says which one that is stays locked (`flock`) as long as the job lives, however it
ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen import __version__
from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.private_folders import private_folder

_PURPOSE = "sessions"


@dataclass
class Lease:
    """A session that is this job's alone until the block ends.

    Attributes:
        session_id: as the server knows it.
        settings: the session's when it was new; None: it is.
        is_touched: code of a user has had it, which may have left views and functions.
        is_used: a job has it, or had it when it died.
    """

    _file: int
    session_id: str
    settings: dict[str, str] | None = None
    is_touched: bool = False
    is_used: bool = False

    def renew(self) -> None:
        """Take a new session in the place of this one."""
        self.session_id, self.settings, self.is_touched = str(uuid.uuid4()), None, False
        self.keep()

    def keep(self) -> None:
        """Write it down for the next job. A full disk leaves nothing: that job takes a new session."""
        fields = ("session_id", "settings", "is_touched", "is_used")
        text = json.dumps({name: getattr(self, name) for name in fields}).encode()
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text, 0)


@contextmanager
def leased(access: ConnectAccess) -> Iterator[Lease]:
    """The first session of a server that no other job of this user and machine has.

    Args:
        access: the server, and the code that the session is to have.
    """
    folder = private_folder(_PURPOSE) / key_of(access)
    folder.mkdir(mode=0o700, exist_ok=True)
    file = next(file for number in itertools.count() if (file := _locked(folder / str(number))) is not None)
    try:
        yield _read(file)
    finally:
        os.close(file)


def key_of(access: ConnectAccess) -> str:
    """What jobs have to have in common to meet in a session. Pure, but for what this interpreter is."""
    parts = (access.url, access.user_id, access.token, sorted(access.headers.items()), access.code)
    environment = (platform.python_version_tuple()[:2], __version__)
    return hashlib.sha256(repr((parts, environment)).encode()).hexdigest()[:32]


def _locked(file: Path) -> int | None:
    """The file, locked; None where another job has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _read(file: int) -> Lease:
    """What the last job has written down. Half of it, of a machine that lost power, is nothing."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        found = Lease(file, **json.loads(os.pread(file, os.fstat(file).st_size, 0)))
        uuid.UUID(found.session_id)
        return found
    return Lease(file, str(uuid.uuid4()))
