from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.data.shards import assign_shards, rows_per_rank, shuffled_order, split_batches

row_counts = st.lists(st.integers(1, 50), min_size=1, max_size=12)
sizes = st.integers(1, 17)


def _rows(slices):
    return [(part.row_group, row) for part in slices for row in range(part.start, part.stop)]


@given(row_counts, sizes, st.integers(0, 5))
def test_every_rank_reads_the_same_number_of_rows(counts, size, epoch):
    shards = assign_shards(counts, size, shuffled_order(len(counts), 7, epoch))
    assert {len(_rows(shard)) for shard in shards} == {rows_per_rank(sum(counts), size)}


@given(row_counts, sizes)
def test_together_the_ranks_read_every_row(counts, size):
    read = {row for shard in assign_shards(counts, size) for row in _rows(shard)}
    assert read == {(group, row) for group, count in enumerate(counts) for row in range(count)}


@given(row_counts, sizes)
def test_rows_are_read_again_only_to_fill_up_the_last_ranks(counts, size):
    total = sum(counts)
    read = [row for shard in assign_shards(counts, size) for row in _rows(shard)]
    again = len(read) - total
    assert again == rows_per_rank(total, size) * size - total
    assert read[total:] == (read[:total] * (again // total + 1))[:again]


def test_fewer_row_groups_than_ranks_is_split_within_the_row_group():
    shards = assign_shards([10], 4)
    assert [[(s.start, s.stop) for s in shard] for shard in shards] == [
        [(0, 3)],
        [(3, 6)],
        [(6, 9)],
        [(9, 10), (0, 2)],
    ]


def test_fewer_rows_than_ranks_gives_every_rank_one():
    assert [_rows(shard) for shard in assign_shards([1, 1], 5)] == [
        [(0, 0)],
        [(1, 0)],
        [(0, 0)],
        [(1, 0)],
        [(0, 0)],
    ]


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="found 2 ranks and 0 rows"):
        assign_shards([], 2)


@given(st.integers(0, 40), st.integers(0, 3), st.integers(0, 100))
def test_an_order_is_a_permutation_and_the_same_wherever_it_is_made(groups, seed, epoch):
    order = shuffled_order(groups, seed, epoch)
    assert sorted(order) == list(range(groups))
    assert order == shuffled_order(groups, seed, epoch)


def test_the_order_differs_by_epoch_and_by_seed():
    assert shuffled_order(20, 1, 0) != shuffled_order(20, 1, 1)
    assert shuffled_order(20, 1, 0) != shuffled_order(20, 2, 0)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(1, 6),
)
def test_workers_read_each_row_of_a_rank_once_in_as_many_batches(counts, size, batch_size, workers):
    shard = assign_shards(counts, size, shuffled_order(len(counts), 3, 0))[0]
    parts = [_rows(part) for part in split_batches(shard, batch_size, workers)]
    assert [row for part in parts for row in part] == _rows(shard)
    batches = [[part[at : at + batch_size] for at in range(0, len(part), batch_size)] for part in parts]
    taken = [batch for turn in itertools.zip_longest(*batches) for batch in turn if batch is not None]
    assert len(taken) == -(-len(_rows(shard)) // batch_size)
    assert all(len(batch) == batch_size for batch in taken[:-1])
