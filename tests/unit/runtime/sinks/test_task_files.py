"""Files that tasks write: one a try, and only those of accepted tries are taken."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import UnwritableUriError
from airflow_hydrogen.runtime.sinks import task_files as module
from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles

SCHEMA = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us", "UTC")), ("reason", pa.string())])


def rows(*ids):
    return pa.record_batch(
        {
            "unused": [0] * len(ids),
            "at": pa.array(ids, pa.timestamp("us", "Asia/Tokyo")),
            "reason": [f"bad {number}" for number in ids],
            "id": pa.array(ids),
        }
    )


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / ".ds=1.staging-0123456789ab"
    folder.mkdir()
    return TaskFiles("quarantine", str(folder), SCHEMA)


def test_files_of_accepted_tries_are_taken_and_no_others(place, tmp_path):
    names = []
    for ids in ([1], [2, 3]):
        with TaskFile(place) as file:
            for number in ids:
                file.add(rows(number))
        names.append(file.name)
    with TaskFile(place) as lost:
        lost.add(rows(4))
    assert place.accept(names, str(tmp_path / "staged")) == 3
    table = pq.read_table(tmp_path / "staged").sort_by("id")
    assert table.schema.equals(SCHEMA)
    assert table.column("id").to_pylist() == [1, 2, 3]
    assert table.column("reason").to_pylist() == ["bad 1", "bad 2", "bad 3"]
    assert pq.ParquetFile(tmp_path / "staged" / names[1]).num_row_groups == 1


def test_a_file_that_is_not_there_is_not_counted(place, tmp_path):
    with TaskFile(place) as file:
        file.add(rows(1))
    assert place.accept([file.name, "on-another-host.parquet"], str(tmp_path / "staged")) == 1


def test_no_rows_make_a_table_without_rows(place, tmp_path):
    with TaskFile(place) as file:
        pass
    assert file.name is None
    assert place.accept([], str(tmp_path / "staged")) == 0
    assert pq.read_table(tmp_path / "staged").schema.equals(SCHEMA)
    assert list((tmp_path / ".ds=1.staging-0123456789ab").iterdir()) == []


def test_many_rows_do_not_stay_in_memory(place, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROW_GROUP_BYTES", 1)
    with TaskFile(place) as file:
        for number in range(3):
            file.add(rows(number))
            assert file._waiting == []
    place.accept([file.name], str(tmp_path / "staged"))
    assert pq.ParquetFile(tmp_path / "staged" / file.name).num_row_groups == 3


def test_a_host_that_cannot_write_there_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UnwritableUriError, match="quarantine '.*/file/x/part-.*' cannot be written"),
        TaskFile(TaskFiles("quarantine", str(tmp_path / "file" / "x"), SCHEMA)) as file,
    ):
        file.add(rows(1))


def test_a_task_that_nobody_waits_for_leaves_nothing_behind(place, tmp_path):
    """The driver is done, and has removed what it made."""
    (tmp_path / ".ds=1.staging-0123456789ab").rmdir()
    with pytest.raises(UnwritableUriError, match="to be seen by every host"), TaskFile(place) as file:
        file.add(rows(1))
    assert list(tmp_path.iterdir()) == []


def test_rows_that_cannot_be_written_at_the_end_leave_no_stream_open(place, monkeypatch):
    file = TaskFile(place)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_ROW_GROUP_BYTES", 1)
        file.add(rows(1))
    file.add(rows(2))
    stream, writer = file._stream, file._writer

    def is_full(*_):
        raise OSError("the disk is full")

    def has_no_footer():
        writer.is_open = False
        raise ValueError("and so the footer cannot be written")

    monkeypatch.setattr(writer, "write_table", is_full)
    monkeypatch.setattr(writer, "close", has_no_footer)
    with pytest.raises(OSError, match="the disk is full"):
        file.__exit__(None, None, None)
    assert stream.closed


def test_a_task_that_fails_names_no_file(place):
    file = TaskFile(place)
    file.add(rows(1))
    file.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert file.name is None


def test_files_have_no_bounds_of_floating_numbers_which_would_leave_nan_out(tmp_path):
    rows = pa.table({"id": [1, 2], "f": [1.0, float("nan")], "n": [{"x": 1.0}, {"x": float("nan")}]})
    with TaskFile(TaskFiles("sink", str(tmp_path), rows.schema)) as file:
        file.add(rows.to_batches()[0])
    group = pq.read_metadata(tmp_path / file.name).row_group(0)
    assert [group.column(number).statistics is None for number in range(3)] == [False, True, True]
