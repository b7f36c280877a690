"""The tensors that a model names, and the columns that fill them, as a user gives these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from airflow_hydrogen.contract.errors import ModelSignatureError
from airflow_hydrogen.contract.publications import GivenColumn
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec

SINGLE_OUTPUT = "prediction"
"""What the output of a model that has no other is called."""

OUTPUT_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "bool", "string")
"""Those of which columns can be made."""

INPUT_DTYPES = (*OUTPUT_DTYPES, "uint8", "uint16", "uint32", "uint64")

Specs = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor -> its dtype and the shape of one row."""


def row_shape(name: str, dimensions: Sequence[int | None] | None) -> tuple[int, ...]:
    """The shape of one row of a tensor.

    Args:
        name: the tensor's, for messages.
        dimensions: all of them; None for one of any size.

    Raises:
        ModelSignatureError: it does not take batches of any size, or another dimension is not known.
    """
    if not dimensions:
        raise ModelSignatureError(
            f"tensor {name!r} has no first dimension for the rows of a batch, or none that the model tells: "
            "export the model with one"
        )
    if dimensions[0] is not None:
        raise ModelSignatureError(
            f"tensor {name!r} has shape {shown(dimensions)}, for batches of {dimensions[0]} alone: export "
            f"the model with a first dimension of any size (PyTorch: dynamic_shapes={{{name!r}: {{0: "
            "torch.export.Dim('batch')}}, or dynamic_axes)"
        )
    sizes = [size for size in dimensions[1:] if size is not None]
    if len(sizes) != len(dimensions) - 1:
        raise ModelSignatureError(
            f"tensor {name!r} has shape {shown(dimensions)}: every dimension but the first must be known"
        )
    return tuple(sizes)


def shown(dimensions: Sequence[int | None]) -> str:
    """A shape for messages: `?` is a dimension of any size."""
    return f"[{', '.join('?' if size is None else str(size) for size in dimensions)}]"


def fill_inputs(specs: Specs, columns: Mapping[str | None, Sequence[GivenColumn]]) -> tuple[InputSpec, ...]:
    """Hold the columns that are given against the inputs of a model.

    Args:
        specs: its inputs.
        columns: input -> its columns; None stands for the one input that there is.

    Raises:
        ModelSignatureError: they do not fit; with what the model takes.
    """
    if None in columns:
        if len(specs) != 1:
            raise ModelSignatureError(
                f"the model has inputs {show(specs)}: give the columns of each, as in "
                f"{{{', '.join(f'{name!r}: ...' for name in specs)}}}"
            )
        columns = {next(iter(specs)): columns[None]}
    missing, strangers = specs.keys() - columns.keys(), columns.keys() - specs.keys()
    if missing or strangers:
        problem = "no columns are given for" if missing else "columns are given for"
        names = ", ".join(sorted(map(repr, missing or strangers)))
        raise ModelSignatureError(f"the model has inputs {show(specs)}, and {problem} {names}")
    inputs = tuple(
        InputSpec(name, _columns_of(name, dtype, shape, columns[name]), dtype, shape)
        for name, (dtype, shape) in specs.items()
    )
    _require_one_kind(inputs)
    return inputs


def _require_one_kind(inputs: Sequence[InputSpec]) -> None:
    """Refuse a column of which two inputs take what no one column is."""
    kinds: dict[str, tuple[str, tuple[bool, int | None]]] = {}
    for spec in inputs:
        for column in spec.columns:
            kind = (column.dtype == "string", column.width)
            other, found = kinds.setdefault(column.name, (spec.name, kind))
            if found != kind:
                raise ModelSignatureError(
                    f"column {column.name!r} is given to inputs {other!r} and {spec.name!r}, and holds "
                    f"{_called(*found)} for the one and {_called(*kind)} for the other"
                )


def _called(is_string: bool, width: int | None) -> str:
    return "strings" if is_string else "numbers" if width is None else f"lists of {width} numbers"


def require_dtypes(specs: Specs) -> None:
    """Refuse inputs of which NumPy has no arrays.

    Raises:
        ModelSignatureError: naming the input.
    """
    for name, (dtype, _shape) in specs.items():
        if dtype not in INPUT_DTYPES:
            raise ModelSignatureError(
                f"input {name!r} is of {dtype}, and columns make tensors of {', '.join(INPUT_DTYPES)} alone: "
                "cast it in the model"
            )


def _columns_of(
    name: str, dtype: str, shape: tuple[int, ...], given: Sequence[GivenColumn]
) -> tuple[ColumnSpec, ...]:
    values = math.prod(shape)
    if dtype == "string" and (values, len(given), given[0].width) != (1, 1, None):
        raise ModelSignatureError(
            f"input {name!r} takes {values} string{'s' if values != 1 else ''} a row, and "
            f"{len(given)} columns are given: one column of strings fills an input of one"
        )
    if len(given) == 1 and given[0].width is None and values != 1:
        given = [GivenColumn(given[0].name, values)]  # a column of lists
    specs = tuple(ColumnSpec(column.name, dtype, column.width) for column in given)
    if (found := sum(spec.values for spec in specs)) != values:
        raise ModelSignatureError(
            f"input {name!r} takes {values} value{'s' if values != 1 else ''} a row (its shape is "
            f"{list(shape)}), and the columns that are given hold {found}: "
            f"{', '.join(repr(spec.name) for spec in specs)}"
        )
    return specs


def choose_outputs(specs: Specs, wanted: Sequence[str] | None) -> tuple[OutputSpec, ...]:
    """The outputs that become columns; the only one that a model has is called `prediction`.

    Args:
        specs: the model's outputs.
        wanted: some of them; None: all.

    Raises:
        ModelSignatureError: the model has not what is wanted, or none can be made of it.
    """
    if strangers := [name for name in wanted or () if name not in specs]:
        raise ModelSignatureError(
            f"the model has outputs {show(specs)}, and outputs names {', '.join(map(repr, strangers))}"
        )
    names = [*specs] if wanted is None else wanted
    for name in names:
        if specs[name][0] not in OUTPUT_DTYPES:
            raise ModelSignatureError(
                f"output {name!r} is of {specs[name][0]}, and columns are made of tensors of "
                f"{', '.join(OUTPUT_DTYPES)} alone: cast it in the model, or name the others in outputs "
                "(skl2onnx: options={'zipmap': False} gives tensors)"
            )
    single = len(specs) == 1
    return tuple(OutputSpec(SINGLE_OUTPUT if single else name, *specs[name]) for name in names)


def show(specs: Specs) -> str:
    """Tensors for messages."""
    return ", ".join(f"{name!r} {dtype}{list(shape)}" for name, (dtype, shape) in specs.items())
