"""Unit tests run in the environment of `make check`, and find no more than that in a larger one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import pytest

# They take seconds to import, and minutes to install or to build.
ELSEWHERE = ("horovod", "keras", "tensorflow", "torch")


class _Elsewhere(MetaPathFinder):
    """Finds those that a test has made itself, and none that is installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ELSEWHERE:
            return None
        folders = [folder for folder in path or sys.path if "site-packages" not in folder]
        if spec := PathFinder.find_spec(fullname, folders, target):
            return spec
        raise ModuleNotFoundError(
            f"No module named {fullname!r} for unit tests: what needs it belongs in tests/integration",
            name=fullname,
        )


@contextlib.contextmanager
def _without_frameworks() -> Iterator[None]:
    finder = _Elsewhere()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    with _without_frameworks():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    with _without_frameworks():
        return (yield)
