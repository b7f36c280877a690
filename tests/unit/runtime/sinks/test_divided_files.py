"""Files of many partitions: each has its own rows, and few files are open at once."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import UnwritableUriError
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.sinks import divided_files as module
from airflow_hydrogen.runtime.sinks.divided_files import PARTITION, DividedFile, divided, partition_of
from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles

SCHEMA = pa.schema([("id", pa.int64())])


def rows(numbers, first=0):
    ids = pa.array(np.arange(first, first + len(numbers)), pa.int64())
    return pa.record_batch({"id": ids, PARTITION: pa.array(numbers, pa.int32())})


@pytest.fixture
def place(tmp_path):
    (tmp_path / "tasks").mkdir()
    return TaskFiles("sink", str(tmp_path / "tasks"), SCHEMA, divided=True)


def bring(place, names, staged):
    return place.bring(names, lambda name: str(staged.joinpath(*map(str, partition_of(name)))))


def ids_of(folder):
    """Partition -> its rows, in the order of its files."""
    return {
        below.name: sorted(pq.read_table(below, partitioning=None)["id"].to_pylist())
        for below in folder.iterdir()
    }


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_each_row_comes_once_to_its_partition_in_its_order(numbers):
    found = {number: part["id"].to_pylist() for number, part in divided(rows(numbers))}
    assert found == {
        number: [place for place, there in enumerate(numbers) if there == number] for number in set(numbers)
    }


def test_rows_of_one_partition_are_not_copied():
    batch = rows([7, 7])
    [(number, part)] = divided(batch)
    assert number == 7 and part is batch


@pytest.mark.parametrize("waiting_bytes", [1, 100, 2**26], ids=["nothing waits", "some wait", "all wait"])
def test_rows_are_written_whatever_waits(place, tmp_path, monkeypatch, waiting_bytes):
    monkeypatch.setattr(module, "_WAITING_BYTES", waiting_bytes)
    monkeypatch.setattr(module, "_OPEN", 2)
    numbers = np.random.default_rng(0).integers(0, 20, 400)
    with DividedFile(place) as file:
        for first in range(0, 400, 40):
            file.add(rows(numbers[first : first + 40], first))
            assert sum(one.waiting_bytes for one in file._files.values()) < waiting_bytes
            assert sum(one.is_open for one in file._files.values()) <= 2
    assert len(file.names) == len(set(file.names)) >= 20
    assert bring(place, file.names, tmp_path / "staged") == len(file.names)
    found = ids_of(tmp_path / "staged")
    assert found == {str(n): np.flatnonzero(numbers == n).tolist() for n in range(20)}


def test_files_of_lost_tries_are_not_taken(place, tmp_path):
    with DividedFile(place) as lost:
        lost.add(rows([1, 2]))
    with DividedFile(place) as kept:
        kept.add(rows([1]))
    assert bring(place, [*kept.names, f"{PARTITION}=1-on-another-host.parquet"], tmp_path / "staged") == 1
    assert ids_of(tmp_path / "staged") == {"1": [0]}


def test_a_task_that_fails_names_no_files_and_closes_what_is_open(place, monkeypatch):
    monkeypatch.setattr(module, "_WAITING_BYTES", 1)
    file = DividedFile(place)
    file.add(rows([1, 2, 3]))
    streams = [one._stream for one in file._files.values()]
    failed = ZeroDivisionError()
    file.__exit__(type(failed), failed, None)
    assert len(streams) == 3 and all(stream.closed for stream in streams)


def test_a_host_that_lacks_the_folder_says_so(place):
    os.rmdir(place.folder)
    with pytest.raises(UnwritableUriError, match="this host lacks the folder"), DividedFile(place) as file:
        file.add(rows([1, 2]))


@pytest.mark.parametrize(
    "written", ["-part-00003-ab.parquet", "/part-00003-ab.parquet"], ids=["task", "Spark"]
)
def test_a_file_says_its_partition_by_its_name(written):
    assert partition_of(f"{PARTITION}=17{written}") == (17, "part-00003-ab.parquet")


def test_names_of_other_files_are_their_names_where_they_are_staged(tmp_path, place):
    with TaskFile(place) as file:
        file.add(rows([0]))
    assert place.accept(file.names, str(tmp_path / "staged")) == 1 == count_rows(str(tmp_path / "staged"))
    assert os.listdir(tmp_path / "staged") == file.names
