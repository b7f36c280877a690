"""Horovod's modules are changed as they are imported; a stand-in for Horovod, and no TensorFlow."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from airflow_hydrogen.runtime.rank import horovod_imports


def change(module: ModuleType) -> None:
    """What stands for the bridge here."""
    module.changes = getattr(module, "changes", 0) + 1  # type: ignore[attr-defined]


@pytest.fixture
def horovod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package `horovod` with a module that is to be changed and one that is not; neither imported yet."""
    package = tmp_path / "horovod"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "served.py").write_text("def answer(): return 1\n")
    (package / "other.py").write_text("")
    for name in [name for name in sys.modules if name.partition(".")[0] == "horovod"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "stands_for_the_bridge", sys.modules[__name__])
    monkeypatch.setattr(horovod_imports, "_CHANGES", {"horovod.served": ("stands_for_the_bridge:change",)})
    yield
    horovod_imports.uninstall()
    for name in [name for name in sys.modules if name.partition(".")[0] == "horovod"]:
        del sys.modules[name]


@pytest.mark.usefixtures("horovod")
def test_module_is_changed_when_it_is_imported() -> None:
    horovod_imports.install()
    horovod_imports.install()
    assert importlib.import_module("horovod.served").changes == 1
    assert not hasattr(importlib.import_module("horovod.other"), "changes")


@pytest.mark.usefixtures("horovod")
def test_module_that_was_imported_before_is_changed_at_once() -> None:
    module = importlib.import_module("horovod.served")
    horovod_imports.install()
    assert module.changes == 1


@pytest.mark.usefixtures("horovod")
def test_changed_module_has_its_source_and_its_file() -> None:
    horovod_imports.install()
    module = importlib.import_module("horovod.served")
    assert inspect.getsource(module.answer) == "def answer(): return 1\n"
    assert module.__spec__ is not None
    assert str(module.__spec__.origin).endswith("served.py")


@pytest.mark.usefixtures("horovod")
def test_nothing_is_changed_after_uninstall() -> None:
    horovod_imports.install()
    horovod_imports.uninstall()
    assert not hasattr(importlib.import_module("horovod.served"), "changes")
    assert not any(type(finder).__module__ == horovod_imports.__name__ for finder in sys.meta_path)


def test_install_imports_nothing() -> None:
    before = set(sys.modules)
    horovod_imports.install()
    horovod_imports.uninstall()
    assert set(sys.modules) == before
