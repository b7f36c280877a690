"""Good rows are scored, bad ones are set aside, and a model that fails whatever the row fails the task."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import ModelFailedError
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec
from airflow_hydrogen.runtime.models.inputs import model_inputs
from airflow_hydrogen.runtime.scoring.sifting import TRIALS, Sifter

INPUTS = [InputSpec("a", (ColumnSpec("a", "float32"),), "float32", ())]


class Sifted:
    """A sifter of a model that doubles `a` and fails where `fails` says so, and what became of the rows."""

    def __init__(self, fails=lambda values: (values < 0).any(), error=ValueError, inputs=INPUTS):
        self.fails, self.error = fails, error
        self.calls: list[int] = []
        self.aside: dict[int, str] = {}
        self.scored: list[tuple[int, float]] = []
        self.sifter = Sifter(
            inputs, partial(model_inputs, inputs=inputs), self.predict, self.assemble, self.set_aside
        )

    def predict(self, arrays):
        values = arrays[next(iter(arrays))]
        self.calls.append(len(values))
        if self.fails(values):
            raise self.error("these\nrows")
        return {"p": values.reshape(len(values), -1)[:, 0] * 2}

    def assemble(self, batch, outputs):
        return pa.record_batch({"id": batch.column("id"), "p": pa.array(outputs["p"])})

    def set_aside(self, rows, bad):
        assert rows.num_rows == len(bad.reasons) == len(bad.rows)
        for row, reason in zip(rows.column("id").to_pylist(), bad.reasons, strict=True):
            assert row not in self.aside, "a row is set aside once"
            self.aside[row] = reason

    def score(self, values, type_="float64"):
        start = len(self.scored) + len(self.aside)
        batch = pa.record_batch(
            {"id": pa.array(range(start, start + len(values)), pa.int64()), "a": pa.array(values, type_)}
        )
        for piece in self.sifter.score(batch):
            self.scored += zip(*(column.to_pylist() for column in piece.columns), strict=True)


VALUES = st.one_of(st.none(), st.integers(-3, 9).map(float))


@given(st.lists(st.lists(VALUES, min_size=1, max_size=40), min_size=1, max_size=4))
def test_good_rows_get_the_predictions_of_a_run_over_good_rows_alone(batches):
    sifted = Sifted()
    sifted.score([1.0])  # the model works
    for batch in batches:
        sifted.score(batch)
    rows = [1.0, *(value for batch in batches for value in batch)]
    good = [row for row, value in enumerate(rows) if value is not None and value >= 0]
    assert sifted.scored == [(row, rows[row] * 2) for row in good]
    assert sorted(sifted.aside) == [row for row in range(len(rows)) if row not in good]
    for row, reason in sifted.aside.items():
        found = "found null" if rows[row] is None else "the model failed with ValueError: these rows"
        assert found in reason


def test_a_batch_that_goes_through_is_one_call():
    sifted = Sifted()
    sifted.score([1.0] * 1000)
    sifted.score([2.0] * 1000)
    assert sifted.calls == [1000, 1000]


@given(st.integers(1, 300), st.data())
def test_the_calls_of_the_model_are_few(rows, data):
    bad = data.draw(st.sets(st.integers(0, rows - 1), min_size=1))
    sifted = Sifted()
    sifted.score([1.0])
    sifted.calls.clear()
    sifted.score([-1.0 if row in bad else 1.0 for row in range(rows)])
    assert len(sifted.aside) == len(bad)
    assert len(sifted.calls) <= min(2 * rows + 1, 2 * len(bad) * math.ceil(math.log2(rows)) + 3)


def test_one_bad_row_in_many_is_found_in_the_first_batch_of_a_task():
    sifted = Sifted()
    sifted.score([-1.0, *[1.0] * 4095])
    assert list(sifted.aside) == [0]
    assert len(sifted.calls) <= 1 + TRIALS + 2 * 12 + 1
    assert sifted.sifter.unproven == 0


def test_a_model_that_fails_whatever_the_row_is_not_the_rows_fault():
    sifted = Sifted(lambda values: True)
    with pytest.raises(
        ModelFailedError, match="it scores none of 32 rows one by one.*ValueError: these rows"
    ):
        sifted.score([1.0] * 4096)
    assert len(sifted.calls) == 1 + TRIALS
    assert sifted.aside == {}


def test_small_batches_of_a_model_that_has_scored_none_are_not_set_aside_without_end():
    sifted = Sifted(lambda values: True)
    for _ in range(TRIALS // 2):
        sifted.score([1.0, 2.0])
    assert sifted.sifter.unproven == len(sifted.aside) == TRIALS
    with pytest.raises(ModelFailedError):
        sifted.score([1.0, 2.0])


def test_few_rows_before_the_first_good_one_are_unproven_until_it_comes():
    sifted = Sifted()
    sifted.score([-1.0])
    assert (sifted.sifter.unproven, list(sifted.aside)) == (1, [0])
    assert sifted.sifter.failure == "ValueError: these rows"
    sifted.score([1.0])
    assert sifted.sifter.unproven == 0


def test_a_model_that_stops_working_is_told_by_a_row_that_it_scored_before():
    broken = []
    sifted = Sifted(lambda values: bool(broken))
    sifted.score([1.0] * 8)
    broken.append(True)
    sifted.calls.clear()
    with pytest.raises(ModelFailedError, match="does not score a row any more that it scored before"):
        sifted.score([2.0] * 4096)
    assert sifted.calls == [4096, 1]
    assert sifted.aside == {}


def test_a_model_that_stops_working_while_a_batch_is_halved_sets_nothing_aside():
    sifted = Sifted(lambda values: (values < 0).any() or len(sifted.calls) > 6)
    sifted.score([1.0])
    with pytest.raises(ModelFailedError, match="does not score a row any more"):
        sifted.score([-1.0, *[1.0] * 63])
    assert sifted.aside == {}


def test_a_failure_that_passes_blames_no_row():
    sifted = Sifted(lambda values: len(sifted.calls) == 2)
    sifted.score([1.0])
    sifted.score([2.0] * 8)
    assert (len(sifted.scored), sifted.aside) == (9, {})


class ResourceExhaustedError(Exception):
    """As TensorFlow's is called."""


@pytest.mark.parametrize("error", [MemoryError, ModuleNotFoundError, ResourceExhaustedError])
def test_memory_and_modules_are_no_rows_fault(error):
    sifted = Sifted(error=error)
    sifted.score([1.0])
    with pytest.raises(error):
        sifted.score([-1.0, 1.0])
    assert sifted.aside == {}


def test_rows_that_make_no_one_tensor_are_scored_apart():
    lists = [InputSpec("a", (ColumnSpec("a", "float32", 2),), "float32", (2,))]
    sifted = Sifted(inputs=lists)
    sifted.score([[[1.0, 2.0]], [[3.0], [4.0]], [[5.0, 6.0]], [[7.0]]], pa.list_(pa.list_(pa.float64())))
    assert sifted.scored == [(0, 2.0), (1, 6.0), (2, 10.0)]
    assert list(sifted.aside) == [3]


def test_the_row_that_proves_the_model_is_a_copy():
    sifted = Sifted()
    sifted.score([5.0, 6.0])
    kept = sifted.sifter._scored_before["a"]
    assert kept.tolist() == [5.0] and kept.base is None and isinstance(kept, np.ndarray)


def test_a_long_message_keeps_its_beginning_and_its_end():
    class Long(Exception):
        def __init__(self, _text):
            super().__init__("it began\n" + "trace\n" * 1000 + "it was 'what?'")

    sifted = Sifted(error=Long)
    sifted.score([1.0])
    sifted.score([-1.0])
    [reason] = sifted.aside.values()
    assert reason.startswith("the model failed with Long: it began trace") and reason.endswith(
        "it was 'what?'"
    )
    assert len(reason) < 600
