from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.gang.restarts import (
    MAX_BACKOFF_S,
    GangStatus,
    GiveUp,
    Restart,
    RestartPolicy,
    Wait,
    backoff_s,
    decide,
)


def policy(np=4, max_restarts=2, min_np=None, start_timeout_s=60.0):
    return RestartPolicy(np=np, max_restarts=max_restarts, min_np=min_np, start_timeout_s=start_timeout_s)


def status(program_error=False, restarts=0, rank_died=False, slots=4, since_s=1e6):
    return GangStatus(
        program_error=program_error, restarts=restarts, rank_died=rank_died, slots=slots, since_s=since_s
    )


def test_a_program_error_is_final_whatever_is_left():
    decision = decide(policy(max_restarts=100), status(program_error=True))
    assert isinstance(decision, GiveUp)
    assert "main raised" in decision.why


def test_a_fault_of_the_infrastructure_starts_the_gang_again():
    assert decide(policy(), status()) == Restart(4)


def test_restarts_run_out():
    assert decide(policy(max_restarts=2), status(restarts=1, since_s=10)) == Restart(4)
    decision = decide(policy(max_restarts=2), status(restarts=2))
    assert decision == GiveUp("no restart is left of max_restarts=2")


def test_the_first_restart_comes_after_a_second_and_the_next_after_two():
    assert decide(policy(), status(since_s=0.9)) == Wait("back-off of 1 s")
    assert decide(policy(), status(restarts=1, since_s=1.9)) == Wait("back-off of 2 s")
    assert decide(policy(), status(restarts=1, since_s=2.0)) == Restart(4)


def test_after_the_first_death_of_a_rank_nothing_is_waited_for_but_slots():
    assert decide(policy(), status(rank_died=True, since_s=0)) == Restart(4)
    assert decide(policy(), status(rank_died=True, since_s=0, slots=3)) == Wait("3 of 4 task slots are free")
    assert decide(policy(), status(rank_died=True, restarts=1, since_s=1.9)) == Wait("back-off of 2 s")


def test_missing_slots_are_waited_for_and_then_named():
    assert decide(policy(), status(slots=3, since_s=30)) == Wait("3 of 4 task slots are free")
    decision = decide(policy(), status(slots=3, since_s=61.0))
    assert decision == GiveUp("3 task slots are free, 4 are needed, after 60 s (start_timeout_s)")


def test_min_np_goes_on_with_what_is_there():
    assert decide(policy(min_np=2), status(slots=3, since_s=2)) == Restart(3)
    assert decide(policy(min_np=2), status(slots=9, since_s=2)) == Restart(4)
    assert decide(policy(min_np=2), status(slots=1, since_s=2)) == Wait("1 of 2 task slots are free")


statuses = st.builds(
    GangStatus,
    program_error=st.booleans(),
    restarts=st.integers(0, 20),
    rank_died=st.booleans(),
    slots=st.integers(0, 20),
    since_s=st.floats(0, 1e5),
)
policies = st.builds(
    RestartPolicy,
    np=st.integers(1, 16),
    max_restarts=st.integers(0, 10),
    min_np=st.none() | st.integers(1, 16),
    start_timeout_s=st.floats(0.1, 1e4),
)


@given(policies, statuses)
def test_a_restart_always_fits_and_is_never_one_too_many(rules, found):
    decision = decide(rules, found)
    if isinstance(decision, Restart):
        assert not found.program_error
        assert found.restarts < rules.max_restarts
        assert rules.fewest <= decision.np <= min(rules.np, found.slots)


@given(policies, statuses)
def test_no_wait_is_without_end(rules, found):
    if isinstance(decide(rules, found), Wait):
        assert found.since_s < backoff_s(found.restarts, found.rank_died) + rules.start_timeout_s


@given(st.integers(0, 10_000), st.booleans())
def test_the_back_off_is_bounded(restarts, rank_died):
    assert (0 if rank_died and restarts == 0 else 1) <= backoff_s(restarts, rank_died) <= MAX_BACKOFF_S
