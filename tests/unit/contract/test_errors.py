from __future__ import annotations

import inspect
import pickle

import pytest

from airflow_hydrogen.contract import errors
from airflow_hydrogen.contract.errors import HydrogenError, RankFailedError

ERRORS = [
    kind for _name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HydrogenError)
]


def _example(kind):
    """An instance, its arguments made up from the signature."""
    values = {
        "np": 4,
        "slots": 2,
        "rank": 1,
        "nulls": 1,
        "repeated": 1,
        "rows": 9,
        "partitions": 9,
        "ids": 8,
        "expected": "float32",
        "found": ["x"],
        "size": 1,
    }
    if kind.__init__ in (HydrogenError.__init__, Exception.__init__):
        return kind("what happened")
    arguments = [
        values.get(name, name)
        for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return kind(*arguments)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind):
    error = _example(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) != ""
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_says_what_it_is_and_stands_in_the_tree(kind):
    assert kind.__doc__
    assert kind.__name__ in errors.__doc__


def test_a_rank_that_failed_for_good_is_not_retried():
    final = RankFailedError(0, "h", "s", error_type="airflow_hydrogen.contract.errors.NullValueError")
    assert final.retryable is False
    assert RankFailedError(0, "h", "s", error_type="builtins.ValueError").retryable is True
