"""What an ONNX file says of itself: inputs, outputs, and files beside it that hold its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from airflow_hydrogen.contract.errors import ModelSignatureError

_DTYPES = {"float": "float32", "double": "float64"}
"""ONNX's names that are not NumPy's."""


@dataclass(frozen=True)
class Tensor:
    """An input or output as the file declares it.

    Attributes:
        name: its name.
        dtype: NumPy's name of its element type, or "string"; of what is no tensor ONNX's word for it.
        dimensions: None for one of any size; None altogether where the file does not say.
    """

    name: str
    dtype: str
    dimensions: tuple[int | None, ...] | None


def read(file: Path) -> Any:
    """The model of a file, without weights that lie in other files.

    Raises:
        ModelSignatureError: it is no ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError:
        model = None
    if model is None or not model.graph.node:
        raise ModelSignatureError("it is no ONNX file, or not the whole of one")
    return model


def external_files(model: Any) -> list[str]:
    """The files beside an ONNX file that hold weights of it, as paths below its folder.

    Raises:
        ModelSignatureError: one that is not below its folder.
    """
    found: dict[str, None] = {}
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                found[_inside(entry.value)] = None
    return sorted(found)


def inputs_of(model: Any) -> list[Tensor]:
    """The inputs, without those that have a value in the file."""
    known = {tensor.name for tensor in model.graph.initializer}
    return [_tensor(item) for item in model.graph.input if item.name not in known]


def outputs_of(model: Any) -> list[Tensor]:
    """The outputs."""
    return [_tensor(item) for item in model.graph.output]


def _tensor(item: Any) -> Tensor:
    from onnx import TensorProto

    kind = str(item.type.WhichOneof("value"))
    if kind != "tensor_type":
        return Tensor(item.name, kind.removesuffix("_type"), None)
    dtype = TensorProto.DataType.Name(item.type.tensor_type.elem_type).lower()
    dimensions = None
    if item.type.tensor_type.HasField("shape"):
        # One of any size has a name, or nothing, or, of some exporters, no number that a size could have.
        dimensions = tuple(
            size.dim_value if size.dim_value > 0 else None for size in item.type.tensor_type.shape.dim
        )
    return Tensor(item.name, _DTYPES.get(dtype, dtype), dimensions)


def _inside(location: str) -> str:
    path = PurePosixPath(location)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ModelSignatureError(
            f"its weights lie at {location!r}, which is not below the folder of the ONNX file: save it again "
            "with onnx.save_model(..., location=NAME)"
        )
    return path.as_posix()


def _tensors(model: Any) -> Iterator[Any]:
    """Every constant of a model: of its graph, of those within, and of its functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            yield from _of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _of_graph(graph)
