"""A program on the Airflow worker, and its end."""

from __future__ import annotations

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from airflow_hydrogen.hooks import programs
from airflow_hydrogen.hooks.programs import Program
from airflow_hydrogen.hooks.sessions import session_processes


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Prints its argument and a line of its own, then does what the argument says."""
    (tmp_path / "made_for_a_test.py").write_text(
        "import os, subprocess, sys\n"
        "print('argument', sys.argv[1], os.environ['GIVEN'])\n"
        "print(b'caf\\xe9'.decode('latin-1'), file=sys.stderr)\n"
        "if sys.argv[1] == 'wait':\n"
        "    subprocess.run([sys.executable, '-c', 'import time; print(0, flush=True); time.sleep(60)'])\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return Program("made_for_a_test", "3", {**os.environ, "GIVEN": "x"})


def test_lines_are_told_and_the_exit_code_is_its_own(program: Program) -> None:
    lines: list[str] = []
    assert program.run(lines.append) == 3
    assert lines[0] == "argument 3 x"
    assert program.log_tail.splitlines() == lines
    assert len(lines) == 2


def test_it_ends_with_all_that_it_has_started(program: Program) -> None:
    waiting = Program("made_for_a_test", "wait", {**os.environ, "GIVEN": "x"})
    sessions: list[int] = []

    def say(line: str) -> None:
        if line == "0":
            assert waiting._process is not None
            sessions.append(waiting._process.pid)
            threading.Thread(target=waiting.kill).start()  # as a signal's handler does, while lines are read

    assert waiting.run(say) == -signal.SIGTERM
    assert waiting.killed
    assert session_processes(sessions[0]) == []


def test_it_ends_at_once_where_it_was_killed_before_it_began(program: Program) -> None:
    program.kill()
    assert program.run(print) < 0


def test_secrets_are_this_users_alone(tmp_path: Path) -> None:
    programs.write_secretly(tmp_path / "job.json", "{}")
    assert stat.S_IMODE((tmp_path / "job.json").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        programs.write_secretly(tmp_path / "job.json", "")
