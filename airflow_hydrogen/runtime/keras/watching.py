"""Callbacks that watch a training: where it is, and whether it still makes sense."""

from __future__ import annotations

import math
import time
from typing import Any

import keras

from airflow_hydrogen.contract.errors import NonFiniteLossError
from airflow_hydrogen.runtime import progress

_CHECK_S = 10.0


class ProgressCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Leave a mark at every step, for the gang's watchdog.

    A rank that waits inside a step and one that has left the loop are told apart by their last marks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Mark the step."""
        progress.current().mark(f"epoch {self._epoch}, step {batch}")

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Mark the step of an evaluation."""
        progress.current().mark(f"epoch {self._epoch}, evaluation step {batch}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Mark the end of the steps."""
        progress.current().mark(f"end of epoch {epoch}")


class NonFiniteLossCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Fail once the loss is NaN or infinite, before such weights are saved or published.

    Does what `keras.callbacks.TerminateOnNaN` does, with an error: a training that only stops would publish
    its model. Looks every ten seconds and at the end of each epoch, not at every batch, which would make each
    step wait for its loss.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looked_at = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._looked_at = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the mean loss of the epoch so far, now and then.

        Raises:
            NonFiniteLossError: the loss is not a finite number.
        """
        if batch == 0 or time.monotonic() - self._looked_at < _CHECK_S:
            return
        self._looked_at = time.monotonic()
        for metric in self.model.metrics:
            if metric.name == "loss":
                _require_finite("loss", float(metric.result()), f"before batch {batch}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the epoch's loss.

        Raises:
            NonFiniteLossError: the loss is not a finite number.
        """
        if logs and "loss" in logs:
            _require_finite("loss", float(logs["loss"]), f"in epoch {epoch}")


def _require_finite(metric: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise NonFiniteLossError(metric, value, where)
