"""PyTorch under Horovod: where torch is installed, and Horovod is built for it."""

from __future__ import annotations

import importlib.util

import pytest

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.runtime import HorovodRunner

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
