"""Callbacks that keep the ranks the same: the initial broadcast, and averaged metrics."""

from __future__ import annotations

import logging
import numbers
import zlib
from typing import Any

import keras
import numpy as np

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.keras import collectives, state
from airflow_hydrogen.runtime.keras.optimizer import is_distributed

log = logging.getLogger(__name__)


class BroadcastCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Start every rank from rank 0's model and optimizer.

    Does what `horovod.keras.callbacks.BroadcastGlobalVariablesCallback` did before Keras 3, but before the
    first step instead of after it, and leaves out the states of random seeds: with rank 0's, every rank would
    drop out the same units. Ranks that come with rank 0's seeds all the same get others.

    Also refuses an optimizer that does not average, and turns XLA off for the model, which has no
    Horovod operations.

    Args:
        root_rank: start from this rank's instead.

    Attributes:
        local_variables: what stays each rank's own.
    """

    def __init__(self, root_rank: int = 0) -> None:
        super().__init__()
        self.root_rank = root_rank
        self.local_variables: list[Any] = []

    def set_model(self, model: keras.Model) -> None:
        """Before Keras makes the training function: see to it that it can be run.

        Raises:
            OptimizerError: the model's optimizer averages nothing.
        """
        super().set_model(model)
        if collectives.size() == 1:
            return
        if _averages_nothing(model):
            name = type(model.optimizer).__name__
            raise OptimizerError(
                f"the model is compiled with a plain {name}: the {collectives.size()} ranks would each train "
                "a model of their own. Compile it with "
                f"airflow_hydrogen.runtime.keras.DistributedOptimizer({name}(...))"
            )
        if model.jit_compile:
            log.warning("XLA cannot compile Horovod's operations: jit_compile is turned off for this model")
            model.jit_compile = False
            model.train_function = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Broadcast, as soon as the model is built."""
        if collectives.size() > 1:
            state.when_built(self.model, self._broadcast)

    def _broadcast(self) -> None:
        state.broadcast_state(self.model, self.root_rank, self.local_variables)
        state.decorrelate_seeds(self.model)


class MetricAverageCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Average the metrics of an epoch over the ranks, in place.

    As `horovod.keras.callbacks.MetricAverageCallback`. Callbacks that stand behind it in the list see the
    same numbers on every rank: EarlyStopping stops all ranks or none. The mean of the ranks' values is that
    of all the data for means over rows (losses, accuracy), since every rank has as many; for others, such
    as AUC, it is an estimate.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Average `logs`, validation metrics included.

        Raises:
            OptimizerError: the ranks have different metrics.
        """
        if not logs:
            return
        # Sorted: the ranks must agree on the order, and a dict has that of its insertions.
        arrays = {name: np.asarray(logs[name], "float64") for name in sorted(logs) if _is_numeric(logs[name])}
        shapes = [f"{name}{list(array.shape) if array.ndim else ''}" for name, array in arrays.items()]
        if collectives.differing([zlib.crc32(repr(shapes).encode())]):
            everyone = collectives.gather_json(shapes)
            raise OptimizerError(
                "the ranks have different metrics: "
                + "; ".join(f"rank {rank} has {', '.join(found)}" for rank, found in enumerate(everyone))
                + ": call fit() with the same metrics, validation data and callbacks on every rank"
            )
        means = iter(collectives.average([number for array in arrays.values() for number in array.flat]))
        for name, array in arrays.items():
            mean = np.array([next(means) for _ in range(array.size)]).reshape(array.shape)
            logs[name] = mean if array.ndim else mean.item()


def _averages_nothing(model: keras.Model) -> bool:
    optimizer = model.optimizer
    # A train_step of the user's own may average by itself. A LossScaleOptimizer around ours has an error of
    # its own, when it is applied.
    keras_step = type(model).train_step.__module__.partition(".")[0] == "keras"
    ours = is_distributed(optimizer) or is_distributed(getattr(optimizer, "inner_optimizer", None))
    return optimizer is not None and keras_step and not ours


def _is_numeric(value: Any) -> bool:
    """A number, or an array of them: a metric for each class is one."""
    return isinstance(value, numbers.Real) or (
        hasattr(value, "shape") and np.asarray(value).dtype.kind not in "OSU"
    )
