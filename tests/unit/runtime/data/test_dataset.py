from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import EmptyDatasetError
from airflow_hydrogen.runtime.data.dataset import DatasetShard, _batches_of


def _write(folder, row_counts, rows_per_group=1 << 20):
    start = 0
    for index, rows in enumerate(row_counts):
        numbers = np.arange(start, start + rows)
        table = pa.table(
            {"id": numbers, "x": numbers * 0.5, "word": [f"w{n}" for n in numbers], "y": numbers % 2}
        )
        pq.write_table(table, folder / f"part-{index}.parquet", row_group_size=rows_per_group)
        start += rows
    return str(folder)


def _ids(shard, batch_size=16):
    return [batch.column("id").to_pylist() for batch in shard.to_batches(batch_size, ["id"])]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 40))
def test_all_ranks_take_the_same_steps_and_together_read_all(tmp_path_factory, row_counts, size, batch_size):
    uri = _write(tmp_path_factory.mktemp("data"), row_counts, rows_per_group=13)
    shards = [DatasetShard(uri, rank=rank, size=size) for rank in range(size)]
    batches = [_ids(shard, batch_size) for shard in shards]
    assert {len(rank) for rank in batches} == {shards[0].steps(batch_size)}
    assert {sum(map(len, rank)) for rank in batches} == {len(shards[0])}
    assert all(len(batch) == batch_size for rank in batches for batch in rank[:-1])
    assert {row for rank in batches for batch in rank for row in batch} == set(range(sum(row_counts)))


def test_the_order_differs_by_epoch_and_repeats_with_the_epoch(tmp_path):
    uri = _write(tmp_path, [40, 40, 40])
    shard = DatasetShard(uri, rank=1, size=2)
    first, second = _ids(shard), _ids(shard)
    assert first != second
    again = DatasetShard(uri, rank=1, size=2)
    again.set_epoch(1)
    assert _ids(again) == second


def test_rows_are_shuffled_within_a_row_group(tmp_path):
    [batch] = _ids(DatasetShard(_write(tmp_path, [100])), 100)
    assert batch != sorted(batch)
    assert sorted(batch) == list(range(100))


def test_without_shuffle_rows_keep_their_order(tmp_path):
    shard = DatasetShard(_write(tmp_path, [30, 30]), shuffle=False)
    assert [row for batch in _ids(shard) for row in batch] == list(range(60))


def test_only_the_columns_asked_for_are_read(tmp_path):
    shard = DatasetShard(_write(tmp_path, [10]))
    assert next(shard.to_batches(4, ["x", "id"])).schema.names == ["x", "id"]


def test_no_rows_is_an_error_that_names_the_dataset(tmp_path):
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    with pytest.raises(EmptyDatasetError, match="dataset 'train' has no rows"):
        DatasetShard(str(tmp_path))


def test_hidden_files_and_markers_are_left_out(tmp_path):
    uri = _write(tmp_path, [10])
    (tmp_path / "_SUCCESS").write_text("x")
    (tmp_path / ".part-0.parquet.crc").write_text("x")
    assert DatasetShard(uri).total_rows == 10


def test_a_column_may_have_a_dot_in_its_name(tmp_path):
    table = pa.table({"sepal.length": [1.0, 2.0], "sepal": [[3], [4]], "y": [0, 1]})
    pq.write_table(table, tmp_path / "p.parquet")
    (batch,) = DatasetShard(str(tmp_path), shuffle=False).to_batches(2)
    assert batch.to_pydict() == table.to_pydict()


def _taken_in_turn(shard, workers, batch_size=16):
    """The ids that a loader with workers gives: one batch from each in turn."""
    tables = [
        shard.read(["id"], batch_size, epoch=0, worker=worker, workers=workers) for worker in range(workers)
    ]
    batches = [[batch for table in part for batch in _batches_of(table, batch_size)] for part in tables]
    turns = itertools.zip_longest(*batches)
    return [batch.column("id").to_pylist() for turn in turns for batch in turn if batch is not None]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 3, 50])
def test_workers_together_give_the_rows_and_steps_of_one_process(tmp_path, workers, shuffle):
    uri = _write(tmp_path, [100, 3, 150, 50], rows_per_group=40)
    shard = DatasetShard(uri, rank=1, size=2, shuffle=shuffle)
    alone, together = _ids(shard), _taken_in_turn(DatasetShard(uri, rank=1, size=2, shuffle=shuffle), workers)
    assert [len(batch) for batch in together] == [len(batch) for batch in alone]
    assert sorted(row for batch in together for row in batch) == sorted(
        row for batch in alone for row in batch
    )
    assert (together == alone) is (workers == 1 or not shuffle)
