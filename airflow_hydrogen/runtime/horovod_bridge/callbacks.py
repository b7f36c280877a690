"""Horovod's Keras callbacks, under Keras 3."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.horovod_bridge.serve import announce
from airflow_hydrogen.runtime.keras import collectives
from airflow_hydrogen.runtime.keras.synchronize import BroadcastCallback
from airflow_hydrogen.runtime.keras.synchronize import MetricAverageCallback as _MetricAverageCallback
from airflow_hydrogen.runtime.keras.warmup import require_plain_rate

log = logging.getLogger(__name__)


class BroadcastGlobalVariablesCallback(BroadcastCallback):
    """All ranks start from one rank's model and optimizer.

    Before the first step, where Horovod broadcasts after it, and once, however often it is given to `fit`.
    The seeds of dropout stay each rank's own.

    Args:
        root_rank: whose.
        device: where the variables travel; by default where Horovod puts them.
        local_variables: a variable, or several, that stay each rank's own.
    """

    def __init__(self, root_rank: int, device: str = "", local_variables: Any = None) -> None:
        super().__init__(root_rank)
        announce()
        self.broadcast_done = False
        self._device = device
        if local_variables is not None:
            is_one = hasattr(local_variables, "shape")
            for variable in [local_variables] if is_one else local_variables:
                self.register_local_var(variable)

    def register_local_var(self, var: Any) -> None:
        """Leave a variable out.

        Raises:
            OptimizerError: it is none.
        """
        if not isinstance(var, (tf.Variable, keras.Variable)):
            raise OptimizerError(f"local variables must be variables, found {var!r}")
        self.local_variables.append(var)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Broadcast, as soon as the model is built."""
        if not self.broadcast_done:
            super().on_train_begin(logs)

    def _broadcast(self) -> None:
        with tf.device(self._device):
            super()._broadcast()
        self.broadcast_done = True


class MetricAverageCallback(_MetricAverageCallback):
    """Average an epoch's metrics over the ranks, in place.

    Args:
        device: where.
    """

    def __init__(self, device: str = "") -> None:
        super().__init__()
        announce()
        self._device = device

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Average."""
        with tf.device(self._device):
            super().on_epoch_end(epoch, logs)


class LearningRateScheduleCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """From one epoch to another, set the learning rate to `initial_lr * multiplier(epoch)`.

    As `horovod.keras.callbacks.LearningRateScheduleCallback`. Momentum correction (Goyal et al., Accurate,
    Large Minibatch SGD, 2017, section 3): the velocity of SGD and RMSprop has the old rate in it, and is
    scaled to the new one when the rate changes. Horovod changes the momentum for that one batch, which comes
    to the same; with Nesterov's momentum it also changes the look-ahead of that batch.

    Args:
        initial_lr: the rate that is multiplied.
        multiplier: a number, which is raised to the power of the epochs since `start_epoch`, or a function of
            the epoch.
        start_epoch, end_epoch: the first epoch, and the one before which it ends; None: it does not.
        staircase: change the rate at the first batch of an epoch; else at every batch, by parts of epochs.
        momentum_correction: see above.
        steps_per_epoch: needed with `staircase=False` where Keras does not know it.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        announce()
        if initial_lr is None:
            raise OptimizerError(f"{type(self).__name__} needs initial_lr, the rate that is multiplied")
        self.initial_lr = initial_lr
        self.start_epoch = start_epoch
        self.end_epoch = end_epoch
        self.staircase = staircase
        self.momentum_correction = momentum_correction
        self.steps_per_epoch = steps_per_epoch
        self.current_epoch = 0
        self._scaling: Any = None
        self.multiplier = (
            multiplier if callable(multiplier) else lambda epoch: multiplier ** (epoch - start_epoch)
        )

    def set_model(self, model: keras.Model) -> None:
        """Look at the optimizer.

        Raises:
            OptimizerError: its rate, or its momentum, cannot be changed.
        """
        super().set_model(model)
        self._scaling = None
        require_plain_rate(model.optimizer, type(self).__name__)
        self._velocities()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find out how many steps an epoch has.

        Raises:
            OptimizerError: nobody knows.
        """
        if not self.staircase and not self.steps_per_epoch:
            self.steps_per_epoch = self.params.get("steps")
            if not self.steps_per_epoch:
                raise OptimizerError(
                    f"{type(self).__name__} does not know the steps of an epoch, because the dataset's "
                    "length is unknown: pass steps_per_epoch"
                )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self.current_epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate, where it is to change."""
        if self.current_epoch < self.start_epoch:
            return
        if self.end_epoch is not None and self.current_epoch >= self.end_epoch:
            return
        if not self.staircase:
            assert self.steps_per_epoch  # since on_train_begin
            self._set_rate(self.current_epoch + batch / self.steps_per_epoch)
        elif batch == 0:
            self._set_rate(self.current_epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the rate as `lr`."""
        if logs is not None:
            logs["lr"] = float(self.model.optimizer.learning_rate)

    def _set_rate(self, epoch: float) -> None:
        old = float(self.model.optimizer.learning_rate)
        new = self.initial_lr * self.multiplier(epoch)
        self.model.optimizer.learning_rate = new
        if old > 0 and new != old:
            self._scale(self._velocities(), new / old)

    def _scale(self, velocities: Sequence[Any], factor: float) -> None:
        if self._scaling is None and velocities:

            def scale(factor: Any) -> None:
                for velocity in velocities:
                    velocity.assign(velocity * tf.cast(factor, velocity.dtype))

            self._scaling = tf.function(scale, autograph=False)  # one call, however many there are
        if self._scaling is not None:
            self._scaling(tf.constant(factor))

    def _velocities(self) -> Sequence[Any]:
        """The variables of the optimizer that hold sums of past steps, rate included."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if not self.momentum_correction or not getattr(optimizer, "momentum", 0):
            return ()
        for kind, name in ((keras.optimizers.SGD, "momentums"), (keras.optimizers.RMSprop, "_momentums")):
            if isinstance(optimizer, kind):
                return getattr(optimizer, name, ()) if optimizer.built else ()
        raise OptimizerError(
            f"{type(self).__name__} can correct the momentum of SGD and RMSprop, found "
            f"{type(optimizer).__name__}: pass momentum_correction=False"
        )


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raise the learning rate from `initial_lr / size` to `initial_lr`, batch by batch.

    With `steps_per_execution` a rate holds for the steps of one execution.
    As `horovod.keras.callbacks.LearningRateWarmupCallback`: gradual warm-up of Goyal et al. (2017).

    Args:
        initial_lr: the rate at the end.
        warmup_epochs: how long.
        momentum_correction, steps_per_epoch: of `LearningRateScheduleCallback`.
        verbose: 1 says when it is done.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        if warmup_epochs <= 0:
            raise OptimizerError(f"warmup_epochs must be > 0, found {warmup_epochs}")

        def multiplier(epoch: float) -> float:
            size = collectives.size()
            assert self.steps_per_epoch  # since on_train_begin
            # One step ahead, so that the last batch of the warm-up has the rate itself.
            done = min(epoch + 1 / self.steps_per_epoch, warmup_epochs)
            return (done * (size - 1) / warmup_epochs + 1) / size

        super().__init__(
            initial_lr,
            multiplier,
            end_epoch=warmup_epochs,
            staircase=False,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )
        self.verbose = verbose

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the rate; end the warm-up exactly at `initial_lr`, and say so."""
        assert self.end_epoch is not None  # since __init__
        ends = epoch < self.end_epoch <= epoch + 1
        if ends:
            self._set_rate(self.end_epoch)
        super().on_epoch_end(epoch, logs)
        if ends and self.verbose > 0 and collectives.rank() == 0:
            rate = float(self.model.optimizer.learning_rate)
            print(f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to {rate:g}.")
