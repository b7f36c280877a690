"""How the progress of a scoring is told."""

from __future__ import annotations

import threading

from airflow_hydrogen.runtime.scoring.watching import progress_line, progress_told


def test_a_line_has_rows_rate_and_time_left():
    assert (
        progress_line(25_000, 100_000, 10) == "scored 25,000 of 100,000 rows, 2,500 rows/s, about 30 s left"
    )
    assert progress_line(100_000, 100_000, 10).endswith("about 0 s left")
    assert progress_line(25_000, None, 10) == "scored 25,000 rows, 2,500 rows/s"


def told(count, wanted, every_s=0.001):
    """The first lines, of a block that ends once there are so many."""
    lines, enough = [], threading.Event()

    def say(line):
        lines.append(line)
        if len(lines) == wanted:
            enough.set()

    ticks = iter(range(0, 10_000, 10))
    with progress_told(count, 100, say, every_s, clock=lambda: next(ticks)):
        assert enough.wait(20)
    return lines[:wanted]


def test_nothing_is_said_before_the_first_row():
    rows = iter([0, 0, 40, 80])
    assert told(lambda: next(rows, 100), 2) == [
        "scored 40 of 100 rows, 4 rows/s, about 15 s left",
        "scored 80 of 100 rows, 4 rows/s, about 5 s left",
    ]


def test_a_count_that_fails_is_said_once_and_the_scoring_goes_on():
    def count():
        raise ValueError("gone")

    assert told(count, 1) == ["Spark does not say how far the scoring is: ValueError: gone"]


def test_a_scoring_that_is_quicker_than_a_line_says_nothing():
    lines = []
    with progress_told(lambda: 100, 100, lines.append, every_s=3600):
        pass
    assert lines == []
