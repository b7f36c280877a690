"""Checkpoint and resume for Keras."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import keras

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import CheckpointError
from airflow_hydrogen.runtime.keras import collectives, state, tables
from airflow_hydrogen.runtime.rank.context import get_context
from airflow_hydrogen.runtime.storage.checkpoints import Checkpoint, CheckpointStore

OnError = Literal["raise", "continue"]

log = logging.getLogger(__name__)

# How many trainings of this process have used a place: `main` may call fit() more than once.
_trainings: Counter[str] = Counter()

_TIMED_STEPS = 10


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Save the training now and then, and resume it where it stopped.

    Follows `keras.callbacks.BackupAndRestore`, for several ranks: rank 0 reads and writes, the others
    get from it what it restored, so that only rank 0 needs to see the URI. Saved are the variables of the
    model and of all optimizers that it holds, the seeds of every rank's dropout, epoch and batch, and the
    history. A training that was stopped and resumed ends with the same weights as one that was not, provided
    that the order of its data depends on the epoch alone, as that of `get_dataset_shard` does: the batches of
    a half-done epoch that were trained on are read and passed over. That epoch's metrics are of its rest
    alone. The states of other callbacks (EarlyStopping's patience) start anew.

    Each `fit` of a `main` has checkpoints of its own, in the order of the calls: a resumed `main` passes over
    the fits that were complete.

    Args:
        uri: folder; default: the job's (`context.checkpoints_uri`). Without either it does nothing.
        every: save at the end of every so many epochs, and of the last one.
        every_s: save about every so many seconds as well, within an epoch. Rank 0's clock is turned into a
            number of steps, so that all ranks save at the same one.
        keep: how many checkpoints stay; at least 2, so that one is left if the newest is damaged.
        on_error: "raise" ends the training when a checkpoint cannot be written, because the disk is full or
            the store does not answer; "continue" warns, and goes on with the checkpoint before.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        every: int = 1,
        every_s: float | None = None,
        keep: int = 2,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        if every < 1 or keep < 1:
            raise CheckpointError(f"every and keep must be >= 1, found every={every}, keep={keep}")
        if every_s is not None and not every_s > 0:
            raise CheckpointError(f"every_s must be above 0 seconds, found {every_s!r}")
        if on_error not in ("raise", "continue"):
            raise CheckpointError(f"on_error must be 'raise' or 'continue', found {on_error!r}")
        self.uri = uri
        self.every = every
        self.keep = keep
        self.on_error = on_error
        self._timer = _StepTimer(every_s) if every_s is not None else None
        self._store: CheckpointStore | None = None
        self._epoch = 0
        self._steps = 0
        self._resumed_at = (0, 0)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Resume from the newest intact checkpoint of this job, if there is one."""
        context = get_context()
        uri = self.uri or context.checkpoints_uri
        if uri is None:
            return
        number = _trainings[uri]
        _trainings[uri] += 1
        self._store = CheckpointStore(uris.join(uri, f"fit-{number}"), context.fingerprint, context.parts)
        checkpoint = self._store.latest() if context.rank == 0 else None
        where = (
            [checkpoint.step, checkpoint.state["epoch"], checkpoint.state["batch"]] if checkpoint else [0] * 3
        )
        self._steps, epoch, batch = map(int, collectives.broadcast_numbers(where))
        if self._timer is not None:
            self._timer.begin(self._steps)
        if self._steps == 0:
            return
        self.model._initial_epoch = epoch  # where BackupAndRestore puts it
        context.resumed_from_epoch = epoch
        if checkpoint is not None:
            context.history[:] = checkpoint.state["history"]
            log.warning("resuming after epoch %d, batch %d from checkpoint %r", epoch, batch, checkpoint.uri)
        state.when_built(self.model, lambda: self._restore(checkpoint))
        self._resumed_at = (epoch, batch)
        if batch:
            context.partial_epoch = epoch
            pass_over(self.model, batch)
        if epoch >= self.params.get("epochs", epoch + 1):
            # No batch will be trained on, so an unbuilt model would stay without its weights.
            self._require_built()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save within the epoch, when it is time.

        Raises:
            CheckpointError: it could not be written.
        """
        if (self._epoch, batch) < self._resumed_at:
            return  # passed over
        # At the begin of an epoch there is nothing new to save.
        if self._timer is not None and self._store is not None and self._timer.is_due(self._steps) and batch:
            self._save(self._epoch, batch)
        self._steps += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save at the end of the epoch.

        Raises:
            CheckpointError: it could not be written.
        """
        done = epoch + 1
        if self._store is not None and (done % self.every == 0 or done == self.params.get("epochs")):
            self._save(done, 0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let the next `fit` of this model start at its own first epoch."""
        self.model._initial_epoch = None

    def _save(self, epoch: int, batch: int) -> None:
        """Save the state before a batch of an epoch. Every rank gets here, at the same step."""
        seeds = state.gather_seeds(self.model)
        context = get_context()
        if context.rank != 0 or self._store is None:
            return
        saved = {
            "epoch": epoch,
            "batch": batch,
            "history": context.history,
            "seeds": seeds,
            "tables": tables.checksums(self.model),
        }
        try:
            self._store.save(self._steps, lambda folder: state.save_variables(self.model, folder), saved)
            self._store.prune(self.keep)
        except CheckpointError as error:
            if self.on_error == "raise":
                raise
            log.warning("%s; the training goes on, and would resume from the checkpoint before", error)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        later: dict[str, list[Any]] = {}
        if checkpoint is not None:
            tables.require_those_of(self.model, checkpoint.state.get("tables", ()))
            with checkpoint.folder() as folder:
                later = state.load_variables(self.model, folder)
        state.broadcast_state(self.model)
        state.broadcast_when_built(self.model, later)
        saved = checkpoint.state["seeds"] if checkpoint is not None else None
        state.set_seeds(self.model, collectives.broadcast_json(saved))

    def _require_built(self) -> None:
        if not state.is_built(self.model):
            raise CheckpointError(
                "this fit() was complete when the training stopped, and its model has no weights to restore "
                "yet: start it with a keras.Input, or call it on a batch before fit()"
            )


class _StepTimer:
    """Turns seconds into steps, the same number of them on every rank.

    Each rank's clock would say another step, and a save is a collective. So rank 0 measures how long a step
    takes, and tells the others after how many the next save is due.
    """

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._measured_from = self._due_at = 0
        self._began = 0.0
        self._is_trial = True

    def begin(self, step: int) -> None:
        """Training starts, or goes on, at a step; the first ones are only timed."""
        # The first step of all is traced and tells nothing.
        self._measured_from, self._due_at, self._is_trial = step + 1, step + 1 + _TIMED_STEPS, True

    def is_due(self, step: int) -> bool:
        """Whether to save before this step. Every rank asks at every step."""
        if step == self._measured_from:
            self._began = self._clock()
        if step < self._due_at:
            return False
        step_s = max(1e-6, (self._clock() - self._began) / max(1, step - self._measured_from))
        steps = max(1, round(self._every_s / step_s))
        (steps_until_due,) = collectives.broadcast_numbers([steps])
        was_trial, self._is_trial = self._is_trial, False
        self._measured_from, self._due_at = step, step + int(steps_until_due)
        self._began = self._clock()
        return not was_trial


def pass_over(model: keras.Model, batches: int) -> None:
    """Let the first batches of the next epoch be read, and nothing be trained on them.

    Keras begins every epoch at its first batch. With fewer batches in the dataset it would take the epochs
    after it to be as short.
    """
    train, left = model.train_function, batches

    def read_only(iterator: Any) -> dict[str, Any]:
        nonlocal left
        for _ in range(model.steps_per_execution):
            next(iterator)
        left -= model.steps_per_execution
        if left <= 0:
            model.train_function = train
        return {}

    model.train_function = read_only
