"""Where an ONNX model runs; what it predicts is tested with ONNX Runtime itself (tests/integration)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_hydrogen.contract.errors import EngineError
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime import devices
from airflow_hydrogen.runtime.models import onnx_session

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SIGNATURE = Signature(
    (InputSpec("x", (ColumnSpec("a", "float32"),), "float32", (1,)),), (OutputSpec("p", "float32", ()),)
)


@pytest.fixture
def load(monkeypatch):
    """Loads a model on a worker that holds GPUs, and gives the providers that its session was told."""

    def run(held, installed, opened):
        told = []

        class Session:
            def __init__(self, _file, _options, providers):
                told.extend(providers)

            def get_providers(self):
                return opened

            def get_inputs(self):
                return [SimpleNamespace(name="x")]

            def get_outputs(self):
                return [SimpleNamespace(name="p")]

        runtime = SimpleNamespace(
            SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda *_: None),
            InferenceSession=Session,
            get_available_providers=lambda: installed,
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        monkeypatch.setattr(devices, "_held", held)
        onnx_session.load("m", Path("model.onnx"), SIGNATURE, 1, is_twin=False)
        return told

    return run


@pytest.mark.parametrize("held", [None, ()])
def test_processors_run_it_on_a_worker_without_gpus(load, held):
    assert load(held, [CUDA, CPU], [CPU]) == [CPU]


def test_gpus_run_it_on_a_worker_that_holds_some(load):
    provider, processors = load(("1",), [CUDA, CPU], [CUDA, CPU])
    assert (provider[0], processors) == (CUDA, CPU)


@pytest.mark.parametrize(
    ("installed", "complaint"),
    [
        (
            [CPU],
            "ONNX Runtime has CPUExecutionProvider where tasks with GPUs run: install onnxruntime-gpu in",
        ),
        ([CUDA, CPU], "it cannot open GPU 1: install onnxruntime-gpu"),
    ],
)
def test_processors_never_take_the_place_of_gpus_in_silence(load, installed, complaint):
    with pytest.raises(EngineError, match=complaint):
        load(("1",), installed, [CPU])
