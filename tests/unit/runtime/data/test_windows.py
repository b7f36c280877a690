"""Windows: how well they mix what lies sorted, and what they take."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.data import windows
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.files import list_dataset, read_footers
from airflow_hydrogen.runtime.data.footers import ColumnBytes
from airflow_hydrogen.runtime.data.shards import RowSlice
from airflow_hydrogen.runtime.data.windows import WINDOW_BYTES, WINDOW_ROWS, blocks, plan_windows

_BATCH = 100


def spread(means):
    return float(np.std(means))


def full_shuffle(labels):
    shuffled = np.random.default_rng(0).permutation(labels)
    return spread(shuffled[: len(shuffled) // _BATCH * _BATCH].reshape(-1, _BATCH).mean(axis=1))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("files", [20, 60])
def test_batches_of_files_with_one_label_each_are_mixed_like_a_full_shuffle(
    tmp_path, monkeypatch, files, ranks
):
    """A window is smaller than a file here, as 65,536 rows are in the field.

    60 files on one rank are more than are open at once: then the spread is that of some of the files.
    """
    monkeypatch.setattr(windows, "WINDOW_ROWS", 800)
    rows = 60_000 // files
    labels = np.repeat(np.arange(files) % 2, rows).astype("float64")
    for number in range(files):
        table = pa.table({"y": labels[number * rows : (number + 1) * rows]})
        pq.write_table(table, tmp_path / f"{number:02d}.parquet")
    listed = read_footers(list_dataset(str(tmp_path)))
    shards = [DatasetShard(listed, rank=rank, size=ranks) for rank in range(ranks)]
    batches = zip(*(shard.to_batches(_BATCH // ranks) for shard in shards), strict=True)
    means = [np.mean(np.concatenate([part.column("y").to_numpy() for part in batch])) for batch in batches]
    limit = 1.3 if files == 20 else 2.5
    assert not {0.0, 1.0} & set(means)
    assert spread(means) <= limit * full_shuffle(labels)
    assert np.mean(means) == pytest.approx(0.5)


def test_files_of_different_sizes_are_mixed_to_the_end(tmp_path):
    sizes = [50, 100, 400, 1000, 8000, 20_000]
    for number, rows in enumerate(sizes):
        pq.write_table(pa.table({"file": [number] * rows}), tmp_path / f"{number}.parquet")
    batches = [batch.column("file").to_numpy() for batch in DatasetShard(str(tmp_path)).to_batches(1000)]
    assert all((batch == 5).mean() < 0.8 and (batch == 4).any() for batch in batches)


def test_a_window_is_measured_by_what_it_takes_in_memory(tmp_path):
    """A dictionary makes ten million zeros nearly nothing in the file."""
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10_000 * 1000, "float32")), 1000)
    pq.write_table(pa.table({"x": wide}), tmp_path / "sparse.parquet", row_group_size=5000)
    text = pa.array(["a" * 1000] * 40_000)
    pq.write_table(pa.table({"x": text}), tmp_path / "text", row_group_size=20_000)
    for name in ("sparse.parquet", "text"):
        shard = DatasetShard(str(tmp_path / name))
        sizes = [window.nbytes for window in shard._windows(["x"], 0, 100)]
        assert max(sizes) <= WINDOW_BYTES * 1.05
        assert len(sizes) >= 2


def test_small_row_groups_fill_one_window(tmp_path):
    pq.write_table(pa.table({"x": np.arange(20_000)}), tmp_path / "a.parquet", row_group_size=100)
    found = list(DatasetShard(str(tmp_path))._windows(["x"], 0, 100))
    assert [window.num_rows for window in found] == [20_000]


slices = st.lists(st.builds(RowSlice, st.integers(0, 9), st.just(0), st.integers(1, 9)), max_size=80)


@given(slices, st.integers(1, 40))
def test_blocks_hold_all_slices_in_order_and_are_of_about_one_size(found, groups):
    cut = blocks(found, groups)
    assert [part for block in cut for part in block] == found
    sizes = [len(block) for block in cut]
    assert not sizes or (max(sizes) <= groups and max(sizes) - min(sizes) <= 1)


columns = st.lists(st.builds(ColumnBytes, st.floats(0, 1e6), st.floats(0, 1e7)), min_size=1, max_size=50)


@given(columns, st.floats(1, 1e8), st.integers(1, 100_000))
def test_a_plan_is_never_beyond_memory(found, rows_per_group, batch_size):
    plan = plan_windows(found, rows_per_group, batch_size)
    row_bytes = sum(size.decoded for size in found)
    assert 1 <= plan.rows <= max(batch_size, WINDOW_ROWS)
    assert plan.rows <= batch_size or plan.rows * row_bytes <= WINDOW_BYTES
    assert 1 <= plan.groups <= 32
    held = plan.groups * sum(min(size.stored * rows_per_group, 2**21) + plan.buffer_bytes for size in found)
    assert plan.groups == 1 or held <= 128 * 2**20
