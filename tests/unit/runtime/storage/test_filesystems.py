from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import UnwritableUriError
from airflow_hydrogen.runtime.storage import filesystems, swap


def _folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def test_a_folder_takes_the_place_of_another(tmp_path):
    staged, target = _folder(tmp_path / "new", "new"), _folder(tmp_path / "old", "old")
    swap.replace_folder(staged, target)
    assert (target / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["old"]


def test_a_reader_never_finds_the_folder_missing(tmp_path):
    target = _folder(tmp_path / "target", "0")
    stop, missing = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                (target / "file").read_text()
            except FileNotFoundError as error:
                missing.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        swap.replace_folder(_folder(tmp_path / f"new{number}", str(number)), target)
    stop.set()
    reader.join()
    assert (target / "file").read_text() == "199"
    assert not missing


def test_where_folders_cannot_be_exchanged_they_are_moved_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(swap, "_exchange", lambda first, second: False)
    staged, target = _folder(tmp_path / "new", "new"), _folder(tmp_path / "old", "old")
    swap.replace_folder(staged, target)
    assert (target / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["old"]


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
