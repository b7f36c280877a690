"""The example's own functions, where a run would be a slow way to see what they do."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.small

DAGS = Path(__file__).resolve().parents[2] / "dags"
MAY = datetime(2013, 5, 1, tzinfo=timezone.utc)
TODAY = datetime(2026, 11, 23, 4, 5, tzinfo=timezone.utc)


@pytest.fixture(scope="module", autouse=True)
def dags_folder() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DAGS)
        yield


@pytest.fixture(scope="module")
def days() -> ModuleType:
    return importlib.import_module("flights.days")


@pytest.fixture(scope="module")
def metrics() -> ModuleType:
    return importlib.import_module("flights.metrics")


@pytest.mark.parametrize(
    ("param", "partition_key", "logical_date", "expected"),
    [
        ("2013-03-01", "2013-04-01", MAY, "2013-03-01"),
        (None, "2013-04-01T00:00:00", MAY, "2013-04-01"),
        (None, None, MAY, "2013-05-01"),
        (None, None, None, "2013-11-23"),
    ],
    ids=["param", "partition key", "logical date", "run_after"],
)
def test_a_day_comes_from_the_first_that_names_one(
    days: ModuleType, param: str, partition_key: str, logical_date: datetime, expected: str
) -> None:
    day = days.day_of_run(
        param=param, partition_key=partition_key, logical_date=logical_date, run_after=TODAY
    )
    assert day == expected


def test_the_29th_of_february_is_the_28th(days: ModuleType) -> None:
    leap = datetime(2024, 2, 29, tzinfo=timezone.utc)
    assert days.day_of_run(param=None, partition_key=None, logical_date=leap, run_after=leap) == "2013-02-28"


def test_a_partition_key_that_is_no_date_is_refused(days: ModuleType) -> None:
    with pytest.raises(ValueError, match="EWR"):
        days.day_of_run(param=None, partition_key="EWR", logical_date=None, run_after=TODAY)


def test_auc_is_the_share_of_pairs_in_the_right_order(metrics: ModuleType) -> None:
    label, score = np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.9])
    # Of the four pairs three are right and one is a tie.
    assert metrics.auc(label, score) == pytest.approx(3.5 / 4)


def test_log_loss_of_a_coin_is_log_two(metrics: ModuleType) -> None:
    assert metrics.log_loss(np.array([0.0, 1.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))
