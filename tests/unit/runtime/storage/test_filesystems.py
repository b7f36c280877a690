from __future__ import annotations

import os

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
