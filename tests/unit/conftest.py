"""Unit tests run in the environment of `make check`, and find no more than that in a larger one.

Those of what runs where there is no Airflow find no Airflow either.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# They take seconds to import, and minutes to install or to build.
FRAMEWORKS = ("horovod", "keras", "tensorflow", "torch")
# Makefile runs these folders in a process of their own.
WITHOUT_AIRFLOW = ("contract", "horovod_build", "runtime")


class _Elsewhere(MetaPathFinder):
    """Finds those that a test has made itself, and none that is installed."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._packages:
            return None
        folders = [folder for folder in path or sys.path if "site-packages" not in folder]
        if spec := PathFinder.find_spec(fullname, folders, target):
            return spec
        raise ModuleNotFoundError(
            f"No module named {fullname!r} for these unit tests: what needs it belongs in another folder",
            name=fullname,
        )


@contextlib.contextmanager
def _no_more_than(path: Path) -> Iterator[None]:
    """While tests below a path are collected or run: what they have not is not found."""
    here = Path(__file__).parent
    without_airflow = any(path.is_relative_to(here / folder) for folder in WITHOUT_AIRFLOW)
    finder = _Elsewhere([*FRAMEWORKS, "airflow"] if without_airflow else FRAMEWORKS)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    with _no_more_than(collector.path):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    with _no_more_than(item.path):
        return (yield)
