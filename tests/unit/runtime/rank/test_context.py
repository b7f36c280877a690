"""`report`: what becomes a number of the history, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.runtime.rank import context as contexts
from airflow_hydrogen.runtime.rank.context import TrainContext, dump_history, report


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> TrainContext:
    context = TrainContext(rank=0, size=1)
    monkeypatch.setattr(contexts, "_current", context)
    return context


def test_numbers_of_a_vector_get_names_of_their_own(context: TrainContext) -> None:
    report({"epoch": 3, "loss": np.float32(0.5), "f1_score": np.array([0.25, 1.0], "float32")})
    assert context.history == [{"epoch": 3, "loss": 0.5, "f1_score_0": 0.25, "f1_score_1": 1.0}]
    assert type(context.history[0]["epoch"]) is int
    assert json.loads(dump_history(context.history)) == context.history[0]


def test_numbers_of_a_matrix_are_named_by_row_and_column(context: TrainContext) -> None:
    report({"confusion": [[1, 2], [3, 4]]})
    (line,) = context.history
    assert line == {"confusion_0_0": 1, "confusion_0_1": 2, "confusion_1_0": 3, "confusion_1_1": 4}


def test_vector_of_one_number_keeps_its_name(context: TrainContext) -> None:
    report({"f1_score": np.array([0.5])})
    assert context.history == [{"f1_score": 0.5}]


def test_numbers_that_json_does_not_have_become_null(context: TrainContext) -> None:
    report({"f1_score": np.array([np.nan, 0.5])})
    assert json.loads(dump_history(context.history)) == {"f1_score_0": None, "f1_score_1": 0.5}


@pytest.mark.parametrize(
    "value", ["high", None, {}, ["a", "b"], [None, 1.0], [[1], [2, 3]], np.array([1j, 2])]
)
def test_what_is_no_number_is_refused(context: TrainContext, value: object) -> None:
    with pytest.raises(InvalidJobError, match="'loss' must be a number or an array of numbers, found"):
        report({"loss": value})
    assert context.history == []


def test_two_numbers_of_one_name_are_refused(context: TrainContext) -> None:
    with pytest.raises(InvalidJobError, match="two numbers 'f1_1': rename one of the metrics"):
        report({"f1_1": 0.5, "f1": [0.1, 0.2]})
