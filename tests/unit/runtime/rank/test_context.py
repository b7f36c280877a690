"""`report`: what becomes a number of the history. `get_dataset_shard`: which shard it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.signatures import ColumnSpec
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.encoding import FeatureLayout
from airflow_hydrogen.runtime.rank import context as contexts
from airflow_hydrogen.runtime.rank.context import TrainContext, dump_history, get_dataset_shard, report
from airflow_hydrogen.runtime.rank.publishing import _layout


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> TrainContext:
    context = TrainContext(rank=0, size=1)
    monkeypatch.setattr(contexts, "_current", context)
    return context


def test_numbers_of_a_vector_get_names_of_their_own(context: TrainContext) -> None:
    report({"epoch": 3, "loss": np.float32(0.5), "f1_score": np.array([0.25, 1.0], "float32")})
    assert context.history == [{"epoch": 3, "loss": 0.5, "f1_score_0": 0.25, "f1_score_1": 1.0}]
    assert type(context.history[0]["epoch"]) is int
    assert json.loads(dump_history(context.history)) == context.history[0]


def test_numbers_of_a_matrix_are_named_by_row_and_column(context: TrainContext) -> None:
    report({"confusion": [[1, 2], [3, 4]]})
    (line,) = context.history
    assert line == {"confusion_0_0": 1, "confusion_0_1": 2, "confusion_1_0": 3, "confusion_1_1": 4}


def test_vector_of_one_number_keeps_its_name(context: TrainContext) -> None:
    report({"f1_score": np.array([0.5])})
    assert context.history == [{"f1_score": 0.5}]


def test_numbers_that_json_does_not_have_become_null(context: TrainContext) -> None:
    report({"f1_score": np.array([np.nan, 0.5])})
    assert json.loads(dump_history(context.history)) == {"f1_score_0": None, "f1_score_1": 0.5}


@pytest.mark.parametrize(
    "value", ["high", None, {}, ["a", "b"], [None, 1.0], [[1], [2, 3]], np.array([1j, 2])]
)
def test_what_is_no_number_is_refused(context: TrainContext, value: object) -> None:
    with pytest.raises(InvalidJobError, match="'loss' must be a number or an array of numbers, found"):
        report({"loss": value})
    assert context.history == []


def test_two_numbers_of_one_name_are_refused(context: TrainContext) -> None:
    with pytest.raises(InvalidJobError, match="two numbers 'f1_1': rename one of the metrics"):
        report({"f1_1": 0.5, "f1": [0.1, 0.2]})


@pytest.fixture
def rows(context: TrainContext, tmp_path: Path) -> TrainContext:
    """A job whose datasets are three files of 40 numbered rows each."""
    for file in range(3):
        table = pa.table({"id": np.arange(40) + 40 * file, "x": np.zeros(40)})
        pq.write_table(table, tmp_path / f"{file}.parquet")
    context.datasets = {"train": str(tmp_path), "validation": str(tmp_path)}
    return context


def _ids(shard: DatasetShard) -> list[int]:
    return [row for batch in shard.to_batches(16, ["id"]) for row in batch.column("id").to_pylist()]


def test_the_same_arguments_give_the_same_shard_which_counts_its_epochs(rows: TrainContext) -> None:
    shard = get_dataset_shard("train", seed=7)
    first = _ids(shard)
    assert get_dataset_shard("train", seed=7) is shard
    assert get_dataset_shard() is get_dataset_shard("train", seed=0, shuffle=True)
    assert _ids(get_dataset_shard("train", seed=7)) != first
    shard.set_epoch(0)
    assert _ids(shard) == first


def test_another_seed_is_another_order_of_the_same_rows(rows: TrainContext) -> None:
    orders = [_ids(get_dataset_shard("train", seed=seed)) for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(120))


def test_unshuffled_rows_beside_shuffled_ones_keep_the_order_of_the_files(rows: TrainContext) -> None:
    shuffled = get_dataset_shard("train")
    first, second = _ids(shuffled), _ids(get_dataset_shard("train", shuffle=False))
    assert second == list(range(120)) != first
    assert len(rows.shards) == 2  # the epoch that callbacks set reaches both
    assert {shard.name for shard in rows.shards.values()} == {"train"}


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None])
def test_a_seed_that_is_no_whole_number_is_refused(rows: TrainContext, seed: Any) -> None:
    with pytest.raises(InvalidJobError, match=f"seed must be a whole number of 0 or more, found {seed!r}"):
        get_dataset_shard("train", seed=seed)
    assert not rows.shards


def test_the_signature_is_that_of_the_training_rows_as_they_were_asked_for_last(rows: TrainContext) -> None:
    def read(column: str, name: str = "train", **order: Any) -> None:
        get_dataset_shard(name, **order).layout = FeatureLayout("matrix", (ColumnSpec(column, "float64"),))

    def column() -> str:
        layout = _layout(rows)
        assert layout is not None
        return layout.features[0].name

    read("v", "validation")
    assert column() == "v"
    read("a")
    read("b", shuffle=False)
    assert column() == "b"
    read("c")
    assert column() == "c"
