"""Horovod's own Keras support, under Keras 3: an error instead of a wrong model.

Horovod 0.28 reduces gradients in methods that Keras 3 never calls: with `hvd.DistributedOptimizer(adam)`
every rank trains a model of its own, and nothing fails. Its Keras callbacks fail with errors that do not
say why. A rank's process installs this guard before it runs `main`; nothing is imported until `main`
imports Horovod. Horovod's optimizers for PyTorch and for Keras 2 (`tf_keras`) are left alone. Its collectives
are made to leave marks for the watchdog (`progress`).

Standard library only.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime import progress

_CALLBACKS = {
    "BroadcastGlobalVariablesCallbackImpl": "BroadcastCallback()",
    "MetricAverageCallbackImpl": "MetricAverageCallback()",
    "LearningRateScheduleCallbackImpl": "LearningRateWarmupCallback(epochs), or a schedule of Keras",
    "LearningRateWarmupCallbackImpl": "LearningRateWarmupCallback(epochs)",
}


def install() -> None:
    """Guard Horovod in this process, now if it is imported already, else when it is. Idempotent."""
    for name, patch in _PATCHES.items():
        if name in sys.modules:
            patch(sys.modules[name])
    if not any(isinstance(finder, _GuardFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _GuardFinder())


def uninstall() -> None:
    """Guard no further imports. Modules that were imported meanwhile stay guarded."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _GuardFinder)]


def _guard_optimizer(module: ModuleType) -> None:
    original = module.create_distributed_optimizer
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def create_distributed_optimizer(keras: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_keras_3(type(optimizer)):
            name = type(optimizer).__name__
            raise OptimizerError(
                f"Horovod's DistributedOptimizer({name}) averages no gradients under Keras 3: every rank "
                "would train a model of its own. Use airflow_hydrogen.runtime.keras.DistributedOptimizer"
                f"({name}(...)), or Keras 2 (TF_USE_LEGACY_KERAS=1 and the package tf_keras)"
            )
        return original(keras, optimizer, *args, **kwargs)

    module.create_distributed_optimizer = create_distributed_optimizer  # type: ignore[attr-defined]


def _guard_callbacks(module: ModuleType) -> None:
    for name, ours in _CALLBACKS.items():
        implementation = getattr(module, name, None)
        if implementation is not None and not hasattr(implementation.__init__, "__wrapped__"):
            implementation.__init__ = _refusing(implementation.__init__, ours)


def _refusing(original: Callable[..., None], ours: str) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if _is_keras_3(type(self)):
            raise OptimizerError(
                f"Horovod's {type(self).__name__} does not work under Keras 3; use "
                f"airflow_hydrogen.runtime.keras.{ours}, or airflow_hydrogen.runtime.keras.callbacks() for "
                "all that a training on several ranks needs"
            )
        original(self, *args, **kwargs)

    return init


def _is_keras_3(cls: type) -> bool:
    """Whether a class comes from the package `keras`, version 3: `tf_keras` and Keras 2 have other bases."""
    if not any(base.__module__.partition(".")[0] == "keras" for base in cls.__mro__):
        return False
    version = getattr(sys.modules.get("keras"), "__version__", "3")
    return int(version.partition(".")[0]) >= 3


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "horovod._keras": _guard_optimizer,
    "horovod._keras.callbacks": _guard_callbacks,
    "horovod.tensorflow.mpi_ops": progress.watch_horovod,
    "horovod.torch.mpi_ops": progress.watch_horovod,
}


class _GuardFinder(importlib.abc.MetaPathFinder):
    """Finds the guarded modules where the other finders do, and patches them once they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _PATCHES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _GuardLoader(spec.loader, _PATCHES[fullname])
                return spec
        return None


class _GuardLoader(importlib.abc.Loader):
    def __init__(self, loader: Any, patch: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._patch(module)

    def __getattr__(self, name: str) -> Any:
        """Everything else a loader offers (get_source, is_package, resources) is the real one's."""
        return getattr(self._loader, name)
