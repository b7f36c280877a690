"""A process that has imported the frameworks, and run nothing of them: ranks are forked from it.

Importing TensorFlow takes seconds and half a gigabyte, for each rank. What is imported here is there for all
ranks of a host at once, and their memory is shared until they write to it. A rank becomes a process of its
own before anything of a framework has opened a device or started a thread: that is checked once, and where it
does not hold no rank is forked, and the answer says why.

The template listens on a socket that the Python workers of its application know. It never imports user code,
never reads from anyone in a way that could wait, and ends with the last of its owners (the executors, or the
driver where ranks are its own processes), or when nobody has wanted a rank for a while.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import hmac
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import warnings
import zipimport
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract.python_workers import READ_AT_IMPORT
from airflow_hydrogen.runtime.rank import horovod_imports, marks, worker
from airflow_hydrogen.runtime.rank.preloading import draw_seeds, preload
from airflow_hydrogen.runtime.rank.task import (
    MARK_VARIABLE,
    NO_MARK,
    PEER,
    TEMPLATE_MODULE,
    Launch,
)

IDLE_S = 600.0

_MAX_REQUEST_BYTES = 4096
_FDS = 3
_MAX_OUTPUT_BYTES = 65536
_F_SETSIG = 10
_ARGUMENTS, _ENVIRONMENT = (48, 49), (50, 51)  # fields of /proc/self/stat


def main() -> int:
    """Import, check, serve. In a forked rank: the exit code of the rank."""
    settings = json.loads(sys.stdin.read())
    _read_nothing()
    listener = socket.socket(fileno=settings["listener"])
    gc.disable()  # collected once, before the first fork, and never moved again
    watch = _OwnerWatch(settings["owner"])
    # Before Horovod is imported: others import the functions from it that leave marks.
    horovod_imports.install()
    refusal = (
        settings["refusal"]
        or preload(settings["modules"], required=settings["required"], ignore=watch.thread)
        or _unmarkable()
    )
    watch.stop()
    if refusal and not settings["refusal"]:
        _shrink({**settings, "refusal": refusal}, listener)
    gc.collect()
    gc.freeze()
    template = Template(listener, settings["secret"], settings["owner"], refusal)
    request = template.serve()
    if request is None:
        os._exit(0)
    return _become_rank(request, bool(settings["modules"]))


class _OwnerWatch:
    """Ends this process when its owner ends, while it imports: by a thread, which is gone before any fork."""

    def __init__(self, owner: int) -> None:
        self._end, self._stop = os.pipe()
        try:
            self._owner = os.pidfd_open(owner)
        except ProcessLookupError:
            os._exit(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.thread = self._thread.native_id or 0

    def stop(self) -> None:
        """Watch no more."""
        os.write(self._stop, b"x")
        self._thread.join()
        for file in (self._owner, self._end, self._stop):
            os.close(file)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._owner, select.POLLIN)
        poller.register(self._end, select.POLLIN)
        if any(file == self._owner for file, _ in poller.poll()):
            os._exit(0)


# --- who asks, and what is forked ----------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """Who wants a rank.

    Attributes:
        files: where it writes, its pipe, and the end of a pipe whose other end its parent holds.
    """

    files: Sequence[int]


@dataclass
class _Rank:
    """A line to a parent, and the rank that was forked for it.

    Attributes:
        pid: the rank; 0 as long as nobody has asked.
        watch: of the rank; -1 where there is none, or it has ended.
        left: the parent has hung up.
    """

    line: socket.socket
    pid: int = 0
    mark: str = ""
    watch: int = -1
    left: bool = False


@dataclass
class Template:
    """Forks a rank for each that asks, tells its parent how it ended, and ends what a parent leaves behind.

    Attributes:
        listener: where parents connect.
        secret: what they have to know.
        owner: a process that keeps this one alive; those that ask name others.
        refusal: why no rank is forked; None where they are.
        idle_s: how long to wait for the next one, in seconds.
    """

    listener: socket.socket
    secret: str
    owner: int
    refusal: str | None = None
    idle_s: float = IDLE_S
    _owners: dict[int, int] = field(default_factory=dict)  # pid -> its descriptor
    _waiting: dict[int, Callable[[], Request | None]] = field(default_factory=dict)
    _ranks: list[_Rank] = field(default_factory=list)

    def serve(self) -> Request | None:
        """Serve until the owners are gone; in a forked rank: return what it was forked for."""
        self._poller = select.poll()
        self._listen(self.listener.fileno(), self._accept)
        self._add_owner(self.owner)
        while self._owners:
            events = self._poller.poll(None if self._ranks else self.idle_s * 1000)
            if not events:
                break
            for file, _event in events:
                if file in self._waiting and (request := self._waiting[file]()):
                    return request
        for rank in self._ranks:
            self._end(rank)
        return None

    def _listen(self, file: int, then: Callable[[], Request | None]) -> None:
        self._waiting[file] = then
        self._poller.register(file, select.POLLIN)

    def _forget(self, file: int) -> None:
        del self._waiting[file]
        self._poller.unregister(file)

    def _add_owner(self, pid: int) -> None:
        if pid in self._owners:
            return
        with contextlib.suppress(ProcessLookupError):  # gone already
            watch = self._owners[pid] = os.pidfd_open(pid)
            self._listen(watch, lambda: self._owner_is_gone(pid))

    def _owner_is_gone(self, pid: int) -> None:
        watch = self._owners.pop(pid)
        self._forget(watch)
        os.close(watch)

    def _accept(self) -> None:
        line, _ = self.listener.accept()
        line.setblocking(False)
        pid, uid, _gid = PEER.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        # A process of another container has no number here, or another one than it thinks.
        if not pid or uid != os.getuid():
            line.close()
            return
        rank = _Rank(line)
        self._ranks.append(rank)
        self._listen(line.fileno(), lambda: self._hear(rank))

    def _hear(self, rank: _Rank) -> Request | None:
        """A parent asks, or hangs up: at once with its rank's end, or because it has died."""
        try:
            data, files, _flags, _address = socket.recv_fds(rank.line, _MAX_REQUEST_BYTES, _FDS)
        except BlockingIOError:  # another line had this number when the event came
            return None
        except OSError:
            data, files = b"", []
        if rank.pid or not data:
            self._hang_up(rank, is_done=bool(data))
            return None
        request = Request(files)
        asked = json.loads(data)
        if len(files) != _FDS or not hmac.compare_digest(str(asked["secret"]), self.secret):
            self._hang_up(rank, is_done=True)
        elif self.refusal is not None:
            _tell(rank.line, {"refused": self.refusal})
            self._hang_up(rank, is_done=True)
        else:
            self._add_owner(int(asked["owner"]))
            rank.mark = str(asked["mark"])
            if self._fork(rank):
                return request
        for file in files:
            os.close(file)
        return None

    def _fork(self, rank: _Rank) -> bool:
        """True in the rank."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads: those that are known
            try:
                pid = os.fork()
            except OSError as error:
                _tell(rank.line, {"refused": f"a fork failed: {error}"})
                self._hang_up(rank, is_done=True)
                return False
        if pid == 0:
            self._let_go()
            return True
        rank.pid, rank.watch = pid, os.pidfd_open(pid)
        self._listen(rank.watch, lambda: self._rank_has_ended(rank))
        _tell(rank.line, {"pid": pid})
        return False

    def _let_go(self) -> None:
        """In a rank: close what is the template's."""
        self.listener.close()
        for watch in self._owners.values():
            os.close(watch)
        for rank in self._ranks:
            rank.line.close()
            if rank.watch >= 0:
                os.close(rank.watch)

    def _rank_has_ended(self, rank: _Rank) -> None:
        """Say how, and keep its number until the parent has ended its group, which goes by that number."""
        found = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        self._forget(rank.watch)
        os.close(rank.watch)
        rank.watch = -1
        status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        if rank.left:
            self._drop(rank)
        else:
            _tell(rank.line, {"status": status})

    def _hang_up(self, rank: _Rank, is_done: bool) -> None:
        self._forget(rank.line.fileno())
        rank.line.close()
        rank.left = True
        if not is_done:
            self._end(rank)
        if rank.watch < 0:
            self._drop(rank)

    def _end(self, rank: _Rank) -> None:
        """End a rank whose parent has died, and all that it has started."""
        if not rank.pid:
            return
        for end in (os.kill, os.killpg):  # the second fails for one that has just been forked
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(rank.pid, signal.SIGKILL)
        marks.end_marked(rank.mark)

    def _drop(self, rank: _Rank) -> None:
        if rank.pid:
            os.waitpid(rank.pid, 0)
        self._ranks.remove(rank)


def _tell(line: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it is gone, which its end of the line says next
        line.send(json.dumps(message).encode())


# --- in the forked rank --------------------------------------------------------------------------------


def _become_rank(request: Request, is_preloaded: bool) -> int:
    """Be what a process that was started for one rank would be; then run it."""
    output, pipe, life = request.files
    os.setsid()
    _die_with(life)
    said = os.pread(1, _MAX_OUTPUT_BYTES, 0)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    connection = Connection(pipe)
    try:
        launch: Launch = connection.recv()
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone, or does not want it any more
    _rewrite(
        _ENVIRONMENT, f"{MARK_VARIABLE}={NO_MARK}", f"{MARK_VARIABLE}={launch.environment[MARK_VARIABLE]}"
    )
    _rewrite(_ARGUMENTS, TEMPLATE_MODULE, worker.__name__)
    os.environ.clear()
    os.environ.update(launch.environment)
    os.chdir(launch.folder)
    sys.path[:] = launch.path
    _look_for_modules_anew()
    draw_seeds()
    gc.enable()
    os.write(1, said)  # each rank says what its imports would have said
    if is_preloaded:
        sys.addaudithook(_warn_of_late_settings)
    return worker.run(worker.Pipe(connection))


def _die_with(life: int) -> None:
    """Have the kernel kill this process when the other end of a pipe is closed: when its parent ends.

    `PR_SET_PDEATHSIG` is about the process that forked, which is the template.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    poller = select.poll()
    poller.register(life, 0)
    if poller.poll(0):  # it was closed before the lines above
        os._exit(1)


def _look_for_modules_anew() -> None:
    """Find modules that have come since the template looked.

    Archives are as they were, else this were another template. Read again they would take most of the time
    that a rank takes to its start: one of them is Spark's own, with thousands of entries.
    """
    for path, finder in [*sys.path_importer_cache.items()]:
        if isinstance(finder, zipimport.zipimporter):
            del sys.path_importer_cache[path]  # a new one knows what this one has read
    importlib.invalidate_caches()


def _warn_of_late_settings(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "os.putenv":
        return
    name = os.fsdecode(arguments[0])
    if READ_AT_IMPORT.fullmatch(name):
        print(
            f"airflow-hydrogen: main sets {name}, but the frameworks were imported before: where they read "
            "it when they are imported this has no effect. Set it for the executors, or use fork=False",
            file=sys.stderr,
            flush=True,
        )


# --- the process itself --------------------------------------------------------------------------------


def _read_nothing() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _shrink(settings: dict[str, Any], listener: socket.socket) -> None:
    """Start anew, without what was imported: what is left to do is to say no."""
    file = os.memfd_create("settings", 0)
    os.write(file, json.dumps(settings).encode())
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)
    os.set_inheritable(listener.fileno(), True)
    os.execv(sys.executable, [sys.executable, "-m", TEMPLATE_MODULE])


def _unmarkable() -> str | None:
    """Why a rank could not write its mark where others look for it."""
    try:
        found = _region(_ENVIRONMENT)[1].find(f"{MARK_VARIABLE}={NO_MARK}".encode())
    except (OSError, ValueError, IndexError) as error:
        return f"its /proc/self/stat is not readable ({error})"
    return None if found >= 0 else "its environment is not where the kernel says"


def _region(fields: tuple[int, int]) -> tuple[int, bytes]:
    """Address and content of what the kernel shows as a process's arguments or environment."""
    numbers = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(numbers[number - 3]) for number in fields)
    return start, ctypes.string_at(start, end - start)


def _rewrite(fields: tuple[int, int], old: str, new: str) -> None:
    """Change what the kernel shows as this process's arguments or environment, in place."""
    start, content = _region(fields)
    at = content.find(old.encode())
    assert at >= 0 and len(new) <= len(old)
    ctypes.memmove(start + at, new.encode().ljust(len(old), b"\0"), len(old))


if __name__ == "__main__":
    sys.exit(main())
