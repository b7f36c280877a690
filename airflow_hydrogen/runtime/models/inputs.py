"""Rows of columns -> the arrays that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from airflow_hydrogen.contract.errors import RaggedTensorError, ValueRangeError
from airflow_hydrogen.contract.signatures import InputSpec
from airflow_hydrogen.runtime.data.columns import stack, to_numpy


def model_inputs(batch: pa.RecordBatch, inputs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """The arrays of each input: one copy from the columns of a batch.

    Args:
        batch: holds every column of the signature.
        inputs: the signature's inputs.

    Returns:
        Input name -> array of shape (rows, *shape) in the input's dtype; strings as objects.

    Raises:
        NullValueError, RaggedTensorError, ColumnTypeError, ValueRangeError: naming the column.
    """
    arrays = {}
    for spec in inputs:
        columns = [
            to_numpy(column.name, batch.column(batch.schema.get_field_index(column.name)), column.width)
            for column in spec.columns
        ]
        if spec.dtype == "string":
            arrays[spec.name] = columns[0].reshape(-1, *spec.shape)
            continue
        if "float" not in spec.dtype:
            for column, values in zip(spec.columns, columns, strict=True):
                if (lost := value_beyond(spec.dtype, values)) is not None:
                    raise ValueRangeError(column.name, spec.dtype, lost)
        matrix = columns[0] if len(columns) == 1 and not spec.shape else stack(columns, spec.dtype)
        if spec.shape and matrix.shape[1] != int(np.prod(spec.shape)):
            raise RaggedTensorError(spec.columns[0].name, int(np.prod(spec.shape)), [matrix.shape[1]])
        arrays[spec.name] = np.ascontiguousarray(matrix.reshape(-1, *spec.shape), dtype=spec.dtype)
    return arrays


def value_beyond(dtype: str, values: np.ndarray) -> Any:
    """A value that an integer or boolean dtype does not hold; None where it holds all."""
    wanted = np.dtype(dtype)
    if not values.size or np.can_cast(values.dtype, wanted, "safe"):
        return None
    if values.dtype.kind == "f" and not (whole := np.equal(np.floor(values), values)).all():  # NaN too
        return values[~whole][0]
    lowest, highest = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    # Python's own numbers: NumPy would compare uint64 with int64 as floats.
    smallest, largest = np.asarray(values.min()).item(), np.asarray(values.max()).item()
    return smallest if smallest < lowest else largest if largest > highest else None
