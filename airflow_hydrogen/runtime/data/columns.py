"""Arrow columns -> numpy arrays, with the checks that a tensor needs. Training and scoring share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_hydrogen.contract.differences import SUPPORTED, hint_for
from airflow_hydrogen.contract.errors import ColumnTypeError, NullValueError, RaggedTensorError

Kind = Literal["number", "boolean", "string"]

# Columns that are copied below each other first, and then turned: measured with 1 to 2,000 columns.
_TURNED = 32
_FEWEST_TURNED = 12


def dtype_of(name: str, type_: pa.DataType) -> tuple[str, bool]:
    """The element type of a column and whether it is a tensor column.

    Args:
        name: the column, for the message.
        type_: its Arrow type: numeric, boolean, string, or a list (fixed or not, nested or not) of those.

    Raises:
        ColumnTypeError: a type that no tensor holds.
    """
    if isinstance(type_, pa.BaseExtensionType):
        return dtype_of(name, type_.storage_type)[0], True
    if pa.types.is_dictionary(type_):
        return dtype_of(name, type_.value_type)
    if pa.types.is_boolean(type_):
        return "bool", False
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return str(np.dtype(type_.to_pandas_dtype())), False
    if _is_string(type_):
        return "string", False
    if _is_list(type_):
        inner, _ = dtype_of(name, type_.value_type)
        if inner != "string":
            return inner, True
    raise ColumnTypeError(name, SUPPORTED, str(type_), hint_for(str(type_)))


def to_numpy(name: str, column: pa.ChunkedArray | pa.Array, width: int | None = None) -> np.ndarray:
    """One column as an array.

    Numbers without nulls are not copied where Arrow's memory can be read in place.

    Args:
        name: the column, for messages.
        column: its values.
        width: for a tensor column, the numbers that every row must hold; None takes the first row's.

    Returns:
        Shape (rows,) for scalars and (rows, width) for tensor columns; strings as objects.

    Raises:
        ColumnTypeError, NullValueError, RaggedTensorError: naming the column.
    """
    dtype, tensor = dtype_of(name, column.type)
    _refuse_nulls(name, column, dtype)
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunk at all, or too large for one
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not tensor:
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return _tensor(name, column, width)


def _tensor(name: str, column: pa.Array, width: int | None) -> np.ndarray:
    rows = len(column)
    if pa.types.is_fixed_size_list(column.type):
        found = column.type.list_size
        flat = column.flatten()
    else:
        lengths = pc.list_value_length(column)
        found = lengths[0].as_py() if rows else (width or 0)
        flat = column.flatten()
        if len(flat) != rows * found or (rows and pc.min(lengths).as_py() != found):
            raise RaggedTensorError(name, width or found, pc.unique(lengths).to_pylist())
    _refuse_nulls(name, flat, str(flat.type))
    if _is_list(flat.type):
        inner = _tensor(name, flat, None)
        matrix = inner.reshape(rows, -1) if rows else inner.reshape(0, width or 0)
    else:
        matrix = flat.to_numpy(zero_copy_only=False).reshape(rows, found)
    if width is not None and matrix.shape[1] != width:
        raise RaggedTensorError(name, width, [matrix.shape[1]])
    return np.asarray(matrix)


def stack(arrays: Sequence[np.ndarray], dtype: str = "float32") -> np.ndarray:
    """Columns side by side in one matrix, conversion included.

    Args:
        arrays: shapes (rows,) or (rows, width).
        dtype: element type of the matrix.

    Returns:
        Shape (rows, sum of widths), row-major.
    """
    widths = [1 if array.ndim == 1 else array.shape[1] for array in arrays]
    if len(arrays) == 1 and arrays[0].ndim == 2 and arrays[0].dtype == dtype:
        return arrays[0]
    matrix: np.ndarray[Any, Any] = np.empty((len(arrays[0]), sum(widths)), dtype=dtype)
    start = 0
    for is_scalar, run in groupby(arrays, key=lambda array: array.ndim == 1):
        for piece in _beside(list(run), dtype) if is_scalar else run:
            matrix[:, start : start + piece.shape[1]] = piece
            start += piece.shape[1]
    return matrix


def _beside(columns: Sequence[np.ndarray], dtype: str) -> Iterator[np.ndarray]:
    """Columns of shape (rows,) as matrices; NumPy copies many that are turned faster than one by one."""
    for first in range(0, len(columns), _TURNED):
        some = columns[first : first + _TURNED]
        if len(some) < _FEWEST_TURNED:
            yield from (column[:, None] for column in some)
            continue
        below = np.empty((len(some), len(some[0])), dtype)
        for row, column in zip(below, some, strict=True):
            row[:] = column
        yield below.T


def _refuse_nulls(name: str, column: pa.Array | pa.ChunkedArray, expected: str) -> None:
    if column.null_count:
        raise NullValueError(name, column.null_count, len(column), expected)


def _is_string(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    )


def _is_list(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    )
