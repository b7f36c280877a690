from __future__ import annotations

from airflow_hydrogen.runtime.gang.watchdog import RankState, find_stall, odd_one_out
from airflow_hydrogen.runtime.progress import Beat


def state(
    activity="epoch 0, step 1",
    marks=5,
    heard_at=100.0,
    moved_at=100.0,
    idle_s=0.0,
    host="a",
    waiting=False,
    speaks=True,
    stack=(),
):
    return RankState(host, Beat(marks, activity, idle_s, waiting, stack), heard_at, moved_at, speaks)


def test_a_gang_that_moves_is_left_alone():
    assert find_stall({0: state(), 1: state(moved_at=40.0)}, 105.0, 10.0, 60.0) is None


def test_a_rank_that_does_not_answer_is_named_with_its_host():
    stall = find_stall({0: state(), 1: state(heard_at=80.0, host="b")}, 100.0, 10.0, 60.0)
    assert (stall.rank, stall.host) == (1, "b")
    assert "has not answered for 20 s (stall_timeout_s=10)" in stall.summary
    assert "epoch 0, step 1" in stall.summary


def test_a_rank_that_is_only_starting_has_more_time():
    starting = {0: state(), 1: state(marks=0, heard_at=80.0, speaks=False)}
    assert find_stall(starting, 100.0, 10.0, 60.0) is None
    assert find_stall({1: starting[1]}, 140.0, 10.0, 60.0).rank == 1


def test_the_rank_that_skipped_a_collective_is_named():
    ranks = {
        0: state("allreduce 'x'", moved_at=80.0, idle_s=20.0, waiting=True),
        1: state("main", moved_at=79.0, idle_s=21.0, stack=("train.py:7 in main",)),
        2: state("allreduce 'x'", moved_at=80.0, idle_s=20.0, waiting=True),
    }
    stall = find_stall(ranks, 100.0, 10.0, 60.0)
    assert stall.rank == 1
    assert "no progress for 20 s" in stall.summary
    assert (
        "is at 'main', the others at \"allreduce 'x'\"; it stands in\n  train.py:7 in main" in stall.summary
    )


def test_of_two_ranks_the_one_that_does_not_wait_holds_up_the_other():
    ranks = {0: state("allreduce", idle_s=20.4, waiting=True), 1: state("start", idle_s=20.0)}
    assert odd_one_out(ranks) == 1


def test_of_two_ranks_at_steps_it_is_the_one_that_stopped_first_whenever_it_was_heard():
    ranks = {
        0: state("epoch 1, step 4", idle_s=20.4, heard_at=100.5),
        1: state("epoch 1, step 3", idle_s=20.0, heard_at=100.0),
    }
    assert odd_one_out(ranks) == 1


def test_a_main_that_has_left_no_mark_yet_may_take_its_time():
    assert find_stall({0: state(marks=0, moved_at=0.0)}, 100.0, 10.0, 60.0) is None


def test_progress_is_what_adds_marks():
    first = state(marks=5, moved_at=10.0)
    assert first.after(Beat(5, "x"), 20.0).moved_at == 10.0
    assert first.after(Beat(6, "x"), 20.0).moved_at == 20.0
    assert first.after(Beat(5, "x"), 20.0).heard_at == 20.0
