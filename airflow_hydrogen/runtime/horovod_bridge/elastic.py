"""Horovod's elastic scripts in a gang of fixed size: their commits become checkpoints.

In Horovod a worker that is lost makes the others go on from what they hold in memory. A gang ends, and starts
anew as a whole; it goes on from what was written last. So `commit()` keeps the state in memory, as Horovod's
does, and rank 0 writes it now and then: at the first commit, and then as often as writing takes a
twentieth of the time, and at most every five seconds.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from horovod.common.elastic import ObjectState

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import CheckpointError, KwargsError, OptimizerError
from airflow_hydrogen.contract.values import require_json
from airflow_hydrogen.runtime.horovod_bridge.serve import announce
from airflow_hydrogen.runtime.keras import collectives, state
from airflow_hydrogen.runtime.keras.checkpoint import pass_over
from airflow_hydrogen.runtime.keras.optimizer import forget_sums
from airflow_hydrogen.runtime.rank.context import get_context
from airflow_hydrogen.runtime.storage.checkpoints import CheckpointStore

log = logging.getLogger(__name__)

_WRITING_SHARE = 0.05
_MIN_INTERVAL_S = 5.0
_KEEP = 2

# How many states of this process keep checkpoints: each has a place of its own, in the order of their runs.
_runs: Counter[str] = Counter()


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """`@hvd.elastic.run`: resume the state from the job's checkpoints, make it the same everywhere, and call.

    A gang that was started again with another number of ranks runs the state's reset callbacks first, as
    Horovod does when workers come or go. What `func` raises ends the rank.

    Raises:
        OptimizerError: the processes were started by Horovod's elastic driver, or the state is not one of
            `hvd.elastic`'s for TensorFlow and Keras.
    """

    @functools.wraps(func)
    def wrapper(state: Any, *args: Any, **kwargs: Any) -> Any:
        announce()
        if os.environ.get("HOROVOD_ELASTIC") == "1":
            raise OptimizerError(
                "a gang has a fixed size: start the processes by horovodrun -np N without --min-np, "
                "--max-np and --host-discovery-script, or by HorovodTrainOperator(max_restarts=...)"
            )
        if not isinstance(state, TensorFlowState):
            raise OptimizerError(
                "hvd.elastic.run needs a KerasState, TensorFlowKerasState or TensorFlowState, found "
                f"{type(state).__name__}"
            )
        state.resume()
        state.sync()
        value = func(state, *args, **kwargs)
        state.write_last_commit()
        return value

    return wrapper


class TensorFlowState(ObjectState):  # type: ignore[misc]
    """The state of a training: variables, and numbers, strings, lists and dicts as attributes.

    Args:
        variables: of TensorFlow, or of Keras.
        session: of TensorFlow 1; None alone is possible.
        kwargs: what else belongs to the state, JSON.

    Raises:
        OptimizerError: no variables, a session, or a value that is no JSON.
    """

    def __init__(self, variables: Sequence[Any] | None = None, session: Any = None, **kwargs: Any) -> None:
        import horovod.tensorflow as hvd

        if session is not None:
            raise OptimizerError("there are no sessions in TensorFlow 2: leave session out")
        if not variables:
            raise OptimizerError("TensorFlowState needs the list of variables: pass variables=[...]")
        try:
            require_json("the values of the state", kwargs)
        except KwargsError as error:
            raise OptimizerError(f"{error}; keep arrays in variables") from None
        self.variables = list(variables)
        self._commits = 0
        self._writer = _Writer()
        self._counting: dict[type, _CountingCallback] = {}
        super().__init__(bcast_object=hvd.broadcast_object, get_rank=hvd.rank, **kwargs)
        self._values = self._read()

    _saved_state: dict[str, Any]  # of the base class: the values that were kept last

    def save(self) -> None:
        """Keep the state in memory."""
        self._values = self._read()
        super().save()

    def restore(self) -> None:
        """Go back to what was kept in memory last."""
        for variable, value in zip(self.variables, self._values, strict=True):
            variable.assign(value)
        super().restore()

    def sync(self) -> None:
        """Give all ranks rank 0's state."""
        import horovod.tensorflow as hvd

        hvd.broadcast_variables(self.variables, root_rank=0)
        super().sync()
        self.save()

    def commit(self) -> None:
        """Keep the state in memory, and write it where it is time and the job keeps checkpoints.

        Raises:
            CheckpointError: it could not be written.
        """
        self.save()
        self._commits += 1
        self._writer.offer(self._commits, self._values, self._saved_state)

    def check_host_updates(self) -> None:
        """Nothing: the hosts of a gang are the same until it ends."""

    def resume(self) -> None:
        """Take the newest intact checkpoint of this job, if there is one. On every rank.

        Raises:
            CheckpointError: it has another model's variables.
        """
        found = self._writer.open()
        commits, size = 0, get_context().size
        if found is not None:
            with found.folder() as folder:
                state.assign_groups({"": self.variables}, state.load_groups(folder))
            if found.state["objects"].keys() != self._saved_state.keys():
                raise CheckpointError(
                    f"the checkpoint has the values {sorted(found.state['objects'])} and the state "
                    f"{sorted(self._saved_state)}: the training code has changed since"
                )
            self._saved_state = dict(found.state["objects"])
            self._set_attrs()
            commits, size = found.step, int(found.state["size"])
            log.warning("resuming from commit %d: checkpoint %r", commits, found.uri)
        self._commits, size = map(int, collectives.broadcast_numbers([commits, size]))
        if size != get_context().size:
            self.on_reset()

    def count(self, batch: int | None = None, epoch: int | None = None) -> None:
        """Let the counting callbacks of the running `fit` count what has just ended, if they have not yet."""
        for callback in self._counting.values():
            if batch is not None:
                callback.count_batch(batch)
            if epoch is not None:
                callback.count_epoch(epoch)

    def write_last_commit(self) -> None:
        """Write what was committed last, if it was not."""
        self._writer.offer(self._commits, self._values, self._saved_state, now=True)

    def _read(self) -> list[np.ndarray[Any, Any]]:
        return [np.array(variable) for variable in self.variables]


class TensorFlowKerasState(TensorFlowState):
    """The state of a Keras model and its optimizer.

    Args:
        model: it has its weights.
        optimizer: default: the one that the model is compiled with.
        backend: of TensorFlow 1; it plays no part.
        kwargs: what else belongs to the state, JSON.

    Raises:
        OptimizerError: the model is not built, or there is no optimizer.
    """

    def __init__(self, model: keras.Model, optimizer: Any = None, backend: Any = None, **kwargs: Any) -> None:
        if not state.is_built(model):
            raise OptimizerError(
                "the model must be built first: start it with a keras.Input, or call it on a batch"
            )
        self.model = model
        self.optimizer = optimizer or getattr(model, "optimizer", None)
        if self.optimizer is None:
            raise OptimizerError("the model is not compiled: pass optimizer=, or compile it")
        if not self.optimizer.built:
            self.optimizer.build(model.trainable_variables)
        weights = [variable for variable in model.variables if not state.is_seed(variable)]
        super().__init__([*weights, *self.optimizer.variables], **kwargs)

    def restore(self) -> None:
        """Go back to what was kept in memory last; gradients that wait for more are forgotten."""
        super().restore()
        forget_sums(self.optimizer)


class KerasState(TensorFlowKerasState):
    """`hvd.elastic.KerasState`: the state of a Keras model and its optimizer."""

    def __init__(self, model: keras.Model, optimizer: Any = None, **kwargs: Any) -> None:
        super().__init__(model, optimizer, **kwargs)


class CommitStateCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Commit a state every so many batches, and at the end of each epoch.

    Horovod's documentation has it before and behind the callbacks that count: they count first in any order.

    Args:
        state: of `hvd.elastic`.
        batches_per_commit: how many.
    """

    def __init__(self, state: TensorFlowState, batches_per_commit: int = 1) -> None:
        super().__init__()
        self.state = state
        self.batches_per_commit = batches_per_commit
        self._left = batches_per_commit

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Count anew, as all ranks do."""
        self._left = self.batches_per_commit

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Commit, when it is time."""
        self._left -= 1
        if self._left == 0:
            self.state.count(batch=batch)
            self.state.commit()
            self._left = self.batches_per_commit

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Commit."""
        self.state.count(epoch=epoch)
        self.state.commit()


class _CountingCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps a number in a state. Counting the same batch, or epoch, twice is as counting it once."""

    def __init__(self, state: TensorFlowState) -> None:
        super().__init__()
        self.state = state

    def count_batch(self, batch: int) -> None:
        """A batch of this number has ended."""

    def count_epoch(self, epoch: int) -> None:
        """An epoch of this number has ended."""

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """From now on commits wait for this callback."""
        self.state._counting[type(self)] = self

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """No longer."""
        self.state._counting.pop(type(self), None)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count."""
        self.count_batch(batch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count."""
        self.count_epoch(epoch)


class UpdateBatchStateCallback(_CountingCallback):
    """Keep the number of batches that are done in `state.batch`, and pass over those in a resumed epoch.

    Horovod keeps the number of the last batch instead, so that it is trained on twice. The batches that are
    passed over are read.

    Args:
        state: of `hvd.elastic`, with the attribute `batch`.
    """

    def __init__(self, state: TensorFlowState) -> None:
        super().__init__(state)
        self._done = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Pass over what is done, in the first epoch."""
        super().on_train_begin(logs)
        self._done = self.state.batch
        if self._done:
            pass_over(self.model, self._done)

    def count_batch(self, batch: int) -> None:
        """Count."""
        self.state.batch = max(batch + 1, self._done)

    def count_epoch(self, epoch: int) -> None:
        """The next epoch begins at its first batch."""
        self.state.batch = self._done = 0


class UpdateEpochStateCallback(_CountingCallback):
    """Keep the number of epochs that are done in `state.epoch`, those before a restart included.

    Args:
        state: of `hvd.elastic`, with the attribute `epoch`.
    """

    def __init__(self, state: TensorFlowState) -> None:
        super().__init__(state)
        self.initial_epoch = state.epoch

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Keras counts from 0 in each fit."""
        super().on_train_begin(logs)
        self.initial_epoch = self.state.epoch

    def count_epoch(self, epoch: int) -> None:
        """Count."""
        self.state.epoch = self.initial_epoch + epoch + 1


class _Writer:
    """Writes commits of rank 0 to the job's checkpoints, not more often than they are worth."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._store: CheckpointStore | None = None
        self._written = 0
        self._due_at = 0.0

    def open(self) -> Any:
        """Find the place of the checkpoints; the newest intact one, on rank 0."""
        context = get_context()
        if context.checkpoints_uri is None:
            return None
        number = _runs[context.checkpoints_uri]
        _runs[context.checkpoints_uri] += 1
        if context.rank != 0:
            return None
        place = uris.join(context.checkpoints_uri, f"elastic-{number}")
        self._store = CheckpointStore(place, context.fingerprint, context.parts)
        found = self._store.latest()
        self._written = found.step if found is not None else 0
        return found

    def offer(
        self,
        commit: int,
        values: Sequence[np.ndarray[Any, Any]],
        objects: Mapping[str, Any],
        *,
        now: bool = False,
    ) -> None:
        """Write a commit if it is new, and if it is time or has to be `now`."""
        began = self._clock()
        if self._store is None or commit <= self._written or (began < self._due_at and not now):
            return
        saved = {"objects": dict(objects), "size": get_context().size}
        try:
            require_json("the values of the state", saved["objects"])
        except KwargsError as error:
            raise OptimizerError(f"{error}; keep arrays in variables") from None
        self._store.save(commit, lambda folder: state.save_groups({"": values}, folder), saved)
        self._store.prune(_KEEP)
        ended = self._clock()
        self._written = commit
        self._due_at = ended + max(_MIN_INTERVAL_S, (ended - began) * (1 / _WRITING_SHARE - 1))


__all__ = [
    "CommitStateCallback",
    "KerasState",
    "TensorFlowKerasState",
    "TensorFlowState",
    "UpdateBatchStateCallback",
    "UpdateEpochStateCallback",
    "run",
]
