"""The guard on Horovod's Keras support, against a stand-in for Horovod: no TensorFlow is imported here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.rank import horovod_guard


@pytest.fixture
def horovod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package `horovod` of the shape of the real one, not imported yet."""
    package = tmp_path / "horovod" / "_keras"
    package.mkdir(parents=True)
    (tmp_path / "horovod" / "__init__.py").write_text("")
    (package / "__init__.py").write_text(
        "def create_distributed_optimizer(keras, optimizer, name): return name\n"
    )
    (package / "callbacks.py").write_text(
        "class MetricAverageCallbackImpl:\n    def __init__(self, backend):\n        self.backend = backend\n"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "horovod"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield ModuleType("horovod")
    horovod_guard.uninstall()
    for name in [name for name in sys.modules if name.partition(".")[0] == "horovod"]:
        del sys.modules[name]


def a_class(module: str, *bases: type) -> type:
    return type("Adam", bases, {"__module__": module})


@pytest.mark.usefixtures("horovod")
@pytest.mark.parametrize("imported_before", [True, False])
def test_keras_3_optimizer_is_refused(imported_before: bool) -> None:
    if imported_before:
        importlib.import_module("horovod._keras")
    horovod_guard.install()
    horovod_guard.install()
    module = importlib.import_module("horovod._keras")
    adam = a_class("keras.src.optimizers.adam")()
    with pytest.raises(
        OptimizerError, match=r"Use airflow_hydrogen.runtime.keras.DistributedOptimizer\(Adam"
    ):
        module.create_distributed_optimizer(None, adam, "name")
    assert module.create_distributed_optimizer.__wrapped__(None, adam, "name") == "name"
    own = a_class("main", type(adam))()
    with pytest.raises(OptimizerError):
        module.create_distributed_optimizer(None, own, "name")


@pytest.mark.usefixtures("horovod")
@pytest.mark.parametrize("module", ["tf_keras.src.optimizers.adam", "torch.optim", "kerasish"])
def test_other_optimizers_are_horovods_affair(module: str) -> None:
    horovod_guard.install()
    create = importlib.import_module("horovod._keras").create_distributed_optimizer
    assert create(None, a_class(module)(), name="name") == "name"


@pytest.mark.usefixtures("horovod")
def test_keras_2_is_horovods_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    keras = ModuleType("keras")
    keras.__version__ = "2.15.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keras", keras)
    horovod_guard.install()
    create = importlib.import_module("horovod._keras").create_distributed_optimizer
    assert create(None, a_class("keras.src.optimizers.adam")(), name="name") == "name"


@pytest.mark.usefixtures("horovod")
def test_keras_3_callback_is_refused() -> None:
    horovod_guard.install()
    implementation = importlib.import_module("horovod._keras.callbacks").MetricAverageCallbackImpl
    keras_callback = a_class("keras.src.callbacks.callback")
    with pytest.raises(OptimizerError, match=r"use airflow_hydrogen.runtime.keras.MetricAverageCallback\(\)"):
        type("Average", (implementation, keras_callback), {})(None)
    assert implementation("backend").backend == "backend"


def test_install_imports_nothing() -> None:
    before = set(sys.modules)
    horovod_guard.install()
    horovod_guard.uninstall()
    assert set(sys.modules) == before
    assert not any(type(finder).__module__ == horovod_guard.__name__ for finder in sys.meta_path)
