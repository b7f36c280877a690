"""Ending every process of a session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_hydrogen.hooks import exec_with_parent
from airflow_hydrogen.hooks.sessions import end_session, session_processes

# A child in a process group of its own, as PySpark's worker daemon makes one.
TREE = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], process_group=0)
print("ready", flush=True)
time.sleep(60)
"""
OBEDIENT = "import time; time.sleep(60)"
DEAF = f"import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); {OBEDIENT}"


def start(child: str, lines: int) -> subprocess.Popen[str]:
    code = TREE.format(child=child)
    if sys.version_info < (3, 11):
        code = code.replace("process_group=0", "preexec_fn=lambda: os.setpgid(0, 0)")
    leader = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    for _ in range(lines):
        leader.stdout.readline()
    return leader


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_other_process_groups_of_the_session_end_too() -> None:
    with start(OBEDIENT, lines=1) as leader:
        assert eventually(lambda: len(session_processes(leader.pid)) == 2)
        assert end_session(leader, grace_s=5.0) == []
        assert session_processes(leader.pid) == []


def test_processes_that_ignore_sigterm_are_killed() -> None:
    with start(DEAF, lines=2) as leader:
        killed = end_session(leader, grace_s=0.3)
        assert len(killed) == 1
        assert eventually(lambda: session_processes(leader.pid) == [])


def test_ended_session_is_nothing_to_end() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True, text=True) as leader:
        leader.wait()
        assert end_session(leader, grace_s=1.0) == []


class Leader:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> None: ...


def test_foreign_sessions_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Session 0 holds all processes that were started from outside the container."""
    sent: list[int] = []
    with subprocess.Popen([sys.executable, "-c", OBEDIENT], text=True) as sibling:
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", lambda pid, number: sent.append(pid))
            for pid in (0, 1, os.getsid(0)):
                with pytest.raises(ValueError, match=f"process {pid} does not lead a session of its own"):
                    end_session(Leader(pid), grace_s=0.0)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="was not started with start_new_session=True"):
                end_session(sibling, grace_s=0.0)
        sibling.kill()
    assert sent == []


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_command_ends_with_the_process_that_started_it() -> None:
    """Also when that process is killed and can do nothing about it."""
    command = ["/bin/sh", "-c", "exec sleep 60"]  # as spark-submit's script becomes the JVM
    parent = (
        "import os, subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-I', '-S', {exec_with_parent.__file__!r}, str(os.getpid()),"
        f" *{command!r}], start_new_session=True)\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert eventually(lambda: "sleep" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert eventually(lambda: session_processes(pid) == [])


def test_command_does_not_start_without_its_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", exec_with_parent.__file__, "1", "/bin/echo", "started"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "process 1 that started /bin/echo is gone" in done.stderr
