"""Which of Horovod's names are answered by what: one function for each module of Horovod.

Horovod and Keras are imported already where these are called. What belongs to the package `tf_keras`
(Keras 2), to TensorFlow alone or to PyTorch stays Horovod's own affair.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from airflow_hydrogen.contract.errors import OptimizerError

log = logging.getLogger(__name__)

# The versions of Horovod whose API was read and run under Keras 3.
_SERVED = "0.28"

_OURS = "airflow_hydrogen.runtime.keras"
_REPLACED = "_hydrogen_serves"

_ADVICE = {
    "DistributedOptimizer": f"{_OURS}.DistributedOptimizer(...)",
    "PartialDistributedOptimizer": f"{_OURS}.DistributedOptimizer(...)",
    "load_model": f"keras.models.load_model(...) and {_OURS}.DistributedOptimizer(...)",
    "BroadcastGlobalVariablesCallback": f"{_OURS}.BroadcastCallback()",
    "MetricAverageCallback": f"{_OURS}.MetricAverageCallback()",
    "LearningRateScheduleCallback": f"{_OURS}.LearningRateWarmupCallback(epochs), or a schedule of Keras",
    "LearningRateWarmupCallback": f"{_OURS}.LearningRateWarmupCallback(epochs)",
    "BestModelCheckpoint": "keras.callbacks.ModelCheckpoint(filepath, save_best_only=True)",
}


def operations(module: ModuleType) -> None:
    """`horovod.tensorflow.mpi_ops`."""
    if not (_has_keras_3(module) and _is_served()):
        return
    from airflow_hydrogen.runtime.horovod_bridge import variables

    _replace(module, "broadcast_", variables.broadcast_in_place)
    _replace(module, "init", variables.init)


def functions(module: ModuleType) -> None:
    """`horovod.tensorflow.functions`."""
    if not (_has_keras_3(module) and _is_served()):
        return
    from airflow_hydrogen.runtime.horovod_bridge import variables

    _replace(module, "broadcast_variables", variables.broadcast_variables)


def tensorflow(module: ModuleType) -> None:
    """`horovod.tensorflow`: the optimizer for Keras optimizers, the tapes, and synchronous normalization."""
    _rebind(module)
    if not _has_keras_3(module):
        return
    if not _is_served():
        _replace(module, "DistributedOptimizer", _refusing_keras_3)
        return
    from airflow_hydrogen.runtime.horovod_bridge import keras2, normalization, optimizers, tape, variables

    keras2.install()
    _replace(module, "DistributedOptimizer", optimizers.for_keras_3)
    _replace(module, "DistributedGradientTape", tape.for_any_variable)
    _replace(module, "PartialDistributedGradientTape", tape.for_any_variable)
    _replace(module, "broadcast_global_variables", variables.broadcast_global_variables)
    module.SyncBatchNormalization = normalization.SyncBatchNormalization  # type: ignore[attr-defined]


def tensorflow_elastic(module: ModuleType) -> None:
    """`horovod.tensorflow.elastic`."""
    if _has_keras_3(module) and _is_served():
        from airflow_hydrogen.runtime.horovod_bridge import elastic

        for name in ("run", "TensorFlowKerasState", "TensorFlowState"):
            setattr(module, name, getattr(elastic, name))


def keras_elastic(module: ModuleType) -> None:
    """`horovod.keras.elastic` and `horovod.tensorflow.keras.elastic`."""
    if _has_keras_3(module) and _is_served():
        from airflow_hydrogen.runtime.horovod_bridge import elastic

        for name in module.__all__:
            setattr(module, name, getattr(elastic, name))


def keras_callbacks(module: ModuleType) -> None:
    """`horovod.keras.callbacks` and `horovod.tensorflow.keras.callbacks`."""
    if not _has_keras_3(module):
        return
    if not _is_served():
        for name in _ADVICE:
            if name.endswith(("Callback", "Checkpoint")) and hasattr(module, name):
                setattr(module, name, _refusal(name))
        return
    from airflow_hydrogen.runtime.horovod_bridge import callbacks

    for name in (
        "BroadcastGlobalVariablesCallback",
        "MetricAverageCallback",
        "LearningRateScheduleCallback",
        "LearningRateWarmupCallback",
    ):
        setattr(module, name, getattr(callbacks, name))
    if hasattr(module, "BestModelCheckpoint"):
        refusal = _refusal("BestModelCheckpoint", "has no file under Keras 3")
        module.BestModelCheckpoint = refusal  # type: ignore[attr-defined]


def keras_api(module: ModuleType) -> None:
    """`horovod.keras` and `horovod.tensorflow.keras`."""
    _rebind(module)
    if not _has_keras_3(module):
        return
    if not _is_served():
        for name in ("DistributedOptimizer", "PartialDistributedOptimizer"):
            _replace(module, name, _refusing_keras_3)
        if hasattr(module, "load_model"):
            module.load_model = _refusal("load_model")  # type: ignore[attr-defined]
        return
    from airflow_hydrogen.runtime.horovod_bridge import keras2, optimizers, variables

    keras2.install()
    _replace(module, "DistributedOptimizer", optimizers.for_keras_3)
    _replace(module, "PartialDistributedOptimizer", optimizers.for_keras_3)
    _replace(module, "load_model", optimizers.load_model)
    _replace(module, "broadcast_global_variables", variables.broadcast_global_variables)


def is_keras_3(cls: type) -> bool:
    """Whether a class comes from the package `keras`, version 3: `tf_keras` and Keras 2 have other bases."""
    if not any(base.__module__.partition(".")[0] == "keras" for base in cls.__mro__):
        return False
    version = getattr(sys.modules.get("keras"), "__version__", "3")
    return int(version.partition(".")[0]) >= 3


@functools.cache
def announce() -> None:
    """Say once, on rank 0, who answers. Everything that is served calls it when it is used."""
    import horovod
    import horovod.tensorflow as hvd
    import keras

    if hvd.is_initialized() and hvd.rank() > 0:
        return
    log.warning(
        "Horovod's Keras API is served by airflow-hydrogen: Horovod %s does not work with Keras %s",
        horovod.__version__,
        keras.__version__,
    )


def by_name(original: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of Horovod's, by their names, defaults included."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _replace(module: ModuleType, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `make(original)` in the place of a function of Horovod's, once."""
    original = getattr(module, name, None)
    if original is None or hasattr(original, _REPLACED):
        return
    replacement = functools.wraps(original)(make(original))
    setattr(replacement, _REPLACED, True)
    setattr(module, name, replacement)


def _rebind(module: ModuleType) -> None:
    """Let a module that was imported before its parts were changed have the changed ones."""
    for source in ("mpi_ops", "functions"):
        for name, value in vars(importlib.import_module(f"horovod.tensorflow.{source}")).items():
            if hasattr(value, _REPLACED) and hasattr(module, name):
                setattr(module, name, value)


def _has_keras_3(module: ModuleType) -> bool:
    """Whether the Keras that a module of Horovod's works with is Keras 3; `horovod.keras` takes its own."""
    if module.__name__.startswith("horovod.keras"):
        return is_keras_3(importlib.import_module("keras").Model)
    return is_keras_3(importlib.import_module("tensorflow").keras.Model)


def _is_served() -> bool:
    version: str = importlib.import_module("horovod").__version__
    return version.startswith(f"{_SERVED}.")


def _refusing_keras_3(original: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        optimizer = by_name(original, args, kwargs)["optimizer"]
        if is_keras_3(type(optimizer)):
            _refusal(original.__name__)()
        return original(*args, **kwargs)

    return refuse


def _refusal(name: str, why: str = "") -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        version = importlib.import_module("horovod").__version__
        reason = why or (
            "is not known to work with Keras 3, and airflow-hydrogen serves the API of Horovod "
            f"{_SERVED} alone"
        )
        raise OptimizerError(f"{name} of Horovod {version} {reason}: use {_ADVICE[name]}")

    return refuse
