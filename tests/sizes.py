"""Sizes of tests, and how long one of each may take: `pytest -m small`.

The folder decides, unless a test or its file carries another size's mark. What its fixtures took counts as
its own, so that the first test that asks for a server pays for it. The summary lists those over their budget.
A run fails for three times a budget only, and in CI only: where the environment variable CI is set. Other
work on the machine slows all of them down, so that seconds count for less there while its load is more than
one process a processor.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

# In seconds. Small: one process. Medium: Spark, ranks or servers. Large: several of them, or an Airflow.
BUDGETS = {"small": 5.0, "medium": 60.0, "large": 300.0}
FOLDERS = {"unit": "small", "contract": "small", "integration": "medium", "e2e": "large"}
FAILS_FROM = 3.0


def size_of(item: pytest.Item) -> str | None:
    """By its marks or else by its folder; None in folders that are run on their own."""
    marked = [mark.name for mark in item.iter_markers() if mark.name in BUDGETS]
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return marked[0] if marked else FOLDERS.get(folder)


def over_budget(seconds: Mapping[str, float], sizes: Mapping[str, str], factor: float = 1.0) -> list[str]:
    """A line for each test over so many times its budget, the worst first."""
    over = {
        test: spent / BUDGETS[sizes[test]]
        for test, spent in seconds.items()
        if spent > factor * BUDGETS[sizes[test]]
    }
    return [
        f"{seconds[test]:.1f} s of {BUDGETS[sizes[test]]:.0f} s ({sizes[test]}): {test}"
        for test in sorted(over, key=lambda test: -over[test])
    ]


class Budgets:
    """The plugin that adds up what each test takes, in the process that prints the summary."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._alone: dict[str, float] = defaultdict(float)  # as if nothing else had run
        self._sizes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        for size in BUDGETS:
            if size in report.keywords:
                self._seconds[report.nodeid] += report.duration
                self._alone[report.nodeid] += report.duration / crowd
                self._sizes[report.nodeid] = size

    def _failing(self) -> list[str]:
        return over_budget(self._alone, self._sizes, FAILS_FROM) if os.environ.get("CI") else []

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._failing() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if lines := over_budget(self._seconds, self._sizes):
            terminalreporter.section("tests over their budget")
            for line in lines:
                terminalreporter.line(line)
        if failing := self._failing():
            terminalreporter.line(
                f"{len(failing)} of them took {FAILS_FROM:.0f} times their budget or more, which fails a run "
                f"in CI: make them faster, or give them the mark of another size (tests/sizes.py)"
            )
