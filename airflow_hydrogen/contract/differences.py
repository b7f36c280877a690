"""A source's columns against what a scoring needs of them. Pure.

Airflow asks before it launches a job, where it can see the source's schema without Spark, and Spark's driver
asks again, in the same words: columns are told by name and type, as Spark's SQL spells types.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.errors import (
    ColumnCollisionError,
    ColumnTypeError,
    HydrogenError,
    InvalidJobError,
    MissingColumnError,
    SourceMisfitError,
)
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, Signature

if TYPE_CHECKING:
    from airflow_hydrogen.contract.jobs import InferenceJob

Columns = Sequence[tuple[str, str | None]]
"""Name and type as Spark's SQL spells it, in the source's order; None: a type that nobody knows yet."""

SUPPORTED = "a number, a boolean, a string or a list of numbers"
"""What a tensor can be made of."""

_HINTS = {
    "decimal": "cast it to double",
    "date": "cast it to a number or a string",
    "timestamp": "cast it to a number or a string",
    "struct": "select its fields",
    "map": "select its values",
}
_ELEMENTS = {
    "tinyint": "int8",
    "smallint": "int16",
    "int": "int32",
    "bigint": "int64",
    "float": "float32",
    "double": "float64",
    "boolean": "bool",
    "string": "string",
}


def hint_for(type_name: str) -> str:
    """What to do about a column that no tensor can be made of; "" where nothing is to be said."""
    return next((hint for word, hint in _HINTS.items() if type_name.startswith(word)), "")


def require_fit(signature: Signature, columns: Columns, job: InferenceJob) -> None:
    """Hold the columns that are to be scored against model and job.

    Args:
        signature: the model's.
        columns: what is scored, after `columns=` and `prepare`.
        job: what else is asked of them.

    Raises:
        MissingColumnError, ColumnTypeError, ColumnCollisionError, InvalidJobError: the one difference.
        SourceMisfitError: all of several.
    """
    names = [name for name, _ in columns]
    require_none([*of_features(signature, columns), *of_output(signature, names, job)])


def require_none(found: Iterable[HydrogenError]) -> None:
    """Raise what was found: one difference as itself, several as one error.

    Raises:
        HydrogenError: there is one.
        SourceMisfitError: there are more.
    """
    differences = list(found)
    if len(differences) == 1:
        raise differences[0]
    if differences:
        raise SourceMisfitError(differences)


def of_features(signature: Signature, columns: Columns) -> list[HydrogenError]:
    """Features that are not there, or of types that cannot be turned into the model's."""
    types = dict(columns)
    missing = [column.name for column in signature.columns if column.name not in types]
    found: list[HydrogenError] = [MissingColumnError("feature", missing, types)] if missing else []
    for spec in signature.inputs:
        for column in spec.columns:
            type_name = types.get(column.name)
            if type_name is not None and (problem := _of_type(spec, column, type_name)):
                found.append(problem)
    return found


def of_output(signature: Signature, columns: Sequence[str], job: InferenceJob) -> list[HydrogenError]:
    """What is named by `keep_columns`, `output_columns` or the sink and is not there, or would be twice."""
    found: list[HydrogenError] = list(of_output_names(signature, job))
    if job.keep_columns is not None and (missing := set(job.keep_columns) - set(columns)):
        found.append(MissingColumnError("kept column", missing, columns))
    there = {name.lower() for name in columns}
    if absent := [name for name in job.sink.partition_by if name.lower() not in there]:
        found.append(MissingColumnError("partition column", absent, columns))
    keep, outputs = plan_columns(columns, signature, job)
    written = [*keep, *job.sink.partition_columns, *outputs.values()]
    # Spark tells no column from another by capital letters.
    lower = [name.lower() for name in written]
    if twice := {name for name in written if lower.count(name.lower()) > 1}:
        found.append(ColumnCollisionError(twice))
    return found


def of_output_names(signature: Signature, job: InferenceJob) -> list[InvalidJobError]:
    """Outputs that `output_columns` names and the model does not have."""
    names = [spec.name for spec in signature.outputs]
    unknown = sorted(set(job.output_columns) - set(names))
    if not unknown:
        return []
    return [
        InvalidJobError(
            f"output_columns names {', '.join(map(repr, unknown))}, but the model's outputs are "
            f"{', '.join(map(repr, names))}"
        )
    ]


def plan_columns(
    columns: Iterable[str], signature: Signature, job: InferenceJob
) -> tuple[list[str], dict[str, str]]:
    """The kept columns, and output name -> column name."""
    keep = columns if job.keep_columns is None else job.keep_columns
    outputs = {spec.name: job.output_columns.get(spec.name, spec.name) for spec in signature.outputs}
    # The partition's own columns stand in the folder's name.
    own = {name.lower() for name in job.sink.partition_columns}
    return [name for name in keep if name.lower() not in own], outputs


def element_of(type_name: str) -> tuple[str, bool] | None:
    """What a tensor sees in a column.

    Args:
        type_name: as Spark's SQL spells it, such as "array<float>".

    Returns:
        numpy's name of the element type, or "string", and whether a row holds a list of them; None for a type
        of which no tensor is made.
    """
    if type_name.startswith("array<"):
        inner = element_of(type_name.removeprefix("array<").removesuffix(">"))
        return None if inner is None or inner[0] == "string" else (inner[0], True)
    if type_name.startswith("string collate "):
        return "string", False
    element = _ELEMENTS.get(type_name)
    return None if element is None else (element, False)


def _of_type(spec: InputSpec, column: ColumnSpec, type_name: str) -> ColumnTypeError | None:
    element = element_of(type_name)
    if element is None:
        return ColumnTypeError(column.name, SUPPORTED, type_name, hint_for(type_name))
    dtype, tensor = element
    if tensor == (column.width is not None) and _casts(dtype, spec.dtype):
        return None
    expected = spec.dtype if column.width is None else f"a list of {column.width} {spec.dtype}"
    return ColumnTypeError(column.name, expected, type_name)


def _casts(found: str, wanted: str) -> bool:
    """Whether a column's element type goes into an input's dtype without losing its meaning.

    Whole numbers may go into a narrower dtype: their values are looked at when they are there.
    """
    if "string" in (found, wanted):
        return found == wanted
    if wanted.startswith(("float", "bfloat")):
        return True
    return not found.startswith("float")
