from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.operators.packing import pack_runtime
from airflow_hydrogen.runtime.connect.guarding import guarded

ACCESS = ConnectAccess(conn_id="server", host="host", token="hush")


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_a_job_does_not_fail_whose_guard_was_killed() -> None:
    before = children()
    with guarded(ACCESS, "a session"):
        (guard,) = set(children()) - set(before)
        assert "hush" not in Path(f"/proc/{guard}/cmdline").read_text()
        os.kill(guard, signal.SIGKILL)
    assert children() == before


def test_nobody_who_reads_what_the_job_says_waits_for_its_guard() -> None:
    with guarded(ACCESS, "a session"):
        (guard,) = set(children())
        held = {os.readlink(f"/proc/{guard}/fd/{number}") for number in (1, 2)}
    assert held == {os.devnull}


@pytest.mark.medium
def test_a_guard_needs_the_runtime_no_more_once_it_is_there(tmp_path: Path) -> None:
    archive = pack_runtime(tmp_path / "runtime.zip")
    code = (
        "import os, sys, airflow_hydrogen.runtime.connect.guard as guard;"
        "os.remove(sys.argv[1]);"
        "from airflow_hydrogen.contract.connect import ConnectAccess;"
        "access = ConnectAccess(conn_id='s', host='localhost', port=1);"
        "guard.interrupt(access, '9c1c3a0e-0d8c-4f36-8d0e-6f3b9d6ab001')"
    )
    environment = {**os.environ, "PYTHONPATH": str(archive)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(archive)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UNAVAILABLE" in done.stderr and "airflow_hydrogen" in done.stderr
