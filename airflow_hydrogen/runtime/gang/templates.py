"""The parent's side of templates: find the one that fits, start it where there is none, ask it for a rank.

A template serves those that agree with it in all that a process has from its start: interpreter, environment,
path, limits, cgroup, namespaces and versions. That is its name, on a socket without a file, so that two that
need it at once start it once, and nothing is left behind when it dies. What differs from rank to rank
(Horovod's place, devices) is no part of it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

from airflow_hydrogen.runtime import devices
from airflow_hydrogen.runtime.rank.task import MARK_VARIABLE, NO_MARK, PEER, TEMPLATE_MODULE, Launch

UNSEEN = 1 << 16
"""The exit code of a rank whose template died before it: nobody has it."""

_BACKLOG = 1024
_CONNECT_S = 5.0
_PAUSE_S = 0.01
_KEPT = 2
_OUTPUT_BYTES = 65536
_END_S = 1.0  # for a process that has closed its files
_ANSWER_BYTES = 4096
# Set for each rank, and read by nobody before `hvd.init()` or the first use of a device.
_OF_A_RANK = re.compile(rf"HOROVOD_[A-Z_]+|{devices.VISIBLE}")
# Of an executor, a task or a test, and of no meaning for a framework.
_NO_MATTER = re.compile(
    r"(?:SPARK|PYSPARK|PYTHON_WORKER|PYTHON_UNIX_DOMAIN|PYTEST|AIRFLOW|CONTAINER)_\w+|PWD|OLDPWD|SHLVL|_"
)
_STATUS = re.compile(r"(?:Umask|Uid|Gid|Groups|Cap\w+|NoNewPrivs|Seccomp|Cpus_allowed|Mems_allowed):")


class NoTemplate(Exception):
    """Inside the runtime: this rank is not forked; the message says why."""


@dataclass(frozen=True)
class TemplateSpec:
    """Which templates a gang uses.

    Attributes:
        secret: what its templates want to hear; those of one driver have the same.
        modules: what they import, in order.
        owner: the process that keeps them alive; None for the executor of this Python worker.
        private: a folder that only this owner has: what lies there is no reason for a template of its own,
            unless this package itself does.
        required: a module that is not installed is a reason to fork nothing.
    """

    secret: str = field(repr=False)
    modules: tuple[str, ...]
    owner: int | None = None
    private: str | None = None
    required: bool = False


def secret_of_driver() -> str:
    """The word by which the templates of this driver know who may ask."""
    return _SECRET


_SECRET = secrets.token_hex(32)


class ForkedRank:
    """A rank that a template forks: the part of `subprocess.Popen` that its parent needs.

    Args:
        name: the template's.
        line: to it.
        life: the end of a pipe; when it is closed, the kernel kills the rank.
        stdout: what the rank writes.
        pipe: to the rank.
    """

    def __init__(
        self, name: str, line: socket.socket, life: int, stdout: IO[bytes], pipe: Connection
    ) -> None:
        self._name, self._line, self._life = name, line, life
        self.stdout, self.pipe = stdout, pipe
        self._pid: int | None = None
        self._watch: int | None = None  # of the rank itself, where its template has died
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """The rank's, once it is there."""
        assert self._pid is not None
        return self._pid

    @property
    def is_known(self) -> bool:
        """Whether the template has said that the rank is there."""
        return self._pid is not None

    def is_there(self, timeout_s: float) -> bool:
        """Whether the rank was forked, after a wait for it.

        Raises:
            NoTemplate: it will not be.
        """
        if self._pid is None and (answer := self._receive(timeout_s)) is not None:
            if "pid" not in answer:
                raise NoTemplate(answer.get("refused") or f"the template has ended{_last_words(self._name)}")
            self._pid = answer["pid"]
        return self.is_known

    def poll(self) -> int | None:
        """The exit code; None as long as it runs."""
        return self._look(0)

    def wait(self, timeout: float) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: not so soon.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a forked rank", timeout)
        return code

    def close(self) -> None:
        """Let go of it, after its end: the template forgets it."""
        with contextlib.suppress(OSError):
            self._line.send(b"done")
        self._line.close()
        os.close(self._life)
        if self._watch is not None:
            os.close(self._watch)

    def _look(self, timeout_s: float) -> int | None:
        if self.returncode is None and self._watch is None:
            answer = self._receive(timeout_s)
            if answer is not None and "status" in answer:
                self.returncode = answer["status"]
            elif answer is not None:
                self._watch_it_ourselves()
        if self.returncode is None and self._watch is not None and _is_readable(self._watch, timeout_s):
            self.returncode = UNSEEN
        return self.returncode

    def _watch_it_ourselves(self) -> None:
        """The template has died, and the rank lives on."""
        try:
            self._watch = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self.returncode = UNSEEN

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """What the template says; empty where it has died, None where it says nothing."""
        if not _is_readable(self._line, timeout_s):
            return None
        try:
            data = self._line.recv(_ANSWER_BYTES)
        except OSError:
            data = b""
        answer: dict[str, Any] = json.loads(data) if data else {}
        return answer


def ask(spec: TemplateSpec, environment: Mapping[str, str], mark: str) -> ForkedRank:
    """Ask for a rank, from a template that is started where there is none. Waits for no import.

    Args:
        spec: which template.
        environment: what the rank has beside the environment of this process.
        mark: the rank's.

    Raises:
        NoTemplate: there is none, and there will be none.
    """
    _require_platform()
    name, line = _connect(spec, environment)
    ends: list[int] = []
    try:
        output, write_output = os.pipe()
        ends += [output, write_output]
        kept, life = os.pipe()
        ends += [kept, life]
        pipe, rank_pipe = Pipe()
        try:
            request = {"secret": spec.secret, "owner": _owner(spec), "mark": mark}
            files = [write_output, rank_pipe.fileno(), kept]
            socket.send_fds(line, [json.dumps(request).encode()], files)
        except OSError:
            pipe.close()
            raise
        finally:
            rank_pipe.close()
    except OSError as error:
        line.close()
        for end in ends:
            os.close(end)
        raise NoTemplate(f"the template does not answer: {error}") from error
    os.close(write_output)
    os.close(kept)
    return ForkedRank(name, line, life, os.fdopen(output, "rb"), pipe)


def warm(spec: TemplateSpec, environment: Mapping[str, str]) -> None:
    """Start the template that ranks will need, unless it is there. Waits for nothing.

    Raises:
        NoTemplate: there is none, and there will be none.
    """
    _require_platform()
    _connect(spec, environment)[1].close()


def launch_of(environment: Mapping[str, str]) -> Launch:
    """What a forked rank is told first.

    Args:
        environment: all of the rank's.
    """
    folder = os.getcwd()
    return Launch(environment, folder, (folder, *(path for path in sys.path if path)))


# --- which template ------------------------------------------------------------------------------------


def _require_platform() -> None:
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        raise NoTemplate("this platform has no pidfd_open")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        raise NoTemplate(f"this kernel has no pidfd_open ({error})") from error


def _owner(spec: TemplateSpec) -> int:
    """The process whose end ends the template: the driver, or the executor above this Python worker."""
    if spec.owner is not None:
        return spec.owner
    ours, pid = os.readlink("/proc/self/exe"), os.getppid()
    try:
        while os.readlink(f"/proc/{pid}/exe") == ours:  # Spark's daemon, of which workers are forked
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError as error:
        raise NoTemplate(f"the executor above process {os.getpid()} is not to be seen: {error}") from error
    return pid


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a template starts with: a rank's environment, less what only one rank has."""
    whole = {**os.environ, **environment}
    ranks_own = {name for name in environment if _OF_A_RANK.fullmatch(name)} | {devices.VISIBLE}
    return {name: value for name, value in whole.items() if name not in ranks_own and name != MARK_VARIABLE}


def _path(spec: TemplateSpec) -> list[str]:
    paths = [os.path.abspath(path) for path in sys.path if path]
    if spec.private is None or _is_below(__file__, spec.private):
        return paths
    return [path for path in paths if not _is_below(path, spec.private)]


def _is_below(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _name(spec: TemplateSpec, environment: Mapping[str, str], path: list[str]) -> str:
    """What two parents that may share a template agree in."""
    own = Path("/proc/self")
    status = [line for line in (own / "status").read_text().splitlines() if _STATUS.match(line)]
    key = [
        spec.secret,
        spec.modules,
        spec.required,
        sys.executable,
        path,
        _archives(path),
        _versions(spec.modules, path),
        sorted((name, value) for name, value in environment.items() if not _NO_MATTER.fullmatch(name)),
        status,
        (own / "limits").read_text(),
        (own / "cgroup").read_text(),
        (own / "oom_score_adj").read_text(),
        os.getpriority(os.PRIO_PROCESS, 0),
        sorted(str(namespace.readlink()) for namespace in (own / "ns").iterdir()),
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return f"\0airflow-hydrogen-{digest[:32]}"


def _versions(modules: tuple[str, ...], path: list[str]) -> list[tuple[str, str, int]]:
    """Where the modules lie, and since when: one that was replaced meanwhile is another."""
    found = []
    for root in sorted({name.partition(".")[0] for name in (__name__, *modules)}):
        spec = PathFinder.find_spec(root, path)
        if spec is not None and spec.origin is not None:
            with contextlib.suppress(OSError):  # inside an archive, which has a date of its own
                found.append((root, spec.origin, os.stat(spec.origin).st_mtime_ns))
    return found


def _archives(path: list[str]) -> list[tuple[str, int]]:
    """The archives on the path, and since when: a process reads once what is in them."""
    found = []
    for entry in path:
        with contextlib.suppress(OSError):  # many a path names what is not there
            state = os.stat(entry)
            if stat.S_ISREG(state.st_mode):
                found.append((entry, state.st_mtime_ns))
    return found


# --- how it is reached ---------------------------------------------------------------------------------


def _connect(spec: TemplateSpec, environment: Mapping[str, str]) -> tuple[str, socket.socket]:
    """The name of the template and a line to it, which is started where it is not there."""
    base, path = _environment(environment), _path(spec)
    base["PYTHONPATH"] = os.pathsep.join(path)
    name = _name(spec, base, path)
    deadline = time.monotonic() + _CONNECT_S
    while True:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.connect(name)
        except OSError as error:
            line.close()
            if error.errno != errno.ECONNREFUSED or time.monotonic() > deadline:
                raise NoTemplate(f"the template does not answer: {error}") from error
            if not _start(spec, name, base):
                time.sleep(_PAUSE_S)  # another is just starting it
            continue
        pid, uid, _gid = PEER.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        if uid == os.getuid():
            return name, line
        line.close()
        raise NoTemplate(f"process {pid} of user {uid} has taken its name")


def _start(spec: TemplateSpec, name: str, environment: Mapping[str, str]) -> bool:
    """Start the template, unless another process is about to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        try:
            listener.bind(name)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        listener.listen(_BACKLOG)
        settings = {
            "listener": listener.fileno(),
            "secret": spec.secret,
            "owner": _owner(spec),
            "modules": spec.modules,
            "required": spec.required,
            "refusal": None,
        }
        output = _memory("output")
        with _memory("settings", json.dumps(settings).encode()) as given:
            process = subprocess.Popen(
                [sys.executable, "-m", TEMPLATE_MODULE],
                stdin=given,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, "PYTHONUNBUFFERED": "1", MARK_VARIABLE: NO_MARK},
                cwd="/",
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
    _keep(name, _Started(process, output))
    if spec.owner == os.getpid():
        atexit.unregister(_end_all)
        atexit.register(_end_all, spec.owner)
    return True


def _memory(name: str, content: bytes = b"") -> IO[bytes]:
    """A file without a name, at its beginning."""
    file = os.fdopen(os.memfd_create(name), "r+b", buffering=0)
    file.write(content)
    file.seek(0)
    return file


@dataclass(frozen=True)
class _Started:
    """A template that this process has started, and what it writes."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def end(self) -> None:
        """End it, if it has not ended; ranks live on."""
        self.process.terminate()
        self.process.wait()
        self.output.close()


_started: dict[str, _Started] = {}


def _keep(name: str, started: _Started) -> None:
    """Know what this process has started; of templates that differ, the last ones are kept alive."""
    for earlier in [*_started]:
        if earlier == name or _started[earlier].process.poll() is not None or len(_started) >= _KEPT:
            _started.pop(earlier).end()
    _started[name] = started


def _end_all(owner: int) -> None:
    """At the end of the driver that owns them: they would notice, but this is tidier.

    Args:
        owner: the driver; a process that it forked has inherited this, and does nothing.
    """
    if os.getpid() == owner:
        while _started:
            _started.popitem()[1].end()


def _last_words(name: str) -> str:
    """How a template has ended, where it is this process's own."""
    started = _started.get(name)
    if started is None:
        return ""
    try:
        code = started.process.wait(_END_S)
    except subprocess.TimeoutExpired:
        return ""
    words = os.pread(started.output.fileno(), _OUTPUT_BYTES, 0).decode(errors="replace").splitlines()
    return f" with exit code {code}" + (f": {words[-1]}" if words else "")


def _is_readable(file: int | socket.socket, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(file, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))
