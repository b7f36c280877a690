"""Rows are counted where they are written."""

from __future__ import annotations

import threading

import pytest

from airflow_hydrogen.contract.errors import RowsNotCountedError
from airflow_hydrogen.runtime.data import counting


class Observation:
    """Spark's, which answers once the event is there."""

    def __init__(self) -> None:
        self.arrived = threading.Event()

    @property
    def get(self):
        self.arrived.wait(20)
        return {"rows": 3}


def test_a_count_that_spark_has_lost_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(counting, "_TIMEOUT_S", 0.01)
    lost = Observation()
    with pytest.raises(RowsNotCountedError, match="eventqueue.capacity"):
        counting.counted(lost)
    lost.arrived.set()
    monkeypatch.undo()
    assert counting.counted(lost) == {"rows": 3}
