"""The ranks' output: shown in the driver's log, and thinned out where there is too much of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from airflow_hydrogen.contract.gang import Verbosity
from airflow_hydrogen.runtime.log_groups import LogGroup

LINES_PER_SECOND = 200.0
BURST_LINES = 2_000
MAX_WAITING_LINES = 2_000


class GangLog:
    """Prints the ranks' lines, rank in front, and one line of progress for each report.

    Args:
        verbosity: of the ranks' lines.
        folded: put these into groups, so that in Airflow the lines of progress are those in sight.
    """

    def __init__(self, verbosity: Verbosity, *, folded: bool = False) -> None:
        self._verbosity = verbosity
        self._group = LogGroup("Training: output of the ranks", folded)

    def line(self, rank: int, text: str) -> None:
        """One line of a rank's output."""
        if self._verbosity == "all":
            self._group.detail(f"[{rank}] {text}")

    def report(self, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        """One `report`.

        Args:
            metrics: name -> number.
            seconds_left: how long the training will still take, if that is known.
        """
        numbers = ", ".join(f"{name}={value:.6g}" for name, value in metrics.items())
        left = "" if seconds_left is None else f", about {seconds_left:.0f} s left"
        self._group.say(f"[gang] {numbers}{left}")

    def event(self, text: str) -> None:
        """What happens to the gang as a whole."""
        self._group.say(f"[gang] {text}")

    def close(self) -> None:
        """No more lines will come."""
        self._group.end()


class LineQueue:
    """Lines on their way to the driver: bounded in number and in rate, never a reason to wait.

    A rank that prints a million lines must neither stand still because the driver does not keep up, nor fill
    the driver's log. Up to `BURST_LINES` at once and `LINES_PER_SECOND` in the long run get through; for the
    others there is one line that counts them.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._allowance = float(BURST_LINES)
        self._filled_at = clock()

    def put(self, text: str) -> None:
        """Add a line, or count it as left out."""
        if not self._may_pass():
            self._left_out += 1
            return
        self._count_left_out()
        self._allowance -= 1
        self._lines.append(text)

    def take(self, *, last: bool = False) -> list[str]:
        """All that waits, and the count of what was left out once lines may pass again.

        Args:
            last: no more lines will come.
        """
        taken = self._take_lines()
        if last or self._may_pass():
            self._count_left_out()
        return taken + self._take_lines()

    def _take_lines(self) -> list[str]:
        return [self._lines.popleft() for _ in range(len(self._lines))]

    def _may_pass(self) -> bool:
        now = self._clock()
        earned = (now - self._filled_at) * LINES_PER_SECOND
        self._allowance = min(float(BURST_LINES), self._allowance + earned)
        self._filled_at = now
        return self._allowance >= 1 and len(self._lines) < MAX_WAITING_LINES

    def _count_left_out(self) -> None:
        if self._left_out:
            self._lines.append(f"... {self._left_out:,} lines were left out: too many at once")
            self._left_out = 0
