from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from airflow_hydrogen.contract.errors import ModelChangedError, UnwritableUriError
from airflow_hydrogen.runtime.models import copies


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def root(temporary_folder):
    """Where the copies lie."""
    return temporary_folder / f"airflow-hydrogen-models-{os.getuid()}"


class Model:
    """A model elsewhere: it counts how often it is fetched."""

    def __init__(self, content="weights"):
        self.content = content
        self.fetches = 0

    def fetch(self, folder):
        assert list(folder.iterdir()) == []
        self.fetches += 1
        (folder / "model.keras").write_text(self.content)

    def verify(self, folder):
        path = folder / "model.keras"
        if not path.is_file() or path.read_text() != "weights":
            raise ModelChangedError("s3://m", "model.keras", "has another sha256 than its manifest says")

    def hold(self, version="v"):
        return copies.hold(version, self.fetch, self.verify)


def _unused_for(folder, seconds):
    moment = time.time() - seconds
    os.utime(folder, (moment, moment))


def test_a_copy_is_fetched_once_and_used_again(root):
    model = Model()
    for _ in range(3):
        with model.hold() as folder:
            assert (folder / "model.keras").read_text() == "weights"
    assert model.fetches == 1
    assert os.listdir(root) == ["v"]
    assert root.stat().st_mode & 0o777 == 0o700


def test_processes_that_want_one_copy_at_the_same_time_fetch_it_once(root):
    model = Model()
    together = threading.Barrier(8)
    found = []

    def use():
        together.wait()
        with model.hold() as folder:
            together.wait()  # all of them hold it now
            found.append((folder / "model.keras").read_text())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["weights"] * 8
    assert model.fetches == 1
    assert os.listdir(root) == ["v"]


def test_what_is_not_the_wanted_version_is_not_kept(root):
    with pytest.raises(ModelChangedError), Model("other").hold():
        pass
    assert os.listdir(root) == []


def test_a_damaged_copy_is_fetched_again(root):
    model = Model()
    with model.hold() as folder:
        (folder / "model.keras").unlink()
    with model.hold() as folder:
        assert (folder / "model.keras").read_text() == "weights"
    assert model.fetches == 2
    assert os.listdir(root) == ["v"]


def test_a_copy_that_nobody_has_used_for_an_hour_is_removed(root):
    for version in ("old", "recent"):
        with Model().hold(version):
            pass
    _unused_for(root / "old", copies.KEPT_S + 60)
    _unused_for(root / "recent", copies.KEPT_S - 60)
    with Model().hold("new"):
        assert sorted(os.listdir(root)) == ["new", "recent"]


def test_a_copy_that_was_used_lately_is_not_even_locked(root, monkeypatch):
    for version in ("old", "recent"):
        with Model().hold(version):
            pass
    _unused_for(root / "old", copies.KEPT_S + 60)
    locked, lock = [], copies._lock
    monkeypatch.setattr(
        copies, "_lock", lambda folder, kind: locked.append(folder.name) or lock(folder, kind)
    )
    with Model().hold("new"):
        assert "old" in locked
        assert "recent" not in locked


def test_a_copy_in_use_stays_however_long_that_takes(root):
    with Model().hold("old") as folder:
        _unused_for(folder, 30 * 24 * 3600)
        with Model().hold("new"):
            assert (folder / "model.keras").exists()
        assert sorted(os.listdir(root)) == ["new", "old"]


def test_an_old_copy_that_is_wanted_again_is_not_fetched_again(root):
    model = Model()
    with model.hold():
        pass
    _unused_for(root / "v", copies.KEPT_S + 60)
    with model.hold():
        pass
    assert model.fetches == 1


@contextlib.contextmanager
def _process(body):
    """Another process that does something and says so, then waits to be killed."""
    code = (
        "import sys, time, pathlib, tempfile\n"
        f"tempfile.tempdir = {tempfile.tempdir!r}\n"
        "from airflow_hydrogen.runtime.models import copies\n"
        "def wait(folder):\n"
        "    (folder / 'half').write_text('x'); print('ready', flush=True); sys.stdin.read()\n"
        f"{body}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_process_that_is_killed_while_it_fetches_is_no_obstacle(root):
    model = Model()
    entered = threading.Event()
    got = []

    def use():
        entered.set()
        with model.hold() as folder:
            got.extend(os.listdir(folder))

    with _process("with copies.hold('v', wait, print): pass") as process:
        thread = threading.Thread(target=use)
        thread.start()
        entered.wait()
        assert model.fetches == 0
        process.send_signal(signal.SIGKILL)
        thread.join()
    assert got == ["model.keras"]
    assert os.listdir(root) == ["v"]


def test_a_process_that_is_killed_while_it_uses_a_copy_gives_it_up(root):
    model = Model()
    with model.hold("old"):
        pass
    with _process("with copies.hold('old', None, lambda folder: None) as folder: wait(folder)") as process:
        _unused_for(root / "old", copies.KEPT_S + 60)
        with model.hold("new"):
            assert sorted(os.listdir(root)) == ["new", "old"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    _unused_for(root / "old", copies.KEPT_S + 60)
    with model.hold("new"):
        assert os.listdir(root) == ["new"]


def test_a_folder_that_others_can_write_is_not_used(root):
    root.mkdir()
    root.chmod(0o777)
    with (
        pytest.raises(UnwritableUriError, match="belongs to this user alone; remove it, or set TMPDIR"),
        Model().hold(),
    ):
        pass
