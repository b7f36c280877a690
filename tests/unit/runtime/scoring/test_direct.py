from __future__ import annotations

import threading

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.data.files import DatasetFiles, list_dataset, read_footers
from airflow_hydrogen.runtime.data.opened import OpenedFile
from airflow_hydrogen.runtime.data.scans import Scan
from airflow_hydrogen.runtime.scoring import ahead, direct
from airflow_hydrogen.runtime.scoring.direct import RowGroup, deal, read, row_groups
from airflow_hydrogen.runtime.scoring.inference import rebatch

MB = 2**20

groups = st.lists(
    st.builds(RowGroup, file=st.integers(0, 3), index=st.integers(0, 9), size=st.integers(1, 300 * MB)),
    max_size=40,
)


def sizes_of(hands):
    return [sum(group.size for group in hand) for hand in hands]


@given(groups, st.integers(0, 8))
def test_every_row_group_is_dealt_once_and_no_hand_is_empty(found, slots):
    hands = deal(found, slots)
    assert sorted((group for hand in hands for group in hand), key=repr) == sorted(found, key=repr)
    assert len(hands) <= len(found)
    assert all(hands)


@given(groups, st.integers(0, 8))
def test_no_hand_has_more_than_a_row_group_above_another(found, slots):
    sizes = sizes_of(deal(found, slots))
    if sizes:
        assert max(sizes) - min(sizes) <= max(group.size for group in found)


@given(groups, st.integers(0, 8))
def test_tasks_are_of_about_128_mb_and_not_beyond_a_row_group_more(found, slots):
    largest = max((group.size for group in found), default=0)
    assert all(size <= 128 * MB + largest for size in sizes_of(deal(found, slots)))


@given(groups, st.integers(0, 8))
def test_tasks_are_not_made_tiny_for_slots(found, slots):
    total = sum(group.size for group in found)
    assert len(deal(found, slots)) <= max(1, total // (8 * MB), -(-total // (128 * MB)))


def test_a_large_table_is_cut_whatever_slots_there_are_now():
    table = [RowGroup(0, index, 16 * MB) for index in range(640)]  # 10 GB
    assert len(deal(table, 1)) == len(deal(table, 0)) == 80


def test_less_data_is_cut_for_the_slots():
    table = [RowGroup(0, index, 4 * MB) for index in range(60)]
    assert len(deal(table, 1)) == 4
    assert len(deal(table, 4)) == 16
    assert len(deal(table, 100)) == 30
    assert len(deal(table[:1], 100)) == 1


def test_files_that_differ_in_the_order_of_columns_and_in_nulls_are_scored_together(tmp_path):
    strict = pa.schema([pa.field("x", pa.float64(), nullable=False), pa.field("k", pa.int64())])
    other = pa.schema([pa.field("k", pa.int64()), pa.field("x", pa.float64())])
    pq.write_table(pa.table({"x": [1.0, 2.0], "k": [1, 2]}, schema=strict), tmp_path / "0.parquet")
    pq.write_table(pa.table({"k": [3], "x": [None]}, schema=other), tmp_path / "1.parquet")
    files = read_footers(list_dataset(str(tmp_path)), ["x", "k"])
    (batch,) = rebatch(read(Scan(files, None), row_groups(files), ["x", "k"], 100), lambda: 100)
    assert batch.to_pydict() == {"x": [1.0, 2.0, None], "k": [1, 2, 3]}


def test_columns_are_cut_to_pieces_where_a_row_group_is_not_to_be_in_memory(tmp_path, monkeypatch):
    """A store is made of a folder: its row groups are fetched whole, but for those that are too large."""
    rows = pa.table({"x": list(range(1_000)), "y": [1.0] * 1_000})
    pq.write_table(rows, tmp_path / "0.parquet", row_group_size=100)
    scan = Scan(read_footers(list_dataset(str(tmp_path)), ["x", "y"]), None)
    opened = []
    plain_open = DatasetFiles.open
    monkeypatch.setattr(
        DatasetFiles, "open", lambda self, file, size: opened.append(size) or plain_open(self, file, size)
    )
    monkeypatch.setattr(DatasetFiles, "is_remote", True)

    def numbers():
        batches = list(read(scan, row_groups(scan.files), ["x"], 64))
        return [number for batch in batches for number in batch.column(0).to_pylist()]

    assert numbers() == list(range(1_000))
    monkeypatch.setattr(direct, "_FETCHED_BYTES", 100)
    assert numbers() == list(range(1_000))
    monkeypatch.setattr(DatasetFiles, "is_remote", False)
    assert numbers() == list(range(1_000))
    assert opened == [None, 2**20, 128 * 1024]


def test_files_are_closed_when_nobody_wants_more_rows(tmp_path, monkeypatch):
    pq.write_table(pa.table({"x": list(range(1_000))}), tmp_path / "0.parquet", row_group_size=10)
    scan = Scan(read_footers(list_dataset(str(tmp_path)), ["x"]), None)
    closed = []
    monkeypatch.setattr(OpenedFile, "close", lambda self: closed.append(self))
    monkeypatch.setattr(DatasetFiles, "is_remote", True)
    batches = read(scan, row_groups(scan.files), ["x"], 10)
    next(batches)
    batches.close()
    assert len(closed) == 1


class FirstRow:
    """A condition that the first row meets alone; any look but the first waits until no row is wanted."""

    columns = frozenset({"x"})

    def __init__(self, unwanted):
        self.looked_at, self._unwanted = 0, unwanted

    def mask(self, batch):
        self.looked_at += 1
        if self.looked_at > 1:
            assert self._unwanted.wait(10)
        return pa.array([number == 0 for number in batch.column(0).to_pylist()])


def test_rows_that_are_left_out_keep_nobody_waiting_who_wants_no_more(tmp_path, monkeypatch):
    """A task that fails is told to Spark once its reader has ended."""
    pq.write_table(pa.table({"x": list(range(1_000))}), tmp_path / "0.parquet", row_group_size=10)
    unwanted = threading.Event()
    plain_close = ahead._Line.close
    monkeypatch.setattr(ahead._Line, "close", lambda self: plain_close(self) or unwanted.set())
    monkeypatch.setattr(DatasetFiles, "is_remote", True)
    scan = Scan(read_footers(list_dataset(str(tmp_path)), ["x"]), FirstRow(unwanted))
    batches = read(scan, row_groups(scan.files), ["x"], 10)
    assert next(batches).to_pydict() == {"x": [0]}
    batches.close()
    assert scan.condition.looked_at <= 2
