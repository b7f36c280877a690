"""A model in ONNX Runtime, which imports no framework."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airflow_hydrogen.contract.errors import EngineError, ModelSignatureError
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.runtime import devices
from airflow_hydrogen.runtime.models import engines

_FATAL_ALONE = 4  # errors are raised as well
# Where twins are compared with their models: a GPU adds in another precision.
_PROVIDERS = ("CPUExecutionProvider",)
_CUDA = "CUDAExecutionProvider"
# Other workers may have a part of the GPU: memory is taken as it is needed, and not twice as much each time.
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested"}
_NO_GPU = (
    "install onnxruntime-gpu in place of onnxruntime, and the CUDA that it needs, on every executor; or set "
    "engine to the model's own framework, or leave gpus_per_task out"
)
_WEIGHTS = ".weights"
_PACKED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
_PACKING = {
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}


def twin_input(number: int) -> str:
    """The name in a twin of a model's input, whose own name ONNX need not allow."""
    return f"input_{number:04d}"


def twin_output(number: int) -> str:
    """The name in a twin of a model's output."""
    return f"output_{number:04d}"


def load(
    uri: str,
    file: Path,
    signature: Signature,
    threads: int,
    *,
    is_twin: bool,
    is_packed: bool = False,
    packed: Path | None = None,
) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
    """The predict function of an ONNX file.

    Args:
        uri: the model's, for messages.
        file: the ONNX file.
        signature: the model's.
        threads: of this process.
        is_twin: the file's inputs and outputs have names of ours, in the order of the signature.
        is_packed: the file was written as `packed`.
        packed: where to write the model as it is in memory: optimized for this machine, with the weights, and
            what kernels make of them, in a file beside it that sessions map; None: nowhere.

    Raises:
        EngineError: ONNX Runtime is not installed here, or does not run on the GPUs of this worker.
        ModelSignatureError: the file gives other outputs than the signature says.
    """
    os.environ.setdefault(*engines.NO_TELEMETRY)
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise EngineError(
            uri,
            "onnx",
            "onnxruntime is not installed where it is scored: install the extra 'onnx' on every executor"
            + (", or set engine to the model's own framework" if is_twin else ""),
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The cores are other workers' as well: threads that wait have to sleep.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ALONE
    if is_packed:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if packed is not None:
        options.optimized_model_filepath = str(packed)
        for name, value in _PACKING.items():
            options.add_session_config_entry(name, value)
        options.add_session_config_entry(_PACKED_WEIGHTS, f"{packed.name}{_WEIGHTS}")
    session = onnxruntime.InferenceSession(str(file), options, providers=_providers(uri, onnxruntime))
    if devices.held() and _CUDA not in session.get_providers():  # it goes on without, and says nothing
        raise EngineError(uri, "onnx", f"it cannot open GPU {', '.join(devices.held())}: {_NO_GPU}")

    inputs = {
        spec.name: twin_input(number) if is_twin else spec.name
        for number, spec in enumerate(signature.inputs)
    }
    outputs = {
        spec.name: twin_output(number) if is_twin else spec.name
        for number, spec in enumerate(signature.outputs)
    }
    given = [item.name for item in session.get_outputs()]
    if not is_twin and len(given) == len(outputs) == 1:  # it was renamed when it was published
        outputs = dict.fromkeys(outputs, given[0])
    if missing := [name for name in outputs.values() if name not in given]:
        raise ModelSignatureError(f"model {uri!r}: its ONNX file gives {given}, and not {missing}")
    taken = {item.name for item in session.get_inputs()}  # without those that the model does not look at

    def predict(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        feed = {inputs[name]: array for name, array in arrays.items() if inputs[name] in taken}
        return dict(zip(outputs, session.run(list(outputs.values()), feed), strict=True))

    return predict


def _providers(uri: str, onnxruntime: Any) -> Sequence[str | tuple[str, dict[str, str]]]:
    """What runs the model: the GPUs that this worker holds, or processors."""
    if not devices.held():
        return _PROVIDERS
    found = onnxruntime.get_available_providers()
    if _CUDA not in found:
        raise EngineError(
            uri, "onnx", f"ONNX Runtime has {', '.join(found)} where tasks with GPUs run: {_NO_GPU}"
        )
    return [(_CUDA, _CUDA_OPTIONS), *_PROVIDERS]
