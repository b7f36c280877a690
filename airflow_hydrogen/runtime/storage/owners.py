"""Who works at a URI: an owner file beside it, with a heartbeat.

Two applications at one URI would remove each other's data and replace each other's result. The first one
owns the URI; the next one is refused, unless the owner is dead or is an earlier try of the same work. Stores
have no locks, so that an owner looks again and again whether the URI is still its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import OwnershipLostError, UriInUseError
from airflow_hydrogen.runtime.storage import filesystems

BEAT_S = 10.0
STALE_S = 6 * BEAT_S
_WATCH_S = 2.5 * BEAT_S
_WATCH_POLL_S = 1.0


@dataclass(frozen=True)
class Process:
    """A process that others can look for.

    Attributes:
        machine: boot and process namespace: elsewhere its number says nothing. Empty where there is no such.
        pid: its number.
        started: when it was started, in the kernel's ticks, so that a reused number is told apart.
        host: the machine's name, for messages.
    """

    machine: str
    pid: int
    started: str
    host: str

    @classmethod
    def this(cls) -> Process:
        """This process."""
        return cls(_machine(), os.getpid(), _started(os.getpid()), socket.gethostname())

    def is_dead(self) -> bool:
        """Whether it has certainly ended. False where this machine cannot know."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started


@dataclass(frozen=True)
class Owner:
    """What the owner file says.

    Attributes:
        token: of one application.
        work: what it does: the Airflow run, or nothing outside of Airflow.
        process: the application's driver.
        beat: heartbeats so far.
        at: time of the last one, in seconds since 1970, by its own clock.
    """

    token: str
    work: Mapping[str, Any]
    process: Process
    beat: int = 0
    at: float = field(default_factory=time.time)

    def dumps(self) -> bytes:
        """The content of the file."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def loads(cls, data: bytes) -> Owner | None:
        """Read the content of the file; None where it is not one."""
        try:
            document = json.loads(data)
            return cls(**{**document, "process": Process(**document["process"])})
        except (ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        where = f"process {self.process.pid} on {self.process.host}"
        if not self.work:
            return where
        place = f"[{self.work['map_index']}]" if self.work.get("map_index", -1) >= 0 else ""
        return (
            f"task {self.work['dag_id']}.{self.work['task_id']}{place} of run {self.work['run_id']} ({where})"
        )


Verdict = Literal["free", "watch", "taken"]


def judge(found: Owner | None, work: Mapping[str, Any], now: float) -> Verdict:
    """Whether a URI can be taken over from the owner that was found.

    Args:
        found: the owner, if there is one.
        work: what is to be done there.
        now: time in seconds since 1970.

    Returns:
        "free": at once. "watch": once its heartbeat has been seen to stand still; its clock may be another.
        "taken": not now.
    """
    if found is None or found.process.is_dead():
        return "free"
    if work and found.work == work:
        return "free"  # a later try of the same work: the earlier one is dead, or unwanted
    return "watch" if now - found.at > STALE_S else "taken"


class Ownership:
    """A URI that belongs to this process, for as long as the block lasts.

    Args:
        uri: what is owned; its owner file is a hidden neighbour.
        argument: the job's argument that holds the URI, for messages.
        work: what is done there, as JSON: the same for every try. Empty outside of Airflow.
        on_lost: called, on another thread, once it is found that someone else owns the URI.

    Raises:
        UriInUseError: on entry: someone else owns it.
    """

    def __init__(self, uri: str, argument: str, work: Mapping[str, Any], on_lost: Callable[[], None]) -> None:
        self._uri, self._argument, self._on_lost = uri, argument, on_lost
        self._file = uris.sibling(uri, "owner.json")
        self._me = Owner(secrets.token_hex(8), work, Process.this())
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="uri-owner", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether someone else has taken it."""
        return self._lost.is_set()

    def __enter__(self) -> Ownership:
        """Take it."""
        while True:
            found = self._read()
            verdict = judge(found, self._me.work, time.time())
            if verdict == "watch" and found is not None and self._stands_still(found):
                verdict = "free"
            if verdict != "free":
                raise UriInUseError(self._argument, self._uri, str(found))
            if self._create() if found is None else self._replace(found):
                break
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it back."""
        self._ended.set()
        self._thread.join()
        try:
            if self._is_mine(self._read()):
                filesystems.remove(self._file)
        except OSError as error:
            # What was done here counts. A file that is left behind belongs to a process that is dead.
            print(f"the owner file of {self._uri} could not be removed: {error}", flush=True)

    def require(self) -> None:
        """Look once more, before something is replaced.

        Raises:
            OwnershipLostError: someone else has taken it.
        """
        found = self._read()
        if self.lost or not self._is_mine(found):
            raise OwnershipLostError(self._argument, self._uri, str(found) if found else "nobody")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                found = self._read()
                if found is not None and not self._is_mine(found):
                    self._lost.set()
                    self._on_lost()
                    return
                self._me = dataclasses.replace(self._me, beat=self._me.beat + 1, at=time.time())
                filesystems.write_bytes(self._file, self._me.dumps())
            except OSError as error:
                # Who would take over cannot reach the store either; `require` has the last word.
                print(f"the owner file of {self._uri} could not be renewed: {error}", flush=True)

    def _read(self) -> Owner | None:
        try:
            return Owner.loads(filesystems.read_bytes(self._file))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _is_mine(self, found: Owner | None) -> bool:
        return found is not None and found.token == self._me.token

    def _create(self) -> bool:
        """Be the first; False where someone else was."""
        path = uris.local_path(self._file)
        if path is None:
            return self._replace(None)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{self._me.token}")
        new.write_bytes(self._me.dumps())
        try:
            os.link(new, path)  # unlike a rename it fails where there is one
        except FileExistsError:
            # One that holds no owner is of no use to anybody.
            return self._read() is None and self._replace(None)
        finally:
            new.unlink()
        return True

    def _replace(self, found: Owner | None) -> bool:
        """Overwrite the file. Of two that do so at once the last one is the owner, and both find that out."""
        if self._token_of(self._read()) != self._token_of(found):
            return False
        filesystems.write_bytes(self._file, self._me.dumps())
        time.sleep(0 if uris.local_path(self._file) is not None else _WATCH_POLL_S)
        return self._is_mine(self._read())

    @staticmethod
    def _token_of(owner: Owner | None) -> str | None:
        return owner.token if owner is not None else None

    def _stands_still(self, found: Owner) -> bool:
        print(
            f"{self._argument} {self._uri} belongs to {found}, of which nothing was heard for a while: "
            f"watching it for {_WATCH_S:.0f} s",
            flush=True,
        )
        deadline = time.monotonic() + _WATCH_S
        while time.monotonic() < deadline:
            time.sleep(_WATCH_POLL_S)
            if self._read() != found:
                return False
        return True


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; "" where there is no such process."""
    try:
        # The name, in brackets, may hold anything; the fields behind it do not.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
