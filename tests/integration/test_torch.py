"""PyTorch: its rows, and training under Horovod, where torch is installed and Horovod is built for it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.contract.errors import InvalidJobError, MissingColumnError
from airflow_hydrogen.runtime import HorovodRunner
from airflow_hydrogen.runtime.data.dataset import DatasetShard

pytestmark = [
    pytest.mark.integration,
    pytest.mark.torch,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: make setup WITH=torch"
    ),
]


def train():
    """Two ranks on other data each; returns rank 0's weights and the largest distance between ranks."""
    import horovod.torch as hvd
    import torch

    hvd.init()
    torch.manual_seed(hvd.rank())
    model = torch.nn.Linear(3, 1)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), named_parameters=model.named_parameters()
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    target = torch.tensor([[1.0], [2.0], [3.0]])
    for step in range(50):
        features = torch.randn(32, 3)
        loss = torch.nn.functional.mse_loss(model(features), features @ target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hydrogen.report({"epoch": step, "loss": loss.item()})
    weights = model.weight.detach()
    spread = (hvd.allreduce(weights, op=hvd.Max) - hvd.allreduce(weights, op=hvd.Min)).abs().max()
    return weights.ravel().tolist(), spread.item(), hvd.size()


SCRIPT = """
import sys
import horovod.torch as hvd
import torch

hvd.init()
total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum)
if hvd.rank() == 0:
    open(sys.argv[1], "w").write(f"{total.item()} {hvd.size()}")
"""


def test_a_torch_main_averages_its_gradients():
    weights, spread, size = HorovodRunner(-2).run(train)
    assert size == 2
    assert spread == 0.0
    assert weights == pytest.approx([1.0, 2.0, 3.0], abs=0.05)


def test_a_torch_main_on_a_barrier_stage(spark):
    _weights, spread, size = HorovodRunner(2).run(train)
    assert (spread, size) == (0.0, 2)


def test_a_torch_script_runs_unchanged(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    HorovodRunner(-2).run(str(script), str(tmp_path / "total"))
    assert (tmp_path / "total").read_text() == "3.0 2"


# --- to_torch ----------------------------------------------------------------------------------------

ROWS, BATCH = 103, 8


@pytest.fixture
def rows(tmp_path):
    """The URI of 103 numbered rows in row groups of 10."""
    numbers = np.arange(ROWS)
    words = [f"w{number}" for number in numbers]
    table = pa.table({"id": numbers, "x": numbers * 0.5, "word": words, "y": numbers % 2})
    pq.write_table(table, tmp_path / "part-0.parquet", row_group_size=10)
    return str(tmp_path)


def load(dataset, **options):
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=None, **options)


def ids(loader):
    return [features.ravel().tolist() for features, _labels in loader]


def test_a_matrix_and_its_label_are_tensors_that_a_loop_may_change(rows):
    import torch

    dataset = DatasetShard(rows).to_torch(ROWS, "y", features=["id", "x"])
    [(features, label)] = dataset
    assert (features.dtype, label.dtype) == (torch.float32, torch.int64)
    assert features.shape == (ROWS, 2)
    assert torch.equal(features[:, 0] / 2, features[:, 1])
    assert torch.equal(label, features[:, 0].long() % 2)
    label.zero_()


def test_named_inputs_keep_their_types_and_strings_are_lists(rows):
    import torch

    dataset = DatasetShard(rows, shuffle=False).to_torch(4, ["y", "id"], layout="columns")
    for features, labels in (next(iter(dataset)), next(iter(load(dataset, num_workers=1)))):
        assert features["word"] == ["w0", "w1", "w2", "w3"]
        assert features["x"].dtype == torch.float64
        assert {name: tensor.tolist() for name, tensor in labels.items()} == {
            "y": [0, 1, 0, 1],
            "id": [0, 1, 2, 3],
        }


def test_batches_without_a_label_are_the_features_alone(rows):
    assert [batch.shape[0] for batch in DatasetShard(rows).to_torch(60, features=["x"])] == [60, 43]


def test_arguments_are_checked_as_those_of_to_tf_are(rows):
    shard = DatasetShard(rows)
    with pytest.raises(MissingColumnError, match="label 'late' not found"):
        shard.to_torch(4, "late")
    with pytest.raises(Exception, match="column 'word': expected a number, found string; .*layout='columns'"):
        shard.to_torch(4, "y")
    with pytest.raises(InvalidJobError, match="batch_size must be at least 1, found 0"):
        shard.to_torch(0, "y")


@pytest.mark.parametrize("shuffle", [True, False])
def test_workers_give_every_row_once_in_the_same_steps_on_every_rank(rows, shuffle):
    seen = {}
    for workers in (0, 1, 2):
        shards = [DatasetShard(rows, rank=rank, size=2, shuffle=shuffle) for rank in range(2)]
        loaders = [load(shard.to_torch(BATCH, "y", features=["id"]), num_workers=workers) for shard in shards]
        seen[workers] = [ids(loader) for loader in loaders]
        steps = [[len(batch) for batch in rank] for rank in seen[workers]]
        assert steps == [[BATCH] * 6 + [4]] * 2
        assert [len(loader) for loader in loaders] == [7, 7]
        assert {row for rank in seen[workers] for batch in rank for row in batch} == set(range(ROWS))
    plain = DatasetShard(rows, shuffle=shuffle, size=2).to_batches(BATCH, ["id"])
    assert [batch.column("id").to_pylist() for batch in plain] == seen[0][0] == seen[1][0]
    if not shuffle:
        assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_follow_set_epoch(rows, persistent):
    def epochs(numbers, workers, **options):
        shard = DatasetShard(rows)
        loader = load(shard.to_torch(BATCH, "y", features=["id"]), num_workers=workers, **options)
        for number in numbers:
            shard.set_epoch(number)
            yield ids(loader)

    first, second, third = epochs((0, 1, 0), 2, persistent_workers=persistent)
    assert first == third != second
    assert sorted(row for batch in second for row in batch) == list(range(ROWS))
    assert [second] == list(epochs([1], 2)), "a resumed run goes on in the same order"
    assert list(epochs((0, 1), 1, persistent_workers=persistent)) == list(epochs((0, 1), 0))


def test_without_workers_each_iteration_is_an_epoch(rows):
    dataset = DatasetShard(rows).to_torch(BATCH, "y", features=["id"])
    assert ids(dataset) != ids(dataset)


def test_workers_that_are_told_no_epoch_say_that_they_repeat_it(rows):
    shard = DatasetShard(rows)
    loader = load(shard.to_torch(BATCH, "y", features=["id"]), num_workers=2)
    ids(loader)
    with pytest.raises(UserWarning, match=r"'train' is read in the order of epoch 0 again: call set_epoch"):
        ids(loader)


def test_workers_may_be_spawned(rows):
    orders = []
    for method in ("fork", "spawn"):
        shard = DatasetShard(rows)
        dataset = shard.to_torch(BATCH, "y", features=["id"])
        shard.set_epoch(3)
        orders.append(ids(load(dataset, num_workers=1, multiprocessing_context=method)))
    assert orders[0] == orders[1]


def test_connections_to_an_object_store_are_not_forked(rows):
    shard = DatasetShard(rows)
    loader = load(shard.to_torch(BATCH, "y", features=["id"]), num_workers=1, multiprocessing_context="fork")
    object.__setattr__(shard.files, "uri", "s3://lake/rows")
    with pytest.raises(InvalidJobError, match="'s3://lake/rows' is on an object store.*'spawn'"):
        next(iter(loader))


def test_an_error_in_the_data_comes_out_of_a_worker_with_its_text(tmp_path):
    pq.write_table(pa.table({"x": [1.0, None], "y": [0, 1]}), tmp_path / "a.parquet")
    dataset = DatasetShard(str(tmp_path)).to_torch(2, "y")
    with pytest.raises(Exception, match="column 'x'"):
        list(load(dataset, num_workers=1))


def test_loaders_work_inside_ranks(rows):
    def main(uri):
        from torch.utils.data import DataLoader

        context = hydrogen.get_context()
        shard = DatasetShard(uri, rank=context.rank, size=context.size)
        dataset = shard.to_torch(8, "y", features=["id"])
        steps = {}
        for method in ("fork", "spawn"):
            loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
            shard.set_epoch(1)
            steps[method] = [features.shape[0] for features, _labels in loader]
        return steps

    steps = HorovodRunner(-2).run(main, uri=rows)
    assert steps == {"fork": [8] * 6 + [4], "spawn": [8] * 6 + [4]}
