"""What is served, and what is left to Horovod; stand-ins for Horovod and Keras, and no TensorFlow."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.horovod_bridge import __main__ as command
from airflow_hydrogen.runtime.horovod_bridge import serve


def a_class(module: str, *bases: type) -> Any:
    return type("Adam", bases, {"__module__": module})


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("keras")
    module.__version__ = "3.9.0"  # type: ignore[attr-defined]
    module.Model = a_class("keras.src.models.model")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keras", module)
    return module


@pytest.fixture
def later_horovod(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A version of Horovod that nobody has looked at, its Keras package."""
    package = ModuleType("horovod")
    package.__version__ = "0.29.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "horovod", package)
    for name in ("tensorflow", "tensorflow.mpi_ops", "tensorflow.functions"):
        monkeypatch.setitem(sys.modules, f"horovod.{name}", ModuleType(f"horovod.{name}"))
    module = ModuleType("horovod.keras")

    def DistributedOptimizer(optimizer: Any, name: Any = None) -> Any:
        return name

    module.DistributedOptimizer = DistributedOptimizer  # type: ignore[attr-defined]
    return module


@pytest.mark.usefixtures("keras")
def test_version_of_horovod_that_is_not_served_averages_nothing_in_silence(later_horovod: ModuleType) -> None:
    serve.keras_api(later_horovod)
    serve.keras_api(later_horovod)
    with pytest.raises(
        OptimizerError, match=r"of Horovod 0\.29\.0 is not known to work with Keras 3.*serves the"
    ):
        later_horovod.DistributedOptimizer(a_class("main", a_class("keras.src.optimizers.adam"))())
    assert later_horovod.DistributedOptimizer(a_class("tf_keras.src.optimizers")(), name="name") == "name"


@pytest.mark.usefixtures("keras")
def test_callbacks_of_a_version_that_is_not_served_are_refused(later_horovod: ModuleType) -> None:
    callbacks = ModuleType("horovod.keras.callbacks")
    callbacks.MetricAverageCallback = object  # type: ignore[attr-defined]
    serve.keras_callbacks(callbacks)
    with pytest.raises(OptimizerError, match=r"use airflow_hydrogen.runtime.keras.MetricAverageCallback\(\)"):
        callbacks.MetricAverageCallback()
    assert not hasattr(callbacks, "BestModelCheckpoint")


@pytest.mark.parametrize("module", ["tf_keras.src.optimizers.adam", "torch.optim", "kerasish"])
@pytest.mark.usefixtures("keras")
def test_other_optimizers_are_horovods_affair(module: str) -> None:
    assert not serve.is_keras_3(a_class(module))


def test_keras_2_is_horovods_affair(keras: ModuleType, later_horovod: ModuleType) -> None:
    keras.__version__ = "2.15.0"  # type: ignore[attr-defined]
    assert not serve.is_keras_3(a_class("keras.src.optimizers.adam"))
    before = later_horovod.DistributedOptimizer
    serve.keras_api(later_horovod)
    assert later_horovod.DistributedOptimizer is before


@pytest.mark.parametrize("arguments", [[], ["--help"], ["no_such_script.py"]])
def test_command_without_a_script_says_how_it_is_used(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["horovod_bridge", *arguments])
    assert command.main() == 2
    assert (
        "usage: horovodrun -np N python -m airflow_hydrogen.runtime.horovod_bridge" in capsys.readouterr().err
    )
