"""Columns, as users give them, against the tensors of a model."""

from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import ColumnTypeError, ModelSignatureError
from airflow_hydrogen.contract.publications import given_columns
from airflow_hydrogen.contract.signatures import OutputSpec
from airflow_hydrogen.runtime.models import matching
from airflow_hydrogen.runtime.scoring.planning import _spark_type


def filled(specs, columns):
    """Input -> (column, width) of each that fills it."""
    inputs = matching.fill_inputs(specs, given_columns(columns))
    return {spec.name: [(column.name, column.width) for column in spec.columns] for spec in inputs}


@pytest.mark.parametrize(
    ("shape", "columns", "found"),
    [
        ((), "a", [("a", None)]),
        ((1,), ["a"], [("a", None)]),
        ((2,), ["a", "b"], [("a", None), ("b", None)]),
        ((28, 28), "pixels", [("pixels", 784)]),
        ((1,), {"name": "list_of_one", "width": 1}, [("list_of_one", 1)]),
        ((4,), ["a", {"name": "p", "width": 3}], [("a", None), ("p", 3)]),
    ],
)
def test_columns_fill_one_input_in_their_order(shape, columns, found):
    assert filled({"x": ("float32", shape)}, columns) == {"x": found}


def test_columns_fill_inputs_by_name_in_the_models_order():
    specs = {"x": ("float32", (2,)), "word": ("string", (1,))}
    assert filled(specs, {"word": "carrier", "x": ["a", "b"]}) == {
        "x": [("a", None), ("b", None)],
        "word": [("carrier", None)],
    }


def test_a_column_may_fill_two_inputs():
    specs = {"x": ("float32", (1,)), "y": ("int64", ())}
    assert filled(specs, {"x": "a", "y": "a"}) == {"x": [("a", None)], "y": [("a", None)]}


@pytest.mark.parametrize(
    ("specs", "columns", "message"),
    [
        ({"x": ("float32", (2,))}, ["a", "b", "c"], r"takes 2 values a row \(its shape is \[2\]\).*hold 3"),
        ({"x": ("float32", (2,))}, {"name": "p", "width": 3}, "takes 2 values.*hold 3: 'p'"),
        ({"x": ("float32", ())}, ["a", "b"], "takes 1 value a row"),
        ({"x": ("string", (2,))}, ["a", "b"], "takes 2 strings a row, and 2 columns are given"),
        ({"x": ("string", (1,))}, {"name": "a", "width": 1}, "one column of strings"),
        (
            {"x": ("float32", ()), "y": ("int64", ())},
            ["a", "b"],
            r"give the columns of each, as in {'x': \.\.\.",
        ),
        ({"x": ("float32", ()), "y": ("int64", ())}, {"x": "a"}, "no columns are given for 'y'"),
        ({"x": ("float32", ())}, {"x": "a", "z": "b"}, "columns are given for 'z'"),
        (
            {"x": ("float32", (4,)), "y": ("float32", (3,))},
            {"x": "a", "y": "a"},
            "'a' is given to inputs 'x' and 'y', and holds lists of 4 numbers for the one and lists of 3",
        ),
        (
            {"x": ("string", ()), "y": ("float32", ())},
            {"x": "a", "y": "a"},
            "holds strings for the one and numbers for the other",
        ),
    ],
)
def test_columns_that_do_not_fit_are_told_what_the_model_takes(specs, columns, message):
    with pytest.raises(ModelSignatureError, match=message):
        filled(specs, columns)


def test_columns_are_made_of_every_dtype_that_is_published_and_of_no_other():
    for dtype in matching.INPUT_DTYPES:
        spec = OutputSpec("y", dtype, ())
        if dtype in matching.OUTPUT_DTYPES:
            assert _spark_type(spec)
        else:
            with pytest.raises(ColumnTypeError):
                _spark_type(spec)


def test_a_lone_output_is_called_prediction_and_others_by_their_names():
    lone, two = {"y:0": ("float32", (1,))}, {"p": ("float32", (1,)), "q": ("uint8", ())}
    assert [spec.name for spec in matching.choose_outputs(lone, None)] == ["prediction"]
    assert [spec.name for spec in matching.choose_outputs(lone, ["y:0"])] == ["prediction"]
    assert [spec.name for spec in matching.choose_outputs(two, ["p"])] == ["p"]
    with pytest.raises(ModelSignatureError, match="output 'q' is of uint8"):
        matching.choose_outputs(two, None)
    with pytest.raises(ModelSignatureError, match="outputs names 'r'"):
        matching.choose_outputs(two, ["r"])


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        (None, "no first dimension"),
        ((), "no first dimension"),
        ((8, 2), "of 8 alone"),
        ((None, None), "must be"),
    ],
)
def test_batches_of_any_size_and_rows_of_one_shape_are_taken(dimensions, message):
    assert matching.row_shape("x", (None, 3, 2)) == (3, 2)
    with pytest.raises(ModelSignatureError, match=message):
        matching.row_shape("x", dimensions)


def test_a_batch_of_one_size_is_told_how_to_be_exported_for_any():
    with pytest.raises(ModelSignatureError) as raised:
        matching.row_shape("x", (4, 3))
    assert "dynamic_shapes={'x': {0: torch.export.Dim('batch')}}, or" in str(raised.value)
