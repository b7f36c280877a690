"""Where a program of PyTorch runs; what it predicts is tested with PyTorch itself (tests/integration)."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from airflow_hydrogen.contract.errors import EngineError, UnpublishableModelError
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime import devices
from airflow_hydrogen.runtime.models import torch_program
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.rank import foreign

MANIFEST = Manifest(
    framework="torch",
    entry="model.pt2",
    signature=Signature(
        (InputSpec("x", (ColumnSpec("a", "float32"),), "float32", ()),), (OutputSpec("p", "float32", ()),)
    ),
    files=(),
)


class Tensor:
    """Knows where it is."""

    def __init__(self, array, device="cpu"):
        self._array, self.device = array, device

    def to(self, device):
        return Tensor(self._array, device)

    def numpy(self):
        assert self.device == "cpu"
        return self._array


class Program:
    """Doubles its one input, where that is on the device of the program."""

    def __init__(self, device="cpu"):
        self.device = device
        argument = SimpleNamespace(name="x")
        kinds = {"input_specs": "USER_INPUT", "output_specs": "USER_OUTPUT"}
        self.graph_signature = SimpleNamespace(
            **{
                of: [SimpleNamespace(kind=SimpleNamespace(name=kind), arg=argument)]
                for of, kind in kinds.items()
            }
        )
        self.call_spec = SimpleNamespace(
            in_spec=SimpleNamespace(unflatten=lambda leaves: (tuple(leaves), {})),
            out_spec=SimpleNamespace(unflatten=lambda leaves: leaves[0]),
        )

    def module(self):
        def call(x):
            assert x.device == self.device
            return Tensor(x._array * 2, x.device)

        return call


@pytest.fixture
def load(monkeypatch):
    """Loads a program on a worker that holds GPUs; gives its predict function and what PyTorch was told."""

    def run(held, opens):
        told = {}

        def set_interop(threads):
            told["interop"] = threads
            raise RuntimeError("cannot set number of interop threads after parallel work has started")

        torch = SimpleNamespace(
            __version__="2.13.0",
            set_num_threads=lambda threads: told.update(threads=threads),
            set_num_interop_threads=set_interop,
            cuda=SimpleNamespace(is_available=lambda: opens),
            export=SimpleNamespace(load=lambda _file: Program()),
            from_numpy=Tensor,
            inference_mode=nullcontext,
        )
        passes = SimpleNamespace(move_to_device_pass=lambda _program, device: Program(device))
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "torch.export", torch.export)
        monkeypatch.setitem(sys.modules, "torch.export.passes", passes)
        monkeypatch.setattr(devices, "_held", held)
        return torch_program.load("m", Path("model.pt2"), MANIFEST, 3), told

    return run


@pytest.mark.parametrize(("held", "opens"), [(None, True), ((), True), (("1",), True), ((), False)])
def test_it_runs_on_the_gpu_that_its_worker_holds_or_on_the_processors_of_its_task(load, held, opens):
    predict, told = load(held, opens)
    assert predict({"x": np.array([3.0], "float32")})["p"].tolist() == [6.0]
    assert told == {"threads": 3, "interop": 1}


def test_processors_never_take_the_place_of_gpus_in_silence(load):
    with pytest.raises(
        EngineError, match=r"PyTorch 2\.13\.0 cannot open GPU 1: install one that is built for"
    ):
        load(("1",), False)


def test_where_pytorch_is_not_installed_the_extra_is_named(monkeypatch):
    with pytest.raises(EngineError, match="install the extra 'torch' on every executor"):
        torch_program.load("m", Path("model.pt2"), MANIFEST, 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnpublishableModelError, match="torch is not installed .* install the extra 'torch'"):
        foreign.require_installed("m.pt2", "torch")
