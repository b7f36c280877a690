"""Checkpoint and resume for Keras."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import keras

from airflow_hydrogen.contract.errors import CheckpointError
from airflow_hydrogen.runtime import filesystems
from airflow_hydrogen.runtime.checkpoints import Checkpoint, CheckpointStore
from airflow_hydrogen.runtime.context import get_context
from airflow_hydrogen.runtime.keras import collectives, state

log = logging.getLogger(__name__)

# How many trainings of this process have used a place: `main` may call fit() more than once.
_trainings: Counter[str] = Counter()


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Save the training at the end of an epoch, and resume it where it stopped.

    Follows `keras.callbacks.BackupAndRestore`, for several ranks: rank 0 reads and writes, the others
    get from it what it restored, so that only rank 0 needs to see the URI. Saved are the variables of model
    and optimizer, the seeds of every rank's dropout, the number of the epoch and the history. A training
    that was stopped and resumed ends with the same weights as one that was not, provided that the order
    of its data depends on the epoch alone, as that of `get_dataset_shard` does. The states of other callbacks
    (EarlyStopping's patience) start anew.

    Each `fit` of a `main` has checkpoints of its own, in the order of the calls: a resumed `main` passes over
    the fits that were complete.

    Args:
        uri: folder; default: the job's (`context.checkpoints_uri`). Without either it does nothing.
        every: save at the end of every so many epochs, and of the last one.
        keep: how many checkpoints stay; at least 2, so that one is left if the newest is damaged.
    """

    def __init__(self, uri: str | None = None, *, every: int = 1, keep: int = 2) -> None:
        super().__init__()
        if every < 1 or keep < 1:
            raise CheckpointError(f"every and keep must be >= 1, found every={every}, keep={keep}")
        self.uri = uri
        self.every = every
        self.keep = keep
        self._store: CheckpointStore | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Resume from the newest intact checkpoint of this job, if there is one."""
        context = get_context()
        uri = self.uri or context.checkpoints_uri
        if uri is None:
            return
        number = _trainings[uri]
        _trainings[uri] += 1
        self._store = CheckpointStore(filesystems.join(uri, f"fit-{number}"), context.fingerprint)
        checkpoint = self._store.latest() if context.rank == 0 else None
        epoch = int(collectives.broadcast_numbers([checkpoint.step if checkpoint else 0])[0])
        if epoch == 0:
            return
        self.model._initial_epoch = epoch  # where BackupAndRestore puts it
        context.resumed_from_epoch = epoch
        if checkpoint is not None:
            context.history[:] = checkpoint.state["history"]
            log.warning("resuming after epoch %d from checkpoint %r", epoch, checkpoint.uri)
        state.when_built(self.model, lambda: self._restore(checkpoint))
        if epoch >= self.params.get("epochs", epoch + 1):
            # No batch will be trained on, so an unbuilt model would stay without its weights.
            self._require_built()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, on rank 0.

        Raises:
            CheckpointError: it could not be written.
        """
        done = epoch + 1
        if self._store is None or (done % self.every and done != self.params.get("epochs")):
            return
        seeds = state.gather_seeds(self.model)
        context = get_context()
        if context.rank == 0:
            self._store.save(
                done,
                lambda folder: state.save_variables(self.model, folder),
                {"history": context.history, "seeds": seeds},
            )
            self._store.prune(self.keep)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let the next `fit` of this model start at its own first epoch."""
        self.model._initial_epoch = None

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            with checkpoint.folder() as folder:
                state.load_variables(self.model, folder)
        state.broadcast_state(self.model)
        saved = checkpoint.state["seeds"] if checkpoint is not None else None
        state.set_seeds(self.model, collectives.broadcast_json(saved))

    def _require_built(self) -> None:
        if not all(layer.built for layer in self.model._flatten_layers()):
            raise CheckpointError(
                "this fit() was complete when the training stopped, and its model has no weights to restore "
                "yet: start it with a keras.Input, or call it on a batch before fit()"
            )
