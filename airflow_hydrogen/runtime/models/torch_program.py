"""A model of PyTorch, as a program of torch.export: what it takes and gives, and its predict function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airflow_hydrogen.contract.errors import EngineError, ModelSignatureError
from airflow_hydrogen.runtime import devices
from airflow_hydrogen.runtime.models import matching
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.matching import Specs

_CPU, _GPU = "cpu", "cuda:0"
# What operations call the argument that says whether they are trained: dropout, batch_norm, lstm.
_TRAINING = ("train", "training")
_ENDLESS = 2**31  # rows of a batch; versions of PyTorch differ in how they write that there is no limit


def read(file: Path) -> Any:
    """The program of a file.

    Raises:
        ModelSignatureError: it holds none that the PyTorch here can read.
    """
    import torch

    _leave_triton_out()
    try:
        return torch.export.load(str(file))
    except (MemoryError, OSError):
        raise  # of this machine, and not of the file
    except Exception as error:  # of zip, JSON and PyTorch itself
        raise ModelSignatureError(
            f"PyTorch {torch.__version__} finds no program of torch.export in it, as torch.export.save("
            "torch.export.export(model.eval(), ...), 'model.pt2') of this or of an older version writes it "
            f"({type(error).__name__}: {error})"
        ) from error


def _leave_triton_out() -> None:
    """Have PyTorch do without Triton, which compiles and does not score, where TensorFlow is imported.

    Both bring an LLVM, and Triton's ends the process when it is loaded after TensorFlow's.
    """
    if "tensorflow" in sys.modules:
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]


def tensors(file: Path) -> tuple[Specs, Specs]:
    """The inputs and outputs of a program that can be scored with.

    Raises:
        ModelSignatureError: it takes what no columns are, or what it gives depends on more than its rows.
    """
    program = read(file)
    _require_processors(program)
    _require_evaluation(program)
    known = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for argument in _arguments(program):
        if not _is_constant(argument):
            inputs[argument.name] = _input(program, argument.name, known[argument.name])
    outputs = {name: _output(name, value, known) for name, value in _named(_structure(program)).items()}
    _require_unchanging(program)
    return inputs, outputs


def load(
    uri: str, file: Path, manifest: Manifest, threads: int
) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
    """The predict function of a program.

    Args:
        uri: the model's, for messages.
        file: the program's.
        manifest: the model's.
        threads: of this process.

    Raises:
        EngineError: PyTorch is not installed here, does not read the program, or has not the GPU that this
            worker holds.
        ModelSignatureError: the program gives other outputs than the signature says.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise EngineError(
            uri,
            "torch",
            "torch is not installed where it is scored: install the extra 'torch' on every executor",
        ) from None
    _limit_threads(torch, threads)
    device = _device(uri, torch)
    try:
        program = read(file)
    except ModelSignatureError as error:
        raise EngineError(
            uri,
            "torch",
            f"{error}. It was published with PyTorch {manifest.versions.get('torch', 'of another version')}: "
            "install one as new on every executor",
        ) from error
    arguments, take = _arguments(program), program.call_spec.in_spec.unflatten
    names = [spec.name for spec in manifest.signature.outputs]
    given = [*_named(_structure(program))]
    is_renamed = len(given) == len(names) == 1  # when it was published
    if not is_renamed and (missing := [name for name in names if name not in given]):
        raise ModelSignatureError(f"model {uri!r}: its program gives {given}, and not {missing}")
    if device != _CPU:
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module()

    def tensor(array: np.ndarray) -> Any:
        # What Arrow has cannot be written, and PyTorch takes no other arrays.
        return torch.from_numpy(np.require(array, requirements="W")).to(device)

    def predict(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        with torch.inference_mode():
            leaves = [
                argument.value if _is_constant(argument) else tensor(arrays[argument.name])
                for argument in arguments
            ]
            positional, named = take(leaves)
            outputs = _named(module(*positional, **named))
        if is_renamed:
            outputs = dict(zip(names, outputs.values(), strict=True))
        return {name: outputs[name].to(_CPU).numpy() for name in names}

    return predict


def _limit_threads(torch: Any, threads: int) -> None:
    """Give PyTorch's pools the task's cores and no more."""
    torch.set_num_threads(threads)
    try:
        torch.set_num_interop_threads(1)
    except RuntimeError:
        return  # a second model in this worker: it can be said once, and the first one has said the same


def _device(uri: str, torch: Any) -> str:
    """Where the model runs: on the GPU that this worker holds, or on processors."""
    if not devices.held():
        return _CPU
    if not torch.cuda.is_available():  # it would go on without, and say nothing
        raise EngineError(
            uri,
            "torch",
            f"PyTorch {torch.__version__} cannot open GPU {', '.join(devices.held())}: install one that is "
            "built for CUDA on every executor, or leave gpus_per_task out",
        )
    return _GPU


# --- what a program takes --------------------------------------------------------------------------------


def _arguments(program: Any) -> Sequence[Any]:
    """What fills the places of a call, in their order: tensors by their names, and constants."""
    return [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]


def _is_constant(argument: Any) -> bool:
    """Whether it had a value when the program was made, and takes no other."""
    return hasattr(argument, "value")


def _input(program: Any, name: str, value: Any) -> tuple[str, tuple[int, ...]]:
    if not hasattr(value, "dtype"):
        raise ModelSignatureError(
            f"it takes {name!r}, which is no tensor but {type(value).__name__}: give it a value when the "
            "model is exported"
        )
    dtype = _dtype(value)
    if dtype not in matching.INPUT_DTYPES:
        return dtype, ()  # which is refused with the others of these
    _require_any_number_of_rows(program, name, value.shape)
    return dtype, matching.row_shape(name, [size if isinstance(size, int) else None for size in value.shape])


def _require_any_number_of_rows(program: Any, name: str, shape: Sequence[Any]) -> None:
    """Refuse a first dimension of many sizes, but not of all."""
    if not shape or isinstance(shape[0], int):
        return
    rows = str(shape[0])
    limits = {str(size): limits for size, limits in program.range_constraints.items()}.get(rows)
    if limits is None or not rows.isidentifier():  # twice any number, say
        problem = f"of {rows} rows alone"
    elif str(limits.upper).isdigit() and int(limits.upper) < _ENDLESS:
        problem = f"of {limits.upper} rows at most"
    elif str(limits.lower).isdigit() and int(limits.lower) > 2:  # it says 2 of what takes one row as well
        problem = f"of {limits.lower} rows at least"
    else:
        return
    raise ModelSignatureError(
        f"tensor {name!r} is for batches {problem}: export the model with "
        f"dynamic_shapes={{{name!r}: {{0: torch.export.Dim('batch')}}}}, without a least or a largest size"
    )


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


# --- what it gives ---------------------------------------------------------------------------------------


def _structure(program: Any) -> Any:
    """What a call gives, with what the program says of each tensor in its place."""
    specs = program.graph_signature.output_specs
    return program.call_spec.out_spec.unflatten(
        [spec.arg for spec in specs if spec.kind.name == "USER_OUTPUT"]
    )


def _named(given: Any) -> dict[str, Any]:
    """What a call gives, by names: the keys of a mapping, the fields of a named tuple, or numbers."""
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    if isinstance(given, (list, tuple)):
        names = getattr(given, "_fields", None) or [f"output_{number}" for number in range(len(given))]
        return dict(zip(names, given, strict=True))
    return {matching.SINGLE_OUTPUT: given}


def _output(name: str, argument: Any, known: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Its dtype; shapes of rows show when the model answers. Of what is no tensor Python's word for it."""
    if isinstance(argument, (Mapping, list, tuple)):
        raise ModelSignatureError(
            f"its output {name!r} holds several: let forward give tensors, alone or in one dict or tuple"
        )
    value = argument.value if _is_constant(argument) else known[argument.name]
    return (_dtype(value) if hasattr(value, "dtype") else type(value).__name__), ()


# --- what no scorer can use ------------------------------------------------------------------------------


def _require_evaluation(program: Any) -> None:
    """Refuse what was exported in training mode: dropout gives other numbers each time."""
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    for node in (node for graph in graphs for node in graph.nodes):
        if (schema := getattr(node.target, "_schema", None)) is None:
            continue  # no operation
        names = [argument.name for argument in schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if any(given.get(name) is True for name in _TRAINING):
            raise ModelSignatureError(
                f"its {schema.name.rpartition('::')[2]} was exported in training mode: call model.eval() "
                "first (a function like torch.nn.functional.dropout takes training=self.training)"
            )


def _require_unchanging(program: Any) -> None:
    """Refuse what changes itself, so that the next batch is scored by another model, or its rows."""
    signature = program.run_decompositions({}).graph_signature
    if changed := sorted(set(signature.buffers_to_mutate.values())):
        raise ModelSignatureError(
            f"it writes into its buffers {', '.join(map(repr, changed))} whenever it is called, so that "
            "scores would depend on the batches before"
        )
    if changed := sorted(set(signature.user_inputs_to_mutate.values())):
        raise ModelSignatureError(
            f"it writes into its inputs {', '.join(map(repr, changed))}: let forward begin with a copy of "
            "each, as in x = x.clone()"
        )


def _require_processors(program: Any) -> None:
    values = [node.meta.get("val") for node in program.graph.nodes]
    found = {value.device.type for value in values if hasattr(value, "device")}
    if others := sorted(found - {_CPU}):
        raise ModelSignatureError(
            f"it was exported on {', '.join(others)}: export model.cpu(). Scoring moves it to the GPU "
            "of its task"
        )
