from __future__ import annotations

import threading

import pytest

from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.runtime.gang import monitor as monitors
from airflow_hydrogen.runtime.gang.logs import GangLog
from airflow_hydrogen.runtime.gang.monitor import GangMonitor
from airflow_hydrogen.runtime.progress import INIT, Beat
from airflow_hydrogen.runtime.rank.failures import RankFailure


class Calls:
    """Whether the ranks were told to end, and Spark to cancel."""

    def __init__(self):
        self.failure, self.overdue = threading.Event(), threading.Event()


@pytest.fixture
def calls():
    return Calls()


def monitor(calls, size=2, **options):
    return GangMonitor(
        size,
        GangOptions(**options),
        GangLog("all"),
        on_failure=calls.failure.set,
        on_overdue=calls.overdue.set,
    )


def failure(rank=0, kind="main", summary="ValueError: x"):
    return RankFailure(rank, f"host-{rank}", kind, summary, error_type="builtins.ValueError")


def test_a_failure_ends_the_gang_and_its_cause_is_named_not_its_consequence(calls):
    found = monitor(calls)
    found.failed(failure(1, "peer"))
    assert calls.failure.is_set()
    found.failed(failure(0, "main"))
    assert found.cause().rank == 0


def test_ranks_that_do_not_all_start_are_counted(calls):
    with monitor(calls, size=3, start_timeout_s=0.1) as found:
        found.started(0, "a")
        assert calls.overdue.wait(10)
    assert found.missing.startswith("1 of 3 ranks started within 0.1 s (start_timeout_s)")


def test_a_frozen_rank_fails_the_gang_and_is_named(calls):
    with monitor(calls, stall_timeout_s=0.3) as found:
        found.started(0, "a")
        found.started(1, "b")
        found.beat(1, Beat(marks=1))
        while not calls.failure.wait(0.05):
            found.beat(0, Beat(marks=1))
    cause = found.cause()
    assert (cause.rank, cause.host, cause.kind) == (1, "b", "stall")


def test_a_rank_that_has_returned_is_not_waited_for(calls):
    with monitor(calls, size=1, stall_timeout_s=0.1) as found:
        found.started(0, "a")
        found.returned(0)
        assert not calls.failure.wait(0.8)


def test_tasks_that_do_not_hear_are_cancelled_by_spark_soon_after(calls, monkeypatch):
    monkeypatch.setattr(monitors, "_CAUSE_WAIT_S", 0.3)
    with monitor(calls, stall_timeout_s=None) as found:
        found.started(0, "a")
        found.failed(failure())
        assert not calls.overdue.is_set()
        assert calls.overdue.wait(10)


def test_an_abort_by_gloo_names_who_has_not_come(calls):
    found = monitor(calls)
    for rank, host in enumerate(["a", "b"]):
        found.started(rank, host)
    found.beat(0, Beat(1, INIT))
    found.beat(1, Beat(0, "start"))
    found.failed(failure(0, "process", "its process was aborted (SIGABRT) on 10.0.0.2 (eth0)"))
    assert found.cause().summary == (
        "its process was aborted (SIGABRT) on 10.0.0.2 (eth0) in hvd.init(), where it waited for its peers; "
        "these have not come to it: rank 1 on b (at 'start')"
    )


def test_a_rank_that_dies_after_init_is_not_said_to_be_in_it(calls):
    found = monitor(calls, size=1)
    found.started(0, "a")
    found.beat(0, Beat(1, INIT))
    found.beat(0, Beat(2, "start"))
    found.failed(failure(0, "process", "its process was killed by signal 9 (SIGKILL)"))
    assert found.cause().summary == "its process was killed by signal 9 (SIGKILL)"
