"""Which rows no input can hold: found by columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import NullValueError, RaggedTensorError, ValueRangeError
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec
from airflow_hydrogen.runtime.models.inputs import model_inputs, value_beyond
from airflow_hydrogen.runtime.scoring.bad_rows import find_bad_rows, values_beyond

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def scalar(name: str, dtype: str) -> InputSpec:
    return InputSpec(name, (ColumnSpec(name, dtype),), dtype, ())


def tensor(name: str, width: int, dtype: str = "float32") -> InputSpec:
    return InputSpec(name, (ColumnSpec(name, dtype, width),), dtype, (width,))


def found(batch: pa.RecordBatch, *inputs: InputSpec) -> dict[int, str]:
    """Row -> reason."""
    bad = find_bad_rows(batch, inputs)
    rows = [row for some in bad for row in some.rows.tolist()]
    assert len(rows) == len(set(rows)), "a row is bad once"
    return {row: reason for some in bad for row, reason in zip(some.rows.tolist(), some.reasons, strict=True)}


def test_each_fault_says_the_column_and_what_was_expected_and_found():
    batch = pa.record_batch(
        {
            "a": pa.array([1.0, None, 3.0, 4.0, 5.0, 6.0]),
            "n": pa.array([1, 2, 300, 4, None, 6], pa.int64()),
            "word": pa.array(["x", "x", "x", None, "x", "x"]),
            "p": pa.array([[1.0, 2.0]] * 5 + [[1.0]]),
        }
    )
    assert found(
        batch, scalar("a", "float32"), scalar("n", "int8"), scalar("word", "string"), tensor("p", 2)
    ) == {
        1: "column 'a': expected double without nulls, found null".replace("double", "float64"),
        2: "column 'n': expected whole numbers that int8 holds, found 300",
        3: "column 'word': expected string without nulls, found null",
        4: "column 'n': expected int64 without nulls, found null",
        5: "column 'p': expected a list of 2 numbers, found 1",
    }


def test_a_row_with_several_faults_is_bad_once_by_the_first():
    batch = pa.record_batch({"a": pa.array([None], "float64"), "n": pa.array([None], "int64")})
    [bad] = find_bad_rows(batch, [scalar("a", "float32"), scalar("n", "int8")])
    assert bad.fault == "column 'a': null"


@pytest.mark.parametrize(
    "type_", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)], ids=str
)
def test_lists_with_nulls_in_every_place(type_):
    batch = pa.record_batch({"p": pa.array([[1, 2], None, [3, None], [4, 1000], [5, 6]], type_)})
    assert list(found(batch.slice(0), tensor("p", 2, "int8"))) == [1, 2, 3]
    assert list(found(batch.slice(2), tensor("p", 2, "int8"))) == [0, 1]


def test_lists_of_lists():
    rows = [
        [[1.0, 2.0], [3.0, 4.0]],
        [[1.0, 2.0], [3.0]],
        [[1.0], [2.0, 3.0, 4.0]],
        [[1.0, 2.0], None],
        [[1.0, 2.0], [None, 4.0]],
        None,
        [],
        [[1.0, 2.0, 3.0, 4.0]],
    ]
    batch = pa.record_batch({"p": pa.array(rows, pa.list_(pa.list_(pa.float64())))})
    reasons = found(batch, tensor("p", 4))
    assert sorted(reasons) == [1, 2, 3, 4, 5, 6]
    assert reasons[2].endswith("a list of 4 numbers, found 4 in inner lists of different lengths")
    assert reasons[6].endswith("a list of 4 numbers, found 0")
    assert [reasons[row].partition("expected ")[2] for row in (3, 4, 5)] == [
        "a list of float64 without nulls, found null"
    ] * 3


def test_words_of_a_dictionary_and_extension_types():
    words = pa.array(["x", None, "y"]).dictionary_encode()
    numbers = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2,)), numbers)
    batch = pa.record_batch({"w": words, "p": tensors})
    assert list(found(batch, scalar("w", "string"))) == list(found(batch, tensor("p", 2))) == [1]


@given(st.data(), st.sampled_from([*INTEGERS, "float32", "float64"]), st.sampled_from([*INTEGERS, "bool"]))
def test_the_mask_says_what_the_check_of_a_batch_says_of_each_value(data, held, wanted):
    if held.startswith("float"):
        special = [0.0, 0.5, np.nan, np.inf, -np.inf, 2.0**63, 2.0**64, -(2.0**63), 127.0, 128.0, 1.0, 2.0]
        numbers = st.one_of(st.sampled_from(special), st.floats(width=int(held[5:])))
    else:
        bounds = np.iinfo(held)
        numbers = st.one_of(
            st.integers(int(bounds.min), int(bounds.max)),
            st.sampled_from([0, 1, int(bounds.min), int(bounds.max)]),
        )
    values = np.array(data.draw(st.lists(numbers, max_size=6)), held)
    expected = [value_beyond(wanted, values[place : place + 1]) is not None for place in range(len(values))]
    assert values_beyond(wanted, values).tolist() == expected


CELLS = {
    "a": (pa.float64(), st.one_of(st.none(), st.floats(-9, 9))),
    "n": (pa.int64(), st.one_of(st.none(), st.integers(-200, 200))),
    "p": (
        pa.list_(pa.int16()),
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-200, 200)), min_size=1, max_size=3)),
    ),
    "q": (
        pa.list_(pa.list_(pa.float32())),
        st.one_of(
            st.none(),
            st.just([[1.0], [2.0]]),
            st.lists(st.one_of(st.none(), st.lists(st.just(1.0), max_size=2)), max_size=2),
        ),
    ),
}
INPUTS = [scalar("a", "float32"), scalar("n", "int8"), tensor("p", 2, "int8"), tensor("q", 2)]


@given(st.lists(st.fixed_dictionaries({name: cells for name, (_type, cells) in CELLS.items()}), max_size=8))
def test_a_row_is_bad_exactly_where_it_cannot_be_scored_alone(rows):
    batch = pa.record_batch(
        {name: pa.array([row[name] for row in rows], type_) for name, (type_, _cells) in CELLS.items()}
    )

    def refused(row):
        try:
            model_inputs(batch.slice(row, 1), INPUTS)
        except (NullValueError, RaggedTensorError, ValueRangeError):
            return True
        return False

    assert sorted(found(batch, *INPUTS)) == [row for row in range(len(rows)) if refused(row)]
