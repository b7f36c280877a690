"""A source's columns against a model: all differences at once, each in a sentence of its own."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from airflow_hydrogen.contract import differences
from airflow_hydrogen.contract.errors import (
    ColumnCollisionError,
    ColumnTypeError,
    InvalidJobError,
    MissingColumnError,
    SourceMisfitError,
)
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature

SIGNATURE = Signature(
    inputs=(
        InputSpec("x", (ColumnSpec("a", "float32"), ColumnSpec("n", "int64")), "float32", (2,)),
        InputSpec("word", (ColumnSpec("word", "string"),), "string", ()),
        InputSpec("image", (ColumnSpec("image", "float32", 4),), "float32", (4,)),
        InputSpec("code", (ColumnSpec("code", "int32"),), "int32", ()),
    ),
    outputs=(OutputSpec("p", "float32", (1,)),),
)
FITTING = [("a", "double"), ("n", "bigint"), ("word", "string"), ("image", "array<float>"), ("code", "int")]


def job(**changes: Any) -> InferenceJob:
    fields = {"model_uri": "/m", "source": Source.parquet("/s"), "sink": Sink.parquet("/o")}
    return InferenceJob(**{**fields, "report_uri": "/r", **changes})


def with_type(name: str, type_: str | None) -> list[tuple[str, str | None]]:
    return [(other, type_ if other == name else found) for other, found in FITTING]


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        *(("a", type_) for type_ in ("tinyint", "smallint", "int", "bigint", "float", "double", "boolean")),
        ("word", "string collate UTF8_LCASE"),
        *(("image", type_) for type_ in ("array<double>", "array<array<int>>", "array<boolean>")),
        *(("code", type_) for type_ in ("bigint", "tinyint", "boolean")),
        *((name, None) for name, _ in FITTING),
    ],
)
def test_types_that_can_be_turned_into_the_models_fit(name: str, type_: str | None) -> None:
    differences.require_fit(SIGNATURE, with_type(name, type_), job())


@pytest.mark.parametrize(
    ("name", "type_", "message"),
    [
        ("a", "string", "column 'a': expected float32, found string"),
        ("a", "array<float>", "column 'a': expected float32, found array<float>"),
        ("a", "decimal(10,2)", "column 'a': expected a number, .*, found decimal.10,2.; cast it to double"),
        ("a", "date", "column 'a': expected a number, .*, found date; cast it to a number or a string"),
        ("a", "array<struct<x:int>>", "column 'a': expected a number, .* found array<struct<x:int>>$"),
        ("word", "bigint", "column 'word': expected string, found bigint"),
        ("image", "float", "column 'image': expected a list of 4 float32, found float"),
        ("image", "array<string>", "column 'image': expected a number, .*, found array<string>"),
        ("code", "double", "column 'code': expected int32, found double"),
    ],
)
def test_other_types_are_refused_by_name(name: str, type_: str, message: str) -> None:
    with pytest.raises(ColumnTypeError, match=f"^{message}"):
        differences.require_fit(SIGNATURE, with_type(name, type_), job())


def test_all_differences_are_told_at_once() -> None:
    columns = [("A", "double"), ("n", "string"), ("word", "string"), ("image", "array<float>"), ("p", "int")]
    with pytest.raises(SourceMisfitError) as caught:
        differences.require_fit(
            SIGNATURE, columns, job(keep_columns=["p", "flight"], output_columns={"q": "z"})
        )
    assert str(caught.value) == (
        "5 points in which source and job do not fit:\n"
        "  - feature 'a', 'code' not found; the columns are 'A', 'n', 'word', 'image', 'p'; is it 'A' for "
        "'a'?\n"
        "  - column 'n': expected float32, found string\n"
        "  - output_columns names 'q', but the model's outputs are 'p'\n"
        "  - kept column 'flight' not found; the columns are 'A', 'n', 'word', 'image', 'p'\n"
        "  - output column 'p' is already a column of the source; rename it with output_columns, or leave it "
        "out of keep_columns"
    )
    kinds = [MissingColumnError, ColumnTypeError, InvalidJobError, MissingColumnError, ColumnCollisionError]
    again = pickle.loads(pickle.dumps(caught.value))
    assert [type(error) for error in again.differences] == kinds
    assert not again.retryable


def test_a_column_that_is_there_twice_collides_with_itself() -> None:
    with pytest.raises(ColumnCollisionError, match="'a' is already a column"):
        differences.require_fit(SIGNATURE, [*FITTING, ("a", "double")], job())


def test_columns_that_spark_cannot_tell_apart_collide() -> None:
    with pytest.raises(ColumnCollisionError, match="'A'.*'a'"):
        differences.require_fit(SIGNATURE, FITTING, job(output_columns={"p": "A"}))
    partitioned = Sink.parquet("/o", partition={"ds": "1"})
    differences.require_fit(SIGNATURE, [*FITTING, ("DS", "date")], job(sink=partitioned))


def test_the_partitions_own_column_is_written_once() -> None:
    sink = Sink.parquet("/o", partition={"ds": "1"})
    columns = [*FITTING, ("ds", "date")]
    differences.require_fit(SIGNATURE, columns, job(sink=sink))
    keep, outputs = differences.plan_columns([name for name, _ in columns], SIGNATURE, job(sink=sink))
    assert (keep, outputs) == ([name for name, _ in FITTING], {"p": "p"})


@pytest.mark.parametrize(
    ("missing", "found", "near"),
    [
        ("dep_delay", ["Dep_Delay", "dep_delays"], "; is it 'Dep_Delay' for 'dep_delay'?"),
        ("distance", ["distnace", "x"], "; is it 'distnace' for 'distance'?"),
        ("distance", ["carrier"], ""),
    ],
)
def test_a_column_that_looks_alike_is_named(missing: str, found: list[str], near: str) -> None:
    expected = f"feature {missing!r} not found; the columns are {', '.join(map(repr, found))}{near}"
    assert str(MissingColumnError("feature", [missing], found)) == expected
