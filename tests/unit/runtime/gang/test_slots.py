from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError, NotEnoughSlotsError
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.runtime.gang import slots
from airflow_hydrogen.runtime.gang.slots import Slots


def session(master, **settings):
    conf = SimpleNamespace(get=lambda name, default=None: settings.get(name, default))
    return SimpleNamespace(sparkContext=SimpleNamespace(master=master, getConf=lambda: conf))


def within(seconds):
    return GangOptions(start_timeout_s=seconds)


@pytest.fixture
def found(monkeypatch):
    """What the application has, one after the other; time passes only where it is waited for."""
    answers: list[Slots] = []
    clock = [0.0]
    monkeypatch.setattr(slots, "task_slots", lambda *_: answers.pop(0) if len(answers) > 1 else answers[0])
    monkeypatch.setattr(slots.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(slots.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    return answers


def test_every_slot_of_a_cluster_that_has_none(found):
    found.append(Slots(0, 0, 0))
    with pytest.raises(
        NotEnoughSlotsError,
        match=r"needs every task slot \(np=0\), but the cluster has 0 task slots \(master spark://m:7077, "
        r"after waiting 1 s \(start_timeout_s\); 0 of 0 task slots are free, on 0 executors\)",
    ):
        slots.require_slots(session("spark://m:7077"), 0, within(1))


def test_executors_that_are_still_registering_are_waited_for_and_said_so(found):
    found.extend([Slots(0, 0, 0), Slots(1, 0, 1), Slots(2, 0, 2)])
    said = []
    assert slots.require_slots(session("spark://m:7077"), 2, within(60), said.append) == 2
    assert said == ["waiting for 2 task slots, up to 60 s more: 0 of 0 task slots are free, on 0 executors"]


@pytest.mark.parametrize("np", [2, 0])
@pytest.mark.parametrize("master", ["spark://m:7077", "local[2]"])
def test_slots_that_a_cancelled_stage_still_holds_are_waited_for(found, master, np):
    found.extend([Slots(2, 2, 2), Slots(2, 1, 2), Slots(2, 0, 2)])
    assert slots.require_slots(session(master), np, within(60), lambda text: None) == 2
    assert len(found) == 1


def test_a_wait_is_told_of_now_and_then_and_not_at_every_look(found):
    found.append(Slots(1, 0, 1))
    said = []
    with pytest.raises(NotEnoughSlotsError):
        slots.require_slots(session("spark://m:7077"), 2, within(40), said.append)
    assert len(said) == 3


def test_a_local_master_never_gets_more(found):
    found.append(Slots(2, 0, 1))
    with pytest.raises(NotEnoughSlotsError, match=r"needs np=3 .* has 2 task slots \(master local\[2\]\)"):
        slots.require_slots(session("local[2]"), 3, within(3600))


def test_dynamic_allocation_is_refused_with_the_reason(found):
    found.append(Slots(2, 0, 1))
    settings = {"spark.dynamicAllocation.enabled": "true"}
    with pytest.raises(InvalidJobError, match="dynamicAllocation.enabled is true, with which Spark runs no"):
        slots.require_slots(session("spark://m:7077", **settings), 2, within(1))


@pytest.mark.parametrize("np", [0, 1])
def test_a_local_master_without_a_slot_is_a_clear_error(found, np):
    """Such as local[2] with spark.task.cpus=4."""
    found.append(Slots(0, 0, 0))
    with pytest.raises(NotEnoughSlotsError, match=r"has 0 task slots \(master local\[2\]\)"):
        slots.require_slots(session("local[2]"), np, within(3600))
    assert slots.threads_per_task(session("local[2]"), 0) >= 1


@pytest.mark.parametrize(
    ("master", "settings", "driver", "given"),
    [
        ("local[*]", {}, None, None),
        ("local[*]", {}, "3", "3"),
        ("local[*]", {"spark.executorEnv.OMP_NUM_THREADS": "2"}, "3", "2"),
        ("local[*]", {"spark.driver.cores": "4"}, "4", None),
        ("spark://m:7077", {}, "3", None),
        ("spark://m:7077", {"spark.executorEnv.OMP_NUM_THREADS": "2"}, None, "2"),
    ],
)
def test_threads_are_the_users_own_only_where_spark_did_not_set_them(
    monkeypatch, master, settings, driver, given
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if driver is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", driver)
    assert slots.given_omp_threads(session(master, **settings)) == given
