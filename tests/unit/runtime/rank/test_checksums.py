"""Checksums of weights, and what the driver makes of those that the ranks answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from airflow_hydrogen.contract.errors import RanksDivergedError
from airflow_hydrogen.runtime.rank.checksums import checksum, require_equal

ANY = arrays.arrays(
    st.sampled_from(["float16", "float32", "float64", "int32", "bool"]),
    arrays.array_shapes(min_dims=0, min_side=0),
)


@given(ANY, st.data())
def test_checksum_changes_with_any_bit(array: np.ndarray[Any, Any], data: st.DataObject) -> None:
    same = np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
    assert checksum(array) == checksum(same), "NaNs included"
    if array.size and array.dtype.kind != "b":
        bits = np.frombuffer(bytearray(array.tobytes()), np.uint8)
        place = data.draw(st.integers(0, bits.size - 1))
        bits[place] ^= 1 << data.draw(st.integers(0, 7))
        assert checksum(bits.view(array.dtype).reshape(array.shape)) != checksum(array)


def test_checksum_knows_shape_type_and_sign_of_zero() -> None:
    zeros = np.zeros((2, 3), "float32")
    others = [zeros.T, zeros.astype("int32"), -zeros, zeros.ravel()]
    assert len({checksum(array) for array in [zeros, *others]}) == 5


def test_checksum_is_that_of_the_values_not_of_their_layout_in_memory() -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert (
        checksum(np.asfortranarray(array)) == checksum(array) == checksum(np.repeat(array, 2, axis=1)[:, ::2])
    )


def test_checksum_reads_types_that_numpy_does_not_know() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.ones(3, ml_dtypes.bfloat16)
    assert checksum(array) != checksum(array * 2)


def test_models_that_differ_are_not_published() -> None:
    with pytest.raises(RanksDivergedError) as caught:
        require_equal(
            [[("kernel", 1), ("bias", 2)], [("kernel_1", 1), ("bias_1", 2)], [("kernel", 1), ("bias", 3)]]
        )
    assert caught.value.variable == "bias"
    assert "1 of 2 trainable variables of the models that main returned on ranks 0 and 2 differ" in str(
        caught.value
    )


def test_models_of_other_sizes_are_not_published() -> None:
    with pytest.raises(
        RanksDivergedError, match="rank 1 returned a model with 2 trainable variables, rank 0 one with 1"
    ):
        require_equal([[("kernel", 1)], [("kernel", 1), ("bias", 2)]])


@pytest.mark.parametrize(
    "weights",
    [
        [[("kernel", 1)], [("kernel_1", 1)]],
        [[("kernel", 1)], None],
        [None, [("kernel", 1)], [("kernel", 2)]],
        [[("kernel", 1)]],
    ],
    ids=["the same", "not from every rank", "not from rank 0", "one rank"],
)
def test_models_that_are_the_same_or_not_from_every_rank_pass(weights: list[Any]) -> None:
    require_equal(weights)
