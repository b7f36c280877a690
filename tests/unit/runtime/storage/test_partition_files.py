"""Which files are the rows of a folder."""

from __future__ import annotations

import pytest

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import PartitionFilesError
from airflow_hydrogen.runtime.storage import filesystems
from airflow_hydrogen.runtime.storage.partition_files import FileList, list_name, listed_files, visible_files

FILES = list_name(2, "aa")


def _visible(sizes, **lists):
    contents = {name.replace("root", ""): FileList(tuple(files)).dumps() for name, files in lists.items()}
    named = {f"{folder}/{FILES}".lstrip("/"): content for folder, content in contents.items()}
    found = [*sizes.items(), *((name, len(content)) for name, content in named.items())]
    return visible_files(found, named.__getitem__)


def test_without_a_list_all_files_but_hidden_ones_are_visible():
    sizes = {"b.parquet": 2, "a.parquet": 1, "_SUCCESS": 0, "_x/c": 1, ".ds=1.staging/d": 1, "e.crc": 0}
    assert _visible({**sizes, "_k=1/f": 3}) == [("_k=1/f", 3), ("a.parquet", 1), ("b.parquet", 2)]


def test_a_list_hides_what_it_does_not_name():
    assert _visible({"old": 1, "new": 2}, root=[("new", 2)]) == [("new", 2)]
    assert _visible({"old": 1}, root=[]) == []


def test_of_several_lists_the_highest_counts():
    lists = {list_name(9, "ff"): [("old", 1)], list_name(10, "aa"): [("new", 2)]}
    contents = {name: FileList(tuple(files)).dumps() for name, files in lists.items()}
    found = [("old", 1), ("new", 2), *((name, 1) for name in contents)]
    assert visible_files(found, contents.__getitem__) == [("new", 2)]


def test_every_partition_of_a_table_has_a_list_of_its_own():
    sizes = {"ds=1/old": 1, "ds=1/new": 2, "ds=2/old": 3, "ds=10/old": 4}
    assert _visible(sizes, **{"ds=1": [("new", 2)]}) == [("ds=1/new", 2), ("ds=10/old", 4), ("ds=2/old", 3)]
    both = _visible({"top": 9, **sizes}, **{"root": [("top", 9)], "ds=1": [("new", 2)]})
    assert both == [("ds=1/new", 2), ("top", 9)], "the nearest list decides"


@pytest.mark.parametrize("sizes", [{}, {"new": 1}])
def test_a_file_that_is_not_as_its_list_says_is_an_error(sizes):
    with pytest.raises(PartitionFilesError, match="names 'new' with 2 bytes, found"):
        _visible(sizes, root=[("new", 2)])


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format_version": 9, "files": []}', b"\xff"])
def test_a_list_that_cannot_be_read_is_an_error(content):
    with pytest.raises(PartitionFilesError, match="_hydrogen_files-00000002-aa.json"):
        visible_files([(FILES, 1)], lambda name: content)


def test_a_folder_that_is_replaced_while_it_is_listed_is_looked_at_again(tmp_path, monkeypatch):
    uri = str(tmp_path)
    for name in ("old", "new"):
        filesystems.write_bytes(uris.join(uri, name), b"x")
    filesystems.write_bytes(uris.join(uri, FILES), FileList((("new", 1),)).dumps())
    looks = iter([[("old", 1), (FILES, 9)], filesystems.list_files(uri)])
    monkeypatch.setattr(filesystems, "list_files", lambda uri: next(looks))
    assert listed_files(uri) == [("new", 1)]


def test_nothing_there_is_no_files(tmp_path):
    assert listed_files(str(tmp_path / "nowhere")) == []
