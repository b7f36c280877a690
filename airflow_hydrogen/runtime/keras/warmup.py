"""Learning-rate warm-up."""

from __future__ import annotations

import logging
from typing import Any

import keras

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.keras import collectives

log = logging.getLogger(__name__)


class LearningRateWarmupCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Raise the learning rate from that of one rank to that of all, over the first epochs.

    "Gradual warmup" of Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour (2017),
    section 2.2: with `n` ranks and the scaled rate `n * base` in the optimizer, training starts at
    `base` and rises in equal steps, batch by batch. As `horovod.keras.callbacks.LearningRateWarmupCallback`,
    without its momentum correction: Keras 3 fixes momentum when it traces the training step.

    After the warm-up the rate is left alone, so that ReduceLROnPlateau and others can have it.

    Args:
        warmup_epochs: how long, in epochs, > 0. Fractions are allowed.
        target: the rate at the end; default: the optimizer's when `fit` is called.
        steps_per_epoch: needed only where Keras does not know it, for a dataset of unknown length.
    """

    def __init__(
        self, warmup_epochs: float = 5, *, target: float | None = None, steps_per_epoch: int | None = None
    ) -> None:
        super().__init__()
        if warmup_epochs <= 0:
            raise OptimizerError(f"warmup_epochs must be > 0, found {warmup_epochs}")
        self.warmup_epochs = warmup_epochs
        self.target = target
        self._steps_per_epoch = steps_per_epoch
        self._epoch = 0
        self._warming = False

    def set_model(self, model: keras.Model) -> None:
        """Note the target before a checkpoint sets the rate to that of a half-done warm-up.

        Raises:
            OptimizerError: the optimizer follows a schedule, which this callback cannot change.
        """
        super().set_model(model)
        require_plain_rate(model.optimizer, "learning-rate warm-up")
        if self.target is None:
            self.target = float(model.optimizer.learning_rate)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note where we are: a resumed training may be past the warm-up."""
        self._epoch = epoch
        self._warming = epoch < self.warmup_epochs

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of this batch. With `steps_per_execution` it holds for all steps of one execution.

        Raises:
            OptimizerError: the number of steps in an epoch is unknown.
        """
        if not self._warming:
            return
        steps = self._steps_per_epoch or self.params.get("steps")
        if not steps:
            raise OptimizerError(
                "learning-rate warm-up does not know the steps of an epoch, because the dataset's length is "
                "unknown: pass steps_per_epoch"
            )
        # One step ahead, so that the last batch of the warm-up has the target itself.
        self._set_rate(self._epoch + (batch + 1) / steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the rate, and end the warm-up exactly at the target."""
        if not self._warming:
            return
        if epoch + 1 >= self.warmup_epochs:
            self._set_rate(self.warmup_epochs)
            log.info("epoch %d: learning-rate warm-up finished at %g", epoch + 1, self.target)
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)

    def _set_rate(self, epochs_done: float) -> None:
        assert self.target is not None  # since set_model
        size = collectives.size()
        share = min(epochs_done / self.warmup_epochs, 1.0)
        self.model.optimizer.learning_rate = self.target / size * (1 + share * (size - 1))


def require_plain_rate(optimizer: keras.optimizers.Optimizer, who: str) -> None:
    """Refuse an optimizer whose rate follows a schedule: a callback cannot change it.

    Raises:
        OptimizerError: it does.
    """
    rate = getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)
    if callable(rate) and not hasattr(rate, "assign"):
        raise OptimizerError(
            f"{who} needs a plain learning rate, found {type(rate).__name__}: give the "
            "schedule a warm-up of its own (CosineDecay has warmup_steps), or the optimizer a number"
        )
