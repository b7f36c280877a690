"""The daemon that Spark forks scoring workers from, spoken to as Spark does; and once under Spark itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from airflow_hydrogen.contract import python_workers
from airflow_hydrogen.runtime.scoring import warming

pytestmark = pytest.mark.integration

SECRET = "of-this-test"

_STATUS = re.compile(r"^SigIgn:\s*(\w+)$", re.MULTILINE)
_IGNORES_SIGHUP = 1 << (signal.SIGHUP - 1)


class Daemon:
    """A daemon as Spark starts it: a port on its output, workers by connecting, its end with its input."""

    def __init__(self, module: str, folder: Path, **environment: str) -> None:
        self._log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", python_workers.MODULE, "pyspark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                python_workers.MODULES_VARIABLE: module,
                "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
                "PYTHON_WORKER_FACTORY_SECRET": SECRET,
                "OMP_NUM_THREADS": "1",
                **environment,
            },
        )
        assert self.process.stdin and self.process.stdout
        (self._port,) = struct.unpack("!i", self.process.stdout.read(4))

    def worker(self) -> tuple[psutil.Process, socket.socket]:
        """A worker, and the line that keeps it."""
        line = socket.create_connection(("127.0.0.1", self._port))
        (pid,) = struct.unpack("!i", line.recv(4))
        # As the daemon does, it ignores SIGHUP for as long as it is not yet a worker.
        while int(_STATUS.search(Path(f"/proc/{pid}/status").read_text())[1], 16) & _IGNORES_SIGHUP:
            time.sleep(0.01)
        return psutil.Process(pid), line

    @property
    def log(self) -> str:
        """What it has written."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        """End it, as Spark's end does."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()
        self._log.close()


@pytest.fixture
def start(tmp_path):
    (tmp_path / "quiet.py").write_text("print('quiet says hello')\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('no such device')\n")
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    daemons = []

    def run(module, **environment):
        daemons.append(Daemon(module, tmp_path, **environment))
        return daemons[-1]

    yield run
    for started in daemons:
        started.close()


@pytest.fixture
def ahead(tmp_path, monkeypatch):
    """A process that has imported `quiet` ahead of Spark; the name of its socket."""
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    ends = []
    monkeypatch.setattr("atexit.register", lambda function, process: ends.append((function, process)))
    variable = f"spark.executorEnv.{python_workers.MODULES_VARIABLE}"
    yield warming._start_ahead({variable: "quiet", "spark.executorEnv.PYTHONPATH": str(tmp_path)}), ends[0][1]
    for function, process in ends:
        function(process)


def test_workers_are_forked_from_the_process_that_has_imported_and_end_with_it(start, eventually):
    started = start("quiet")
    worker, line = started.worker()
    with line:
        assert worker.ppid() == started.process.pid
        assert python_workers.MODULE in worker.cmdline()
        assert "quiet says hello" in started.log
        started.close()
        eventually(lambda: not worker.is_running(), "the worker ends with its daemon")


def test_onnx_runtime_starts_nothing_that_a_fork_would_lose(start):
    started = start("onnxruntime")
    worker, line = started.worker()
    with line:
        assert worker.ppid() == started.process.pid
        assert "onnxruntime" in Path(f"/proc/{worker.pid}/maps").read_text()
        assert started.log == ""


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("broken", "broken cannot be imported beforehand (RuntimeError: no such device)"),
        ("threaded", "importing threaded has started threads, which a fork would lose"),
    ],
)
def test_where_nothing_may_be_forked_sparks_own_daemon_takes_its_place(start, module, reason):
    started = start(module)
    assert reason in started.log
    assert "pyspark.daemon" in psutil.Process(started.process.pid).cmdline()
    worker, line = started.worker()
    with line:
        assert worker.ppid() == started.process.pid


def test_what_was_imported_ahead_is_sparks_daemon_and_again_when_that_is_killed(start, ahead, eventually):
    name, process = ahead
    first = start("quiet", **{python_workers.AHEAD_VARIABLE: name})
    worker, line = first.worker()
    with line:
        forked = psutil.Process(worker.ppid())
        assert forked.ppid() == process.pid
        assert worker.environ()["OMP_NUM_THREADS"] == "1"
        forked.kill()
        assert first.process.wait(20) == 0  # Spark sees that its daemon is gone, and starts another
        second = start("quiet", **{python_workers.AHEAD_VARIABLE: name})
        other, other_line = second.worker()
        with other_line:
            again = psutil.Process(other.ppid())
        assert again.ppid() == process.pid
    second.process.send_signal(signal.SIGTERM)
    eventually(lambda: not again.is_running(), "the daemon ends with the process that Spark has started")
    eventually(lambda: not worker.is_running(), "a worker whose daemon was killed ends when Spark hangs up")


def test_where_nothing_was_imported_ahead_any_more_the_daemon_imports_itself(start, ahead):
    name, process = ahead
    process.kill()
    process.wait()
    started = start("quiet", **{python_workers.AHEAD_VARIABLE: name})
    assert "was not imported ahead of Spark" in started.log
    worker, line = started.worker()
    with line:
        assert worker.ppid() == started.process.pid


def test_an_environment_that_frameworks_would_have_read_is_no_other_one(start, ahead):
    started = start("quiet", **{python_workers.AHEAD_VARIABLE: ahead[0], "OMP_NUM_THREADS": "3"})
    assert "its environment is another than that of Spark's workers" in started.log
