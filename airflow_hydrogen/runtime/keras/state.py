"""The state of a model in training: its variables, its optimizer's, its random seeds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from airflow_hydrogen.contract.errors import CheckpointError, OptimizerError
from airflow_hydrogen.runtime.keras import collectives

_SEED = "seed_generator_state"
_VARIABLES = "variables.npz"

_waiting: weakref.WeakKeyDictionary[Any, list[Callable[[], None]]] = weakref.WeakKeyDictionary()


def when_built(model: keras.Model, action: Callable[[], None]) -> None:
    """Run `action` as soon as the model and its optimizer have all of their variables.

    That is now, or, for a model without a `keras.Input`, while Keras traces its first training step: before
    the first batch is trained on, not after it as in Horovod's broadcast, which lets every rank compute its
    first gradients on weights of its own. Call it from `on_train_begin`, on every rank.
    """
    if model in _waiting:
        _waiting[model].append(action)
        return
    if all(layer.built for layer in model._flatten_layers()):
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        action()
        return
    if not hasattr(model, "_symbolic_build"):
        raise OptimizerError(
            "the model has no weights yet and this version of Keras cannot be asked to build it: start it "
            "with a keras.Input, or call it on a batch before fit()"
        )
    _waiting[model] = [action]
    step = model.train_step

    def build_first(data: Any) -> Any:
        if model in _waiting:
            with tf.init_scope():  # out of the graph that is being traced
                model._symbolic_build(data_batch=data)
                for waiting in _waiting.pop(model):
                    waiting()
        return step(data)

    model.train_step = build_first
    model.make_train_function(force=True)
    del model.train_step  # the function that was made keeps it


def broadcast_state(model: keras.Model) -> None:
    """Give every rank rank 0's model and optimizer; the seeds of dropout stay each rank's own."""
    collectives.broadcast_variables(_shared_variables(model))


def decorrelate_seeds(model: keras.Model) -> None:
    """Move the seeds of a rank that has the same ones as rank 0: else both drop out the same units.

    That happens wherever `keras.utils.set_random_seed` is called with one number on every rank.
    """
    seeds = _seed_variables(model)
    if collectives.size() == 1 or not seeds:
        return
    everyone = gather_seeds(model)
    mine, first = everyone[collectives.rank()], everyone[0]
    for variable, seed, first_seed in zip(seeds, mine, first, strict=True):
        if collectives.rank() > 0 and seed == first_seed:
            variable.assign(np.array([(seed[0] + collectives.rank()) % 2**31, seed[1]], dtype="int64"))


def gather_seeds(model: keras.Model) -> list[list[list[int]]]:
    """The states of all seed generators: `[rank][generator]` -> two integers. A collective."""
    seeds = _seed_variables(model)
    if not seeds:
        return [[] for _ in range(collectives.size())]
    mine = np.stack([np.asarray(variable) for variable in seeds]).astype("int64")[None]
    gathered: list[list[list[int]]] = collectives.gather(mine).tolist()
    return gathered


def set_seeds(model: keras.Model, everyone: Sequence[Sequence[Sequence[int]]]) -> None:
    """Set this rank's seeds from what `gather_seeds` gave, if it was that of as many ranks."""
    seeds = _seed_variables(model)
    if len(everyone) != collectives.size() or len(everyone[0]) != len(seeds):
        return
    for variable, seed in zip(seeds, everyone[collectives.rank()], strict=True):
        variable.assign(np.array(seed, dtype="int64"))


def save_variables(model: keras.Model, folder: Path) -> None:
    """Write the values of the model's and the optimizer's variables, in their order."""
    variables = _shared_variables(model)
    values = {f"{number:05d}": np.asarray(variable) for number, variable in enumerate(variables)}
    with (folder / _VARIABLES).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **values)


def load_variables(model: keras.Model, folder: Path) -> None:
    """Set the variables from what `save_variables` wrote.

    Raises:
        CheckpointError: they are another model's; none is changed then.
    """
    variables = _shared_variables(model)
    with np.load(folder / _VARIABLES, allow_pickle=False) as stored:
        values = [stored[name] for name in sorted(stored.files)]
    advice = "the training code has changed since: remove the checkpoints, or give the job another model URI"
    if len(values) != len(variables):
        raise CheckpointError(
            f"the checkpoint has {len(values)} variables, the model and its optimizer have {len(variables)}; "
            f"{advice}"
        )
    for variable, value in zip(variables, values, strict=True):
        if tuple(variable.shape) != value.shape:
            raise CheckpointError(
                f"variable {variable.path!r} has shape {tuple(variable.shape)}, the checkpoint's "
                f"{value.shape}; {advice}"
            )
    for variable, value in zip(variables, values, strict=True):
        # NumPy stores types that it does not know, such as bfloat16, as plain bytes.
        dtype = tf.as_dtype(variable.dtype).as_numpy_dtype
        variable.assign(value.view(dtype) if value.dtype.kind == "V" else value)


def _shared_variables(model: keras.Model) -> list[Any]:
    optimizer = getattr(model, "optimizer", None)  # absent before compile()
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else ())]
    return [variable for variable in variables if variable.name != _SEED]


def _seed_variables(model: keras.Model) -> list[Any]:
    return [variable for variable in model.variables if variable.name == _SEED]
