"""One folder in the place of another: old rows or new rows, whatever fails and whoever else is there."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import PartitionTakenError
from airflow_hydrogen.runtime.storage import filesystems, partition_files, swap
from tests.unit.runtime.storage.failing_store import Faults, failing  # noqa: F401

RUN = {"dag_id": "d", "run_id": "r"}


def _stage(replacement, value, files=2):
    """What Spark would have written: `files` Parquet files whose rows say which try they are of."""
    for number in range(files):
        filesystems.write_bytes(uris.join(replacement.staged, f"part-{number:05d}.parquet"), _parquet(value))
    filesystems.write_bytes(uris.join(replacement.staged, "_SUCCESS"), b"")


@functools.cache
def _parquet(value):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [value] * 3}), sink)
    return sink.getvalue().to_pybytes()


@functools.cache
def _values(content):
    return pq.read_table(pa.BufferReader(content))["x"].to_pylist()


def _replace(target, value, files=2):
    with swap.replacing(target, RUN) as replacement:
        _stage(replacement, value, files)
        replacement.commit(rows=3 * files)


def _rows(target):
    """What a reader finds that honours lists."""
    found = []
    for name, _size in partition_files.listed_files(target):
        found += _values(filesystems.read_bytes(uris.join(target, name)))
    return found


def _folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def _every_fault(faults: Faults, operations: int):
    for number in range(operations):
        # To die before an operation is to die after the one before it.
        for after, dead in ((False, False), (True, False), (True, True)):
            yield number, {"after": after, "dead": dead}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Whether the disk keeps what it was given is not tested here, nor how warnings look."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(swap.log, "disabled", True)


@pytest.mark.parametrize("before", ["nothing", "plain files", "a partition of ours", "a table"])
def test_whatever_operation_fails_there_are_the_old_rows_or_the_new_ones(failing, before):  # noqa: F811
    root, faults = failing

    def prepare(target):
        if before == "plain files":
            for name in ("part-00000.parquet", "part-00001.parquet"):
                filesystems.write_bytes(uris.join(target, name), _parquet(1))
        elif before == "a partition of ours":
            _replace(target, 0, files=1)
            _replace(target, 1)
        elif before == "a table":
            for day in (1, 2):
                _replace(uris.join(target, f"ds={day}"), 1, files=1)

    old, new = [] if before == "nothing" else [1] * 6, [2] * 6
    prepare(uris.join(root, "count"))
    faults.reset(None)
    _replace(uris.join(root, "count"), 2)
    operations = faults.count
    assert operations > 5
    outcomes = set()
    for number, how in _every_fault(faults, operations):
        faults.reset(None)
        target = uris.join(root, f"{number}-{how['after']}-{how['dead']}", "ds=1")
        prepare(target)
        faults.reset(number, **how)
        with contextlib.suppress(OSError):
            _replace(target, 2)
        faults.reset(None)
        found = _rows(target)
        assert found in (old, new), (number, how)
        outcomes.add(str(found))
        _replace(target, 3, files=1)
        assert _rows(target) == [3] * 3
        plain = [name for name, _ in filesystems.list_files(target) if not partition_files.is_hidden(name)]
        assert len(plain) == 1, "readers that know no lists see the new rows alone"
        parent = target.rpartition("/")[0]
        names = {name.partition("/")[0] for name, _ in filesystems.list_files(parent)}
        assert names == {"ds=1"}, "nothing staged is left, and no owner"
        filesystems.remove(parent)  # what is listed next stays short
    assert outcomes == {str(old), str(new)}


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_tries_at_the_same_time_the_newest_wins_in_whatever_order_they_end(failing, first):  # noqa: F811
    root, _faults = failing
    target = uris.join(root, "ds=1")
    older, newer = swap.replacing(target, RUN), swap.replacing(target, RUN)
    tries = [older.__enter__(), newer.__enter__()]
    assert tries[0].staged != tries[1].staged
    for number, replacement in enumerate(tries):
        _stage(replacement, number + 1)
    for number in (first, 1 - first):
        if number == 1:
            tries[1].commit(rows=6)
            newer.__exit__(None, None, None)
            continue
        with pytest.raises(PartitionTakenError, match="which began after this one") as caught:
            tries[0].commit(rows=6)
        assert not older.__exit__(type(caught.value), caught.value, caught.value.__traceback__)
        assert caught.value.retryable is (first == 1), "a retry would take it from the one that writes"
    assert _rows(target) == [2] * 6
    assert {name.partition("/")[0] for name, _ in filesystems.list_files(root)} == {"ds=1"}


def test_a_claim_that_another_try_took_for_a_leftover_is_written_again(tmp_path, monkeypatch):
    write, target = filesystems.write_bytes, str(tmp_path / "ds=1")
    swept = []

    def write_as_it_is_swept(uri, data):
        if len(swept) < 3:
            swept.append(uri)
            raise FileNotFoundError(f"{uri}.0123abcd")
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(filesystems, "write_bytes", write_as_it_is_swept)
        with swap.replacing(target, RUN) as replacement:
            replacement.require_owner()
    assert len(swept) == 3

    def never(uri, data):
        raise FileNotFoundError(uri)

    monkeypatch.setattr(filesystems, "write_bytes", never)
    with pytest.raises(PartitionTakenError), swap.replacing(target, RUN):
        pass


def test_a_try_whose_files_a_newer_one_swept_says_so(failing):  # noqa: F811
    root, _faults = failing
    target = uris.join(root, "ds=1")

    def overtaken():
        with swap.replacing(target, None) as older:
            _stage(older, 1)
            swap.replacing(target, RUN).__enter__()
            filesystems.read_bytes(uris.join(older.staged, "part-00000.parquet"))

    with pytest.raises(PartitionTakenError, match=r"another try \(dag_id='d', run_id='r'\)") as caught:
        overtaken()
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("moment", ["before the newer one lists", "after the newer one is done"])
def test_a_try_that_was_stopped_before_its_last_step_loses_nothing(tmp_path, monkeypatch, moment):
    """It has looked who owns the target, sleeps, and wakes up when a newer try has come by."""
    monkeypatch.setattr(swap, "exchange", lambda staged, target: False)
    target = str(tmp_path / "ds=1")
    filesystems.write_bytes(f"{target}/plain", b"old")
    write_list, stopped = swap.Replacement._write_list, []

    def stop(self, number, files):
        if number == self.number and not stopped:
            stopped.append(self)
            if moment == "after the newer one is done":
                _replace(target, 2)
            else:
                with contextlib.suppress(KeyError), swap.replacing(target, RUN) as newer:
                    newer._freeze()
                    raise KeyError("and dies there")
        return write_list(self, number, files)

    monkeypatch.setattr(swap.Replacement, "_write_list", stop)
    if moment == "after the newer one is done":
        with pytest.raises(PartitionTakenError):
            _replace(target, 1)
        assert _rows(target) == [2] * 6
    else:
        _replace(target, 1)
        assert _rows(target) == [1] * 6
    _replace(target, 3)
    assert _rows(target) == [3] * 6


def test_a_partition_without_rows_is_a_partition(failing):  # noqa: F811
    root, _faults = failing
    _replace(uris.join(root, "ds=1"), 1)
    _replace(uris.join(root, "ds=1"), 2, files=0)
    assert _rows(uris.join(root, "ds=1")) == []


def test_a_damaged_partition_can_be_replaced(failing):  # noqa: F811
    root, _faults = failing
    target = uris.join(root, "ds=1")
    _replace(target, 1)
    filesystems.remove(uris.join(target, filesystems.list_files(target)[0][0]))
    _replace(target, 2)
    assert _rows(target) == [2] * 6


def test_a_folder_takes_the_place_of_another(tmp_path):
    staged, target = _folder(tmp_path / "new", "new"), _folder(tmp_path / "old", "old")
    assert swap.exchange(staged, target)
    assert (target / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["old"]


def test_a_reader_never_finds_the_folder_missing(tmp_path):
    target = _folder(tmp_path / "target", "0")
    stop, missing = threading.Event(), []

    def read() -> None:
        while not stop.is_set() and not missing:
            try:
                (target / "file").read_text()
            except FileNotFoundError as error:
                missing.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(200):
            assert swap.exchange(_folder(tmp_path / f"new{number}", str(number)), target)
    finally:
        stop.set()
        reader.join()
    assert (target / "file").read_text() == "199"
    assert not missing


def test_where_folders_cannot_be_exchanged_nothing_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(swap, "_exchange", lambda first, second: False)
    staged, target = _folder(tmp_path / "new", "new"), _folder(tmp_path / "old", "old")
    assert not swap.exchange(staged, target)
    assert (target / "file").read_text() == "old"
    assert (staged / "file").read_text() == "new"


def test_a_target_whose_name_begins_like_anothers_leftovers_is_left_alone(tmp_path):
    scores, staging_eu = str(tmp_path / "scores"), str(tmp_path / "scores.staging-eu")
    with swap.replacing(staging_eu, RUN) as replacement:
        _stage(replacement, 1)
        _replace(scores, 2)
        replacement.commit(rows=6)
    assert (_rows(scores), _rows(staging_eu)) == ([2] * 6, [1] * 6)


# --- many folders ------------------------------------------------------------------------------------------


def _replace_all(root, value, before_commit=lambda: None):
    targets = [uris.join(root, f"ds={number}") for number in range(3)]
    with swap.replacing_all(targets, RUN) as replacements:
        for replacement in replacements:
            _stage(replacement, value, files=1)
        before_commit()
        for replacement in replacements:
            replacement.commit(rows=3)


def test_whatever_operation_fails_each_of_many_folders_has_its_old_rows_or_its_new_ones(
    failing,  # noqa: F811
    monkeypatch,
):
    root, faults = failing
    monkeypatch.setattr(filesystems, "_AT_ONCE", 1)  # operations are counted
    days = [f"ds={number}" for number in range(3)]
    faults.reset(None)
    _replace_all(uris.join(root, "count"), 1)
    faults.reset(None)
    _replace_all(uris.join(root, "count"), 2)
    operations = faults.count
    outcomes = set()
    # Every third one: each kind of operation is done for three folders.
    for number, how in [fault for fault in _every_fault(faults, operations) if fault[0] % 3 == 0]:
        faults.reset(None)
        table = uris.join(root, f"{number}-{how['after']}-{how['dead']}")
        _replace_all(table, 1)
        faults.reset(number, **how)
        with contextlib.suppress(OSError):
            _replace_all(table, 2)
        faults.reset(None)
        found = [_rows(uris.join(table, day)) for day in days]
        assert all(rows in ([1] * 3, [2] * 3) for rows in found), (number, how)
        outcomes.add(sum(rows == [2] * 3 for rows in found))
        _replace_all(table, 3)
        assert [_rows(uris.join(table, day)) for day in days] == [[3] * 3] * 3
        names = {name.partition("/")[0] for name, _ in filesystems.list_files(table)}
        assert names == set(days), "nothing staged is left, and no owner"
        filesystems.remove(table)
    assert outcomes == {0, 1, 2, 3}, "it dies before the swaps, between them and behind them"


def test_a_newer_try_of_one_folder_takes_that_one_and_fails_the_one_of_many(tmp_path):
    table = str(tmp_path)
    _replace_all(table, 1)
    with pytest.raises(PartitionTakenError, match="/ds=1' was taken"):
        _replace_all(table, 2, before_commit=lambda: _replace(uris.join(table, "ds=1"), 5, files=1))
    assert [_rows(uris.join(table, f"ds={number}"))[0] for number in range(3)] == [2, 5, 1]
    assert sorted(os.listdir(tmp_path)) == ["ds=0", "ds=1", "ds=2"], "its claims of the others are given up"


def test_a_try_of_many_takes_what_an_older_one_of_one_writes(tmp_path):
    table = str(tmp_path)

    def replace_one():
        with swap.replacing(uris.join(table, "ds=1"), RUN) as older:
            _stage(older, 5)
            _replace_all(table, 2)
            older.commit(rows=6)

    with pytest.raises(PartitionTakenError, match="/ds=1' was taken"):
        replace_one()
    assert [_rows(uris.join(table, f"ds={number}")) for number in range(3)] == [[2] * 3] * 3
    assert sorted(os.listdir(tmp_path)) == ["ds=0", "ds=1", "ds=2"]


def test_leftovers_of_many_folders_are_found_by_one_look_at_each_folder_above(tmp_path, monkeypatch):
    for name in (
        ".ds=1.staging-0123456789ab",
        ".ds=2.owner.01234567",
        ".ds=1.x.staging-0123456789ab",
        ".ds=3.staging-0",
    ):
        (tmp_path / "a" / name).mkdir(parents=True)
    looks = []
    resolve = filesystems.resolve
    monkeypatch.setattr(filesystems, "resolve", lambda uri: looks.append(uri) or resolve(uri))
    targets = [str(tmp_path / folder / f"ds={number}") for folder in ("a", "b") for number in (1, 2, 3)]
    found = filesystems.list_siblings_of_all(targets, swap._LEFTOVER)
    assert sorted(map(os.path.basename, found)) == [".ds=1.staging-0123456789ab", ".ds=2.owner.01234567"]
    assert looks == [str(tmp_path / "a"), str(tmp_path / "b")]
