from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_hydrogen.contract.errors import NotEnoughSlotsError
from airflow_hydrogen.runtime import slots


def session(master):
    return SimpleNamespace(sparkContext=SimpleNamespace(master=master))


def test_every_slot_of_a_cluster_that_has_none(monkeypatch):
    monkeypatch.setattr(slots, "task_slots", lambda spark: 0)
    with pytest.raises(
        NotEnoughSlotsError,
        match=r"needs every task slot \(np=0\), but the cluster has 0 task slots "
        r"\(master spark://m:7077, after waiting 0.1 s for executors\)",
    ):
        slots.require_slots(session("spark://m:7077"), 0, 0.1)


def test_executors_that_are_still_registering_are_waited_for(monkeypatch):
    counts = iter([0, 1, 2])
    monkeypatch.setattr(slots, "task_slots", lambda spark: next(counts))
    monkeypatch.setattr(slots.time, "sleep", lambda seconds: None)
    assert slots.require_slots(session("spark://m:7077"), 2, 60) == 2


def test_a_local_master_never_gets_more(monkeypatch):
    monkeypatch.setattr(slots, "task_slots", lambda spark: 2)
    with pytest.raises(NotEnoughSlotsError, match=r"needs np=3 .* has 2 task slots \(master local\[2\]\)"):
        slots.require_slots(session("local[2]"), 3, 3600)
