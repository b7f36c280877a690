from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from airflow_hydrogen.contract.errors import ColumnTypeError, NullValueError, RaggedTensorError
from airflow_hydrogen.runtime.data.columns import dtype_of, stack, to_numpy


def test_numbers_without_nulls_are_read_in_place():
    column = pa.array(np.arange(10, dtype=np.float32))
    array = to_numpy("x", column)
    assert array.__array_interface__["data"][0] == column.buffers()[1].address


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([True, False]), [True, False]),
        (pa.array(["a", "b"]), ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([[1.0, 2.0], [3.0, 4.0]]), [[1.0, 2.0], [3.0, 4.0]]),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)), [[1, 2], [3, 4]]),
        (pa.array([[[1], [2]], [[3], [4]]]), [[1, 2], [3, 4]]),
        (pa.chunked_array([[1, 2], [3]]), [1, 2, 3]),
        (pa.chunked_array([], pa.int64()), []),
    ],
)
def test_columns_become_arrays(column, expected):
    assert to_numpy("x", column).tolist() == expected


def test_a_slice_of_a_tensor_column_is_its_own_rows():
    column = pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).slice(1, 2)
    assert to_numpy("x", column).tolist() == [[3.0, 4.0], [5.0, 6.0]]


def test_nulls_name_the_column_and_how_many():
    with pytest.raises(
        NullValueError, match=r"column 'x': expected float64 without nulls, found 1 nulls in 3 rows"
    ):
        to_numpy("x", pa.array([1.0, None, 2.0]))


def test_nulls_inside_a_tensor_are_found():
    with pytest.raises(NullValueError, match="column 'x'"):
        to_numpy("x", pa.array([[1.0, None], [2.0, 3.0]]))


def test_ragged_lists_name_the_lengths():
    with pytest.raises(RaggedTensorError, match="lists of 2 numbers in every row, found lengths 2, 3"):
        to_numpy("x", pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]]), 2)


def test_a_tensor_of_another_width_than_the_model_wants():
    with pytest.raises(RaggedTensorError, match="lists of 3 numbers in every row, found lengths 2"):
        to_numpy("x", pa.array([[1.0, 2.0], [1.0, 2.0]]), 3)


@pytest.mark.parametrize(
    ("type_", "hint"),
    [
        (pa.decimal128(8, 2), "cast it to double"),
        (pa.timestamp("us"), "cast it to a number"),
        (pa.list_(pa.string()), ""),
    ],
)
def test_types_that_no_tensor_holds(type_, hint):
    with pytest.raises(ColumnTypeError, match=f"column 'x': expected a number, .* found .*{hint}"):
        dtype_of("x", type_)


def test_stack_puts_scalars_and_tensors_side_by_side():
    matrix = stack([np.array([1, 2]), np.array([[3.0, 4.0], [5.0, 6.0]]), np.array([True, False])])
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [[1, 3, 4, 1], [2, 5, 6, 0]]


@pytest.mark.parametrize("scalars", [1, 11, 12, 31, 32, 33, 44, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_many_scalars_are_put_beside_each_other_in_their_order(scalars, dtype):
    random = np.random.default_rng(scalars)
    types = ["float32", "float64", "int8", "bool"]
    columns = [random.integers(0, 2, 300).astype(types[number % 4]) for number in range(scalars)]
    wide = random.integers(0, 9, (300, 3)).astype("float32")
    arrays = [wide, *columns, wide, *columns[:20]]
    matrix = stack(arrays, dtype)
    assert matrix.dtype == dtype
    assert matrix.flags.c_contiguous
    assert (matrix == np.column_stack(arrays)).all()


def test_no_rows_are_a_matrix_without_rows():
    assert stack([np.empty(0, "float32")] * 20).shape == (0, 20)


def test_a_single_matrix_of_the_right_type_is_not_copied():
    matrix = np.ones((3, 4), dtype=np.float32)
    assert stack([matrix]) is matrix
