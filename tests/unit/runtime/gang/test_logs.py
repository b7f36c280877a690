from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.gang.logs import BURST_LINES, LINES_PER_SECOND, GangLog, LineQueue


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def left_out(lines):
    counts = [re.fullmatch(r"\.\.\. ([\d,]+) lines were left out: too many at once", line) for line in lines]
    return sum(int(match[1].replace(",", "")) for match in counts if match)


def test_ordinary_output_passes_whole():
    queue = LineQueue(Clock())
    for number in range(100):
        queue.put(str(number))
    assert queue.take() == [str(number) for number in range(100)]
    assert queue.take(last=True) == []


def test_a_flood_is_cut_and_counted():
    clock = Clock()
    queue = LineQueue(clock)
    for number in range(100_000):
        queue.put(str(number))
    first = queue.take()
    assert len(first) == BURST_LINES
    clock.now += 1.0
    assert queue.take() == [f"... {100_000 - BURST_LINES:,} lines were left out: too many at once"]
    queue.put("the last one")
    assert queue.take() == ["the last one"]


def test_a_flood_is_counted_by_the_one_look_that_follows_it():
    clock = Clock()
    queue = LineQueue(clock)
    for number in range(3 * BURST_LINES):
        queue.put(str(number))
    clock.now += 0.1
    assert queue.take()[-1] == f"... {2 * BURST_LINES:,} lines were left out: too many at once"


@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 20), st.booleans()), max_size=6))
def test_every_line_is_shown_or_counted_and_the_rate_is_kept(bursts):
    clock = Clock()
    queue = LineQueue(clock)
    shown = []
    for lines, pause_s, takes in bursts:
        for _ in range(lines):
            queue.put("x")
        clock.now += pause_s
        if takes:
            shown += queue.take()
    shown += queue.take(last=True)
    passed = shown.count("x")
    assert passed + left_out(shown) == sum(lines for lines, _pause, _takes in bursts)
    assert passed <= BURST_LINES + LINES_PER_SECOND * clock.now + 1


def test_lines_of_ranks_are_folded_between_the_lines_of_progress(capsys):
    log = GangLog("all", folded=True)
    log.line(0, "step 1")
    log.report({"loss": 0.25}, None)
    log.line(1, "step 2")
    log.close()
    group = "::group::Training: output of the ranks"
    assert capsys.readouterr().out.splitlines() == [
        *(group, "[0] step 1", "::endgroup::", "[gang] loss=0.25"),
        *(group, "[1] step 2", "::endgroup::"),
    ]


def test_a_report_is_one_line_with_the_time_left(capsys):
    log = GangLog("log_callback_only")
    log.line(0, "noise")
    log.report({"epoch": 1, "loss": 0.25}, 61.6)
    log.report({"loss": 0.25}, None)
    assert capsys.readouterr().out.splitlines() == [
        "[gang] epoch=1, loss=0.25, about 62 s left",
        "[gang] loss=0.25",
    ]
