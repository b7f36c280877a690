from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.private_folders import private_folder
from airflow_hydrogen.runtime.connect.leases import key_of, leased

ACCESS = ConnectAccess(conn_id="server", host="host", token="t", code="abc")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_the_next_job_gets_the_same_session() -> None:
    with leased(ACCESS) as first:
        first.settings, first.is_used = {"a": "1"}, True
        first.keep()
    with leased(ACCESS) as second:
        assert (second.session_id, second.settings, second.is_used) == (first.session_id, {"a": "1"}, True)


def test_jobs_at_the_same_time_get_others() -> None:
    with leased(ACCESS) as first, leased(ACCESS) as second:
        for lease in (first, second):
            lease.keep()
        assert first.session_id != second.session_id
    with leased(ACCESS) as again:
        assert again.session_id == first.session_id


@pytest.mark.parametrize(
    "change", [{"code": "other"}, {"token": "u"}, {"user_id": "ada"}, {"port": 1}, {"headers": {"x": "y"}}]
)
def test_what_makes_sessions_others(change: dict[str, object]) -> None:
    assert key_of(dataclasses.replace(ACCESS, **change)) != key_of(ACCESS)
    assert key_of(ACCESS) != "t"


def test_settings_of_the_job_make_no_other_session() -> None:
    assert key_of(dataclasses.replace(ACCESS, settings={"spark.sql.x": "1"}, conn_id="b")) == key_of(ACCESS)


def test_a_session_of_a_process_that_was_killed_is_free_and_known_to_have_been_used(tmp_path: Path) -> None:
    script = (
        "import os, signal, tempfile; tempfile.tempdir = os.environ['FOLDER'];"
        "from airflow_hydrogen.contract.connect import ConnectAccess;"
        "from airflow_hydrogen.runtime.connect.leases import leased;"
        "access = ConnectAccess(conn_id='server', host='host', token='t', code='abc');"
        "held = leased(access); lease = held.__enter__();"
        "lease.is_used = True; lease.keep(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "FOLDER": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    with leased(ACCESS) as lease:
        assert lease.is_used


def test_half_a_file_is_nothing(tmp_path: Path) -> None:
    with leased(ACCESS) as lease:
        lease.keep()
    (file,) = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(private_folder("sessions").stat().st_mode) == 0o700
    file.write_text(file.read_text()[:20])
    with leased(ACCESS) as anew:
        assert anew.session_id != lease.session_id and anew.settings is None


@pytest.mark.parametrize("text", ["{}", "null", '{"session_id": 5}', '{"session_id": "no"}', "\0" * 20])
def test_nonsense_in_a_file_is_nothing(tmp_path: Path, text: str) -> None:
    with leased(ACCESS) as lease:
        lease.keep()
    (file,) = [file for file in tmp_path.rglob("*") if file.is_file()]
    file.write_text(text)
    with leased(ACCESS) as anew:
        assert anew.session_id != lease.session_id and not anew.is_used
