"""Which rows of a batch cannot be scored, and why: found by columns, for a batch that did not go through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec
from airflow_hydrogen.runtime.data.columns import dtype_of


@dataclass(frozen=True)
class BadRows:
    """Rows of one batch with the same fault.

    Attributes:
        fault: what is wrong, without values, so that faults can be counted.
        rows: their places in the batch.
        reasons: for each of them: the column, what was expected, what was found.
    """

    fault: str
    rows: np.ndarray
    reasons: Sequence[str]


def find_bad_rows(batch: pa.RecordBatch, inputs: Sequence[InputSpec]) -> list[BadRows]:
    """The rows that no input of the model can hold: nulls, lists of another length, numbers out of range.

    Args:
        batch: holds every column of the signature.
        inputs: the signature's inputs.

    Returns:
        Every bad row once, with the first of its faults.
    """
    taken = np.zeros(batch.num_rows, bool)
    found = []
    for spec in inputs:
        for column in spec.columns:
            values = batch.column(batch.schema.get_field_index(column.name))
            for bad in _faults(column, spec.dtype, values):
                fresh = ~taken[bad.rows]
                if fresh.any():
                    reasons = [reason for reason, new in zip(bad.reasons, fresh, strict=True) if new]
                    found.append(BadRows(bad.fault, bad.rows[fresh], reasons))
                    taken[bad.rows] = True
    return found


def _faults(column: ColumnSpec, dtype: str, values: pa.Array) -> Iterator[BadRows]:
    """The faults of one column, one after the other; a row may have several."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    name, rows = repr(column.name), len(values)
    held, tensor = dtype_of(column.name, values.type)
    owners = np.arange(rows)  # the row that each value belongs to
    nulls: list[np.ndarray] = []
    fewest, most = np.full(rows, np.iinfo(np.int64).max), np.zeros(rows, np.int64)
    uneven = np.zeros(rows, bool)
    while True:
        if values.null_count:
            valid = values.is_valid().to_numpy(zero_copy_only=False)
            nulls.append(owners[~valid])
            values, owners = values.drop_null(), owners[valid]
        if not pa.types.is_nested(values.type):
            break
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        fewest[:], most[:] = np.iinfo(np.int64).max, 0
        np.minimum.at(fewest, owners, lengths)
        np.maximum.at(most, owners, lengths)
        uneven |= fewest < most
        values, owners = values.flatten(), np.repeat(owners, lengths)
    if nulls:
        bad = np.unique(np.concatenate(nulls))
        expected = f"a list of {held}" if tensor else held
        yield _same(
            f"column {name}: null", bad, f"column {name}: expected {expected} without nulls, found null"
        )
    if tensor:
        wanted = column.width or 0
        counts = np.bincount(owners, minlength=rows)
        bad = np.flatnonzero((counts != wanted) | uneven)
        yield BadRows(
            f"column {name}: a list of another length than {wanted}",
            bad,
            [
                f"column {name}: expected a list of {wanted} numbers, found {counts[row]}"
                + (" in inner lists of different lengths" if uneven[row] else "")
                for row in bad
            ],
        )
    if dtype != "string" and "float" not in dtype:
        numbers = np.asarray(values.to_numpy(zero_copy_only=False))
        bad, places = np.unique(owners[beyond := values_beyond(dtype, numbers)], return_index=True)
        reasons = [
            f"column {name}: expected whole numbers that {dtype} holds, found {number}"
            for number in numbers[beyond][places].tolist()
        ]
        yield BadRows(f"column {name}: beyond {dtype}", bad, reasons)


def _same(fault: str, rows: np.ndarray, reason: str) -> BadRows:
    return BadRows(fault, rows, [reason] * len(rows))


def values_beyond(dtype: str, values: np.ndarray) -> np.ndarray[Any, Any]:
    """Which values an integer or boolean dtype does not hold, as a mask."""
    wanted = np.dtype(dtype)
    if np.can_cast(values.dtype, wanted, "safe"):
        return np.zeros(len(values), bool)
    lowest, highest = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    if values.dtype.kind == "f":
        # The bounds are powers of two, or one below: as floats they are exact, `highest` itself is not.
        exact = values.astype("float64")
        beyond = (np.floor(exact) != exact) | (exact < float(lowest)) | (exact >= float(highest + 1))
    else:
        held = np.iinfo(values.dtype)
        beyond = (values < max(lowest, held.min)) | (values > min(highest, held.max))
    return np.asarray(beyond)
