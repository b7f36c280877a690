"""End all processes of a session: the JVM, the Python driver, the Python workers and the ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def end_session(
    leader: subprocess.Popen[str], grace_s: float, sleep: Callable[[float], None] = time.sleep
) -> list[int]:
    """SIGTERM to every process of a session, SIGKILL to those that are left after a while.

    A process group would not do: PySpark's worker daemon makes one of its own.

    Args:
        leader: the process that was started with `start_new_session=True`. It may have ended already.
        grace_s: how long processes may take to end by themselves.

    Returns:
        The processes that had to be killed.

    Raises:
        ValueError: `leader` does not lead a session of its own, so that others would be ended with it.
    """
    # Session 0 is that of every process whose leader is outside the container.
    if leader.pid <= 1 or leader.pid == os.getsid(0):
        raise ValueError(f"process {leader.pid} does not lead a session of its own")
    if leader.poll() is None and os.getsid(leader.pid) != leader.pid:
        raise ValueError(f"process {leader.pid} was not started with start_new_session=True")
    _signal(leader.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        leader.poll()  # so that the leader does not stay as a zombie
        if not session_processes(leader.pid):
            return []
        sleep(0.05)
    killed = session_processes(leader.pid)
    _signal(leader.pid, signal.SIGKILL)
    leader.poll()
    return killed


def session_processes(session: int) -> list[int]:
    """Living processes of a session. Where there is no /proc: the session's first process group, as one."""
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(session, 0)
        except (ProcessLookupError, PermissionError):
            return []
        return [session]
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _is_member(entry, session)]


def _is_member(pid: str, session: int) -> bool:
    try:
        text = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:  # it ended meanwhile
        return False
    # pid (command) state parent group session ...: the command may hold spaces and brackets.
    state, _parent, _group, found = text.rpartition(")")[2].split()[:4]
    return int(found) == session and state not in "ZX"


def _signal(session: int, number: signal.Signals) -> None:
    has_proc = Path("/proc/self/stat").exists()
    for pid in session_processes(session):
        try:
            if has_proc:
                os.kill(pid, number)
            else:
                os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            continue
