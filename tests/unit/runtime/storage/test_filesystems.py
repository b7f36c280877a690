from __future__ import annotations

import os
import threading

import pytest

from airflow_hydrogen.contract.errors import UnwritableUriError
from airflow_hydrogen.runtime.storage import filesystems


def test_a_file_appears_complete_and_leaves_nothing_beside_it(tmp_path):
    uri = str(tmp_path / "deep" / "file")
    filesystems.write_bytes(uri, b"one")
    filesystems.write_bytes(uri, b"two")
    assert filesystems.read_bytes(uri) == b"two"
    assert os.listdir(tmp_path / "deep") == ["file"]


def test_a_writable_place_is_left_as_it_was(tmp_path):
    filesystems.require_writable("model_uri", str(tmp_path / "a" / "b" / "model"))
    assert os.listdir(tmp_path) == []


def test_an_unwritable_place_names_the_argument(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableUriError, match=r"model_uri '.*/file/model' cannot be written"):
        filesystems.require_writable("model_uri", str(tmp_path / "file" / "model"))


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(UnwritableUriError, match="is a file"):
        filesystems.require_writable("model_uri", str(tmp_path / "model"))


def test_a_scheme_that_nobody_knows():
    with pytest.raises(UnwritableUriError, match="sink 'nowhere://x/y' cannot be written"):
        filesystems.require_writable("sink", "nowhere://x/y")


def test_many_files_are_brought_at_the_same_time(monkeypatch):
    met, brought = threading.Barrier(3), {}

    def transfer(source, target):
        met.wait(10)  # one after the other, and nobody would come
        brought[source] = target

    monkeypatch.setattr(filesystems, "transfer", transfer)
    names = {f"a/{number}": f"b/{number}" for number in range(3)}
    filesystems.transfer_all(names)
    assert brought == names


def test_no_file_is_on_its_way_any_more_when_one_has_failed(monkeypatch):
    has_failed, begun, ended = threading.Event(), [], []

    def transfer(source, _target):
        begun.append(source)
        if source == "bad":
            has_failed.set()
            raise OSError("no room")
        assert has_failed.wait(10)
        ended.append(source)

    monkeypatch.setattr(filesystems, "transfer", transfer)
    with pytest.raises(OSError, match="no room"):
        filesystems.transfer_all({"slow": "x", "bad": "y", "last": "z"})
    assert "slow" in ended
    assert sorted([*ended, "bad"]) == sorted(begun)


def test_nothing_is_brought_of_nothing(tmp_path):
    filesystems.transfer_all({})
    (tmp_path / "a").write_text("x")
    filesystems.transfer_all({str(tmp_path / "a"): str(tmp_path / "new" / "b")})
    assert [file.name for file in tmp_path.rglob("*")] == ["new", "b"]
