"""What a model takes and gives, in columns: the signature in a model's `manifest.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
"""Of the manifest."""


@dataclass(frozen=True)
class ColumnSpec:
    """What a column holds, as tensors see it.

    Attributes:
        name: the column's name.
        dtype: numpy's name of the element type, or "string".
        width: numbers in a row's list; None for a scalar column.
    """

    name: str
    dtype: str
    width: int | None = None

    @property
    def values(self) -> int:
        """Places that the column takes in a matrix."""
        return 1 if self.width is None else self.width


@dataclass(frozen=True)
class InputSpec:
    """One input tensor of the model and the columns that fill it, in order.

    Attributes:
        name: the input's name in the model.
        columns: what fills it: several columns side by side in a matrix, or one column.
        dtype: numpy's name of the element type, or "string".
        shape: of one row: () for a scalar, (32,) for a vector of 32.
    """

    name: str
    columns: tuple[ColumnSpec, ...]
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OutputSpec:
    """One output tensor: `shape` is that of one row, () or (1,) for a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]

    @property
    def columns(self) -> list[ColumnSpec]:
        """Every column that the model reads, once, in the order of the inputs."""
        found = {column.name: column for spec in self.inputs for column in spec.columns}
        return list(found.values())

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Signature:
        """Read the JSON form."""
        return cls(
            inputs=tuple(
                InputSpec(
                    name=spec["name"],
                    columns=tuple(ColumnSpec(**column) for column in spec["columns"]),
                    dtype=spec["dtype"],
                    shape=tuple(spec["shape"]),
                )
                for spec in document["inputs"]
            ),
            outputs=tuple(
                OutputSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in document["outputs"]
            ),
        )
