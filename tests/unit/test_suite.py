"""The tests' own rules: sizes with their budgets, and what unit tests may import."""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sizes import BUDGETS, Budgets, over_budget, size_of


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))


def run_of(*tests: tuple[str, str, float]) -> SimpleNamespace:
    """A session in which these tests passed: name, size, seconds. Half of them went into fixtures."""
    budgets, session = Budgets(), SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    for name, size, seconds in tests:
        report: Any = SimpleNamespace(nodeid=name, keywords={size: 1, name: 1}, duration=seconds / 2)
        budgets.pytest_runtest_logreport(report)
        budgets.pytest_runtest_logreport(report)
    lines: list[str] = []
    terminal: Any = SimpleNamespace(section=lines.append, line=lines.append)
    budgets.pytest_sessionfinish(session)  # type: ignore[arg-type]
    budgets.pytest_terminal_summary(terminal)
    return SimpleNamespace(status=session.exitstatus, said="\n".join(lines))


def test_the_worst_of_those_over_their_budget_comes_first() -> None:
    seconds = {"a": 6.0, "b": 5.0, "c": 90.0, "d": 299.0}
    sizes = {"a": "small", "b": "small", "c": "medium", "d": "large"}
    assert over_budget(seconds, sizes) == ["90.0 s of 60 s (medium): c", "6.0 s of 5 s (small): a"]
    assert over_budget(seconds, sizes, 1.4) == ["90.0 s of 60 s (medium): c"]


@pytest.mark.parametrize(("ci", "fails"), [("true", True), ("", False), (None, False)])
def test_three_times_a_budget_fails_the_run_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str | None, fails: bool
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    run = run_of(("slow", "small", 3 * BUDGETS["small"] + 1), ("quick", "large", 20.0))
    assert run.status == (pytest.ExitCode.TESTS_FAILED if fails else pytest.ExitCode.OK)
    assert "16.0 s of 5 s (small): slow" in run.said
    assert ("fails a run in CI" in run.said) == fails
    assert "quick" not in run.said


def test_a_test_a_little_over_its_budget_is_only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    run = run_of(("slow", "medium", 2 * BUDGETS["medium"]))
    assert run.status == pytest.ExitCode.OK
    assert "120.0 s of 60 s (medium): slow" in run.said


def test_on_a_crowded_machine_a_run_does_not_fail_for_what_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(os, "getloadavg", lambda: (4.0 * (os.cpu_count() or 1), 0.0, 0.0))
    assert run_of(("slow", "small", 8 * BUDGETS["small"])).status == pytest.ExitCode.OK
    assert run_of(("slow", "small", 16 * BUDGETS["small"])).status == pytest.ExitCode.TESTS_FAILED


@pytest.mark.medium
def test_a_mark_comes_before_the_folder(request: pytest.FixtureRequest) -> None:
    assert size_of(request.node) == "medium"


def test_a_unit_test_is_small(request: pytest.FixtureRequest) -> None:
    assert size_of(request.node) == "small"
    assert request.node.get_closest_marker("small") is not None


@pytest.mark.parametrize("name", ["tensorflow", "keras", "horovod.tensorflow", "torch"])
def test_unit_tests_import_no_framework(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="belongs in another folder"):
        importlib.import_module(name)
