"""Spark's Python daemon, which has imported the model's framework before it forks the first worker.

Spark starts one per executor (`spark.python.daemon.module`), which it asks for each Python worker. Its own
imports nothing, so that every worker imports the framework for itself, and not before it has rows. Here it is
done once, while the driver still plans, and workers share the memory. Where the driver's machine runs the
workers, the driver has started a process that imports even before Spark is there: the daemon is forked of it.

The environment that workers have, threads of math libraries among it, is the daemon's from its start. What a
worker sets itself, the size of TensorFlow's pools, counts because nothing has run when it is forked. Where
the imports fail, or leave a process that must not be forked, Spark's own daemon takes the place of this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from airflow_hydrogen.contract.python_workers import AHEAD, AHEAD_VARIABLE, MODULES_VARIABLE, READ_AT_IMPORT
from airflow_hydrogen.runtime.models import engines
from airflow_hydrogen.runtime.rank.preloading import draw_seeds, preload
from airflow_hydrogen.runtime.rank.task import PEER

_SPARKS_OWN = "pyspark.daemon"
_MAX_OUTPUT_BYTES = 32768  # Spark reads what is written only when all has been imported; a pipe holds 64 KB
_MAX_ANSWER_BYTES = 4096
_FILES = 4  # Spark's three, and the one that says where its daemon is
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    """Be Spark's daemon, or the process that imports ahead of it.

    Args:
        arguments: what Spark gives its daemon; or that this is the other one, its socket and its parent.
    """
    if arguments[:1] == [AHEAD]:
        listener, driver = map(int, arguments[1:])
        arguments = _serve(socket.socket(fileno=listener), driver)
    elif (refusal := _hand_over(arguments)) is not None:
        if said := _import():
            _say(said)
            os.execv(sys.executable, [sys.executable, "-m", _SPARKS_OWN, *arguments])
        if refusal:
            _say(f"the model's framework was not imported ahead of Spark: {refusal}")
        _make_workers_differ(os.getpid(), lambda: None)
    from pyspark.daemon import manager

    # Threads: those that are known.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    manager()


def _say(text: str) -> None:
    print(f"airflow-hydrogen: {text}", file=sys.stderr, flush=True)


def _import() -> str | None:
    """Import, for processes that never look at it again. Returns why none may be forked from this one."""
    if sys.platform != "linux":
        return f"each Python worker imports for itself: {sys.platform} does not tell its threads"
    with _output_kept():
        gc.disable()
        os.environ.setdefault(*engines.NO_TELEMETRY)  # whose threads a fork would lose
        refusal = preload([name for name in os.environ.get(MODULES_VARIABLE, "").split(",") if name])
        # Else each worker's collection, which Spark has it do after every task, would look through all of it.
        gc.collect()
        gc.freeze()
        gc.enable()
    return refusal and f"each Python worker imports for itself: {refusal}"


@contextmanager
def _output_kept() -> Iterator[None]:
    """Have what imports write go to the log in the end: on standard output Spark waits for a port number."""
    kept = os.memfd_create("output")
    saved = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(kept, number)
    try:
        yield
    finally:
        for number, file in zip((1, 2), saved, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.write(2, os.pread(kept, _MAX_OUTPUT_BYTES, 0))
        os.close(kept)


def _make_workers_differ(daemon: int, let_go: Callable[[], None]) -> None:
    """Draw random states anew in each worker, but not in its forks, and let go of what is the daemon's."""

    def change() -> None:
        if os.getppid() == daemon:
            draw_seeds()
            let_go()

    os.register_at_fork(after_in_child=change)


# --- a daemon that was imported ahead of Spark -----------------------------------------------------------


def _hand_over(arguments: Sequence[str]) -> str | None:
    """Have a process that has imported all be Spark's daemon, and wait for its end.

    Returns:
        Why there is none that may, empty where none was started; does not return where there is.
    """
    name = os.environ.get(AHEAD_VARIABLE)
    if not name:
        return ""
    place = {"arguments": arguments, "environ": dict(os.environ), "folder": os.getcwd(), "path": sys.path}
    file = os.memfd_create("place")
    os.write(file, json.dumps(place).encode())
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        line.connect(f"\0{name}")
        _pid, uid, _gid = PEER.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        if uid != os.getuid():
            return f"user {uid} has taken the name of the process that did"
        socket.send_fds(line, [b"fork"], [0, 1, 2, file])
        answer = line.recv(_MAX_ANSWER_BYTES)
    except OSError as error:
        return str(error)
    os.close(file)
    if not answer:
        return "the process that did has ended"
    said = json.loads(answer)
    if "pid" not in said:
        return str(said["refused"])
    _stand_for(line, said["pid"])


def _stand_for(line: socket.socket, daemon: int) -> NoReturn:
    """Be the process that Spark has started, as long as the daemon lives."""

    def end(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGTERM)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    while line.recv(_MAX_ANSWER_BYTES):
        pass
    os._exit(0)


def _serve(listener: socket.socket, driver: int) -> list[str]:
    """Import, and fork Spark's daemons: one, and another where that is killed.

    Returns:
        In a daemon: the arguments that Spark has given.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(0)
    before = _read_at_import(os.environ)
    refusal = _import()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # not sooner: imports may run programs and wait for them
    while True:
        line, _ = listener.accept()
        with line:
            _pid, uid, _gid = PEER.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
            files = socket.recv_fds(line, _MAX_ANSWER_BYTES, _FILES)[1] if uid == os.getuid() else []
            if len(files) == _FILES:
                place = json.loads(os.pread(files[-1], os.fstat(files[-1]).st_size, 0))
                problem = refusal
                if problem is None and _read_at_import(place["environ"]) != before:
                    problem = "its environment is another than that of Spark's workers"
                if problem is None and (pid := _fork()) == 0:
                    listener.close()
                    return _become_daemon(line.dup(), files, place)
                answer = {"pid": pid} if problem is None else {"refused": problem}
                with contextlib.suppress(OSError):  # it has been ended
                    line.send(json.dumps(answer).encode())
        for file in files:
            os.close(file)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: those that are known
        return os.fork()


def _read_at_import(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if READ_AT_IMPORT.fullmatch(name)}


def _become_daemon(line: socket.socket, files: Sequence[int], place: Mapping[str, Any]) -> list[str]:
    """Take the place of the process that Spark has started. The end of its line tells that process."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.environ.clear()
    os.environ.update(place["environ"])
    os.chdir(place["folder"])
    sys.path[:] = place["path"]
    sys.argv[1:] = place["arguments"]
    draw_seeds()
    _make_workers_differ(os.getpid(), line.close)
    return list(place["arguments"])


if __name__ == "__main__":
    main(sys.argv[1:])
