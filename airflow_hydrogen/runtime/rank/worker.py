"""The process of a rank: run `main`, answer over the pipe, die with the parent."""

from __future__ import annotations

import ctypes
import os
import pickle
import runpy
import signal
import sys
import tempfile
import threading
import traceback
from io import TextIOWrapper
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from airflow_hydrogen.contract.errors import KwargsError
from airflow_hydrogen.contract.values import require_json
from airflow_hydrogen.runtime import progress
from airflow_hydrogen.runtime.entrypoints import require_same_python, resolve_import_path
from airflow_hydrogen.runtime.rank import checksums, horovod_imports
from airflow_hydrogen.runtime.rank import context as contexts
from airflow_hydrogen.runtime.rank.failures import RankFailure, lost_peer
from airflow_hydrogen.runtime.rank.task import PARENT_VARIABLE, PIPE_VARIABLE, Answer, Placement, RankTask
from airflow_hydrogen.runtime.storage import s3

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # once: after a fork is no time to load a library


def main() -> int:
    """Run one rank in a process that was started for it."""
    _die_with_parent(int(os.environ.pop(PARENT_VARIABLE)))
    return run(Pipe(Connection(int(os.environ.pop(PIPE_VARIABLE)))))


def run(pipe: Pipe) -> int:
    """Run one rank; the exit code is 0 when `main` returned and its value was sent."""
    _write_whole_lines()
    rank, thread = os.getpid(), threading.get_ident()
    os.register_at_fork(after_in_child=lambda: _after_fork(pipe, rank, thread))
    task, placement = pipe.receive()
    if task.s3 is not None:
        s3.use(task.s3)
        task.s3.set_variables(os.environ)
    progress.start_beating(lambda beat: pipe.send("beat", beat), task.beat_s)
    horovod_imports.install()
    contexts.enter(_context(task, placement, pipe))
    try:
        value = _call(task)
        pipe.send("returned", None)
        weights = checksums.of_returned(value, contexts.get_context())
        result = _result(task, value) if placement.rank == 0 else pickle.dumps(None)
    except BaseException as error:
        traceback.print_exc()
        pipe.send("failed", _failure(placement, _cause(error)))
        return 1
    pipe.send("result", Answer(placement.rank, result, weights))
    return 0


def _write_whole_lines() -> None:
    """With PYTHONUNBUFFERED, which is there for the processes that `main` starts, a line takes two writes."""
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True, write_through=False)


class Pipe:
    """The pipe to the parent, for several threads of the rank's own process."""

    def __init__(self, connection: Connection) -> None:
        os.set_inheritable(connection.fileno(), False)
        self._connection = connection
        self._lock = threading.Lock()

    def receive(self) -> Any:
        """What the parent sends: once, at the start."""
        return self._connection.recv()

    def send(self, kind: str, content: Any) -> None:
        """Send one message.

        Raises:
            OSError: the parent is gone, or this process was forked by the rank.
        """
        if not self.is_open:
            raise OSError(
                f"process {os.getpid()} was forked by a rank and has no line to the gang: call report() in "
                "the rank's own process, and end a forked one with os._exit()"
            )
        with self._lock:
            self._connection.send((kind, content))

    @property
    def is_open(self) -> bool:
        """Whether this is the rank's own process."""
        return not self._connection.closed

    def close(self) -> None:
        """Let go of it, in a forked process: held there, it would hide that the rank has died."""
        self._connection.close()


def _context(task: RankTask, placement: Placement, pipe: Pipe) -> contexts.TrainContext:
    return contexts.TrainContext(
        rank=placement.rank,
        size=placement.size,
        local_rank=placement.local_rank,
        local_size=placement.local_size,
        cross_rank=placement.cross_rank,
        cross_size=placement.cross_size,
        hostname=placement.host,
        datasets={name: files.uri for name, files in task.datasets.items()},
        dataset_files=task.datasets,
        checkpoints_uri=task.checkpoints_uri,
        events_uri=task.events_uri,
        fingerprint=task.fingerprint,
        parts=task.parts,
        attempt=task.attempt,
        on_report=lambda metrics, seconds_left: pipe.send("report", (metrics, seconds_left)),
    )


def _call(task: RankTask) -> Any:
    entrypoint = task.entrypoint
    if entrypoint.kind == "script":
        return _run_script(Path(entrypoint.value), task.script, task.args)
    if entrypoint.kind == "import":
        return resolve_import_path(entrypoint.value)(**task.kwargs)
    require_same_python(entrypoint)
    return pickle.loads(entrypoint.pickle)(**task.kwargs)


def _run_script(path: Path, text: str | None, args: tuple[str, ...]) -> None:
    """Run a script as `python script.py args` would; a zero SystemExit is a success."""
    if not path.exists() and text is not None:
        path = Path(tempfile.mkdtemp(prefix="airflow-hydrogen-")) / path.name
        path.write_text(text)
    sys.argv = [str(path), *args]
    sys.path.insert(0, str(path.parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as exit_:
        if exit_.code not in (None, 0):
            raise


def _result(task: RankTask, value: Any) -> bytes:
    """What rank 0 answers: the value itself, or in a job what was published for it."""
    import cloudpickle

    if task.publish_uri is None:
        return bytes(cloudpickle.dumps(value))
    from airflow_hydrogen.runtime.rank import publishing

    current = contexts.get_context()
    published = publishing.save(value, task.publish_uri, current, task.exports)
    if published is None:
        try:
            require_json("the return value of main", value)
        except KwargsError as error:
            raise KwargsError(
                "the return value of main", f"{error}; return a Keras model, an ExportedModel or JSON"
            ) from None
    return pickle.dumps(
        publishing.Outcome(
            published=published,
            value=value if published is None else None,
            history=current.history,
            resumed_from_epoch=current.resumed_from_epoch,
        )
    )


def _cause(error: BaseException) -> BaseException:
    """The error of a dataset's reader, where TensorFlow wrapped it in one of its own."""
    shards = contexts.get_context().shards.values()
    return next((shard.error for shard in shards if shard.error is not None), error)


def _failure(placement: Placement, error: BaseException) -> RankFailure:
    kind = type(error)
    peer = lost_peer(error)
    said = peer or str(error).strip().partition("\n")[0]
    return RankFailure(
        rank=placement.rank,
        host=placement.host,
        kind="main" if peer is None else "peer",
        summary=f"{kind.__name__}: {said}" if said else kind.__name__,
        error_type=f"{kind.__module__}.{kind.__qualname__}",
        remote_traceback="".join(traceback.format_exception(kind, error, _user_frames(error))),
    )


def _user_frames(error: BaseException) -> TracebackType | None:
    """The traceback without this module's own frames at its top."""
    frames = error.__traceback__
    while (
        frames is not None and frames.tb_next is not None and frames.tb_frame.f_code.co_filename == __file__
    ):
        frames = frames.tb_next
    return frames


def _after_fork(pipe: Pipe, rank: int, main_thread: int) -> None:
    """What a process does that a rank has just forked: let go of the pipe, and die with the rank.

    The kernel forgets the second with each fork, and it means the *thread* that forked: another one than the
    main thread may end long before its rank. Where a forked process forks, it may want to end first, as one
    does that starts a daemon. The rank's parent ends those.

    Args:
        pipe: the rank's.
        rank: its process id.
        main_thread: of the rank; a thread keeps its number in the child.
    """
    is_ours = pipe.is_open  # else it was forked by a process that was forked
    pipe.close()
    if is_ours and threading.get_ident() == main_thread:
        _die_with_parent(rank)


def _die_with_parent(parent: int) -> None:
    """Ask the kernel for a SIGKILL when the parent ends, so that no rank outlives its Spark task."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
