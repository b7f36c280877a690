"""The state of a model in training: its variables, its optimizers', its random seeds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from airflow_hydrogen.contract.errors import CheckpointError, OptimizerError
from airflow_hydrogen.runtime.keras import collectives, tables
from airflow_hydrogen.runtime.keras.reduction import key

_SEED = "seed_generator_state"
_VARIABLES = "variables.npz"
_ADVICE = "the training code has changed since: remove the checkpoints, or give the job another model URI"

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
    if is_built(model):
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


def is_built(model: keras.Model) -> bool:
    """Whether the model has all of its weights.

    A model with a `train_step` and no `call`, such as a GAN, has none of its own, and Keras calls it built
    only once it has been trained.
    """
    has_call = type(model).call is not keras.Model.call
    return all(layer.built for layer in model._flatten_layers(include_self=has_call))


def broadcast_state(model: keras.Model, root_rank: int = 0, without: Sequence[Any] = ()) -> None:
    """Give every rank rank 0's model and optimizers; the seeds of dropout stay each rank's own.

    Args:
        model: of every rank the same.
        root_rank: whose state, if not rank 0's.
        without: variables that stay each rank's own as well.

    Raises:
        OptimizerError: the ranks have different models, or their layers have learnt different tables.
    """
    tables.require_equal(model)
    variables = [*_model_variables(model), *(v for held in _optimizers(model) for v in held.variables)]
    own = {key(variable) for variable in without}
    # An optimizer may be held twice, inside and outside of a LossScaleOptimizer.
    shared = {id(variable): variable for variable in variables if not own or key(variable) not in own}
    collectives.broadcast_variables(list(shared.values()), root_rank)
    _renew_constants(model)


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
    """Write the values of the variables of the model and of its optimizers, in their order."""
    save_groups(_saved_groups(model), folder)


def save_groups(groups: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Write the values of groups of variables."""
    values = {
        f"{group}/{number:05d}" if group else f"{number:05d}": np.asarray(variable)
        for group, variables in groups.items()
        for number, variable in enumerate(variables)
    }
    with (folder / _VARIABLES).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **values)


def load_variables(model: keras.Model, folder: Path) -> dict[str, list[Any]]:
    """Set the variables from what `save_variables` wrote.

    Returns:
        What was saved of optimizers that have not made their variables yet, for `broadcast_when_built`.

    Raises:
        CheckpointError: they are another model's; none is changed then.
    """
    saved = load_groups(folder)
    groups = _saved_groups(model)
    if saved.keys() != groups.keys():
        raise CheckpointError(
            f"the checkpoint has the state of {len(saved)} optimizers, the model holds {len(groups)}; "
            f"{_ADVICE}"
        )
    later = {
        name: saved.pop(name)
        for name, held in _other_optimizers(model).items()
        # One that was not built when it was saved either has nothing to wait for.
        if not held.built and len(saved[name]) > len(held.variables)
    }
    assign_groups({name: groups[name] for name in saved}, saved)
    return later


def load_groups(folder: Path) -> dict[str, list[Any]]:
    """What `save_groups` wrote; groups without variables left nothing."""
    saved: dict[str, list[Any]] = {}
    with np.load(folder / _VARIABLES, allow_pickle=False) as stored:
        for name in sorted(stored.files):
            saved.setdefault(name.rpartition("/")[0], []).append(stored[name])
    return saved


def assign_groups(groups: Mapping[str, Sequence[Any]], saved: Mapping[str, Sequence[Any]]) -> None:
    """Give groups of variables their saved values.

    Raises:
        CheckpointError: those are of other variables; none is changed then.
    """
    pairs = [pair for name, variables in groups.items() for pair in _pairs(variables, saved.get(name, ()))]
    for variable, value in pairs:
        variable.assign(_readable(variable, value))


def broadcast_when_built(model: keras.Model, saved: Mapping[str, list[Any]]) -> None:
    """Give rank 0's saved state to the optimizers that make their variables at their first step only.

    That is while Keras traces the training step: nothing is applied yet. On every rank; `saved` is what
    rank 0 loaded, and empty on the others.

    Raises:
        CheckpointError: from that step: what was saved is another model's.
    """
    others = _other_optimizers(model)
    for name in collectives.broadcast_json(sorted(saved)):
        _after_build(others[name], saved.get(name))


def _after_build(optimizer: keras.optimizers.Optimizer, saved: list[Any] | None) -> None:
    build = optimizer.build

    def build_and_load(variables: Sequence[Any]) -> None:
        optimizer.__dict__.pop("build", None)
        build(variables)
        # The new variables have no values yet that could be read.
        values = saved or [np.zeros(tuple(v.shape), _numpy_type(v)) for v in optimizer.variables]
        with tf.init_scope():  # out of the graph that is being traced
            for variable, value in _pairs(optimizer.variables, values):
                variable.assign(collectives.first_rank_value(_readable(variable, value)))

    optimizer.__dict__["build"] = build_and_load


def _pairs(variables: Sequence[Any], values: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(values) != len(variables):
        raise CheckpointError(
            f"the checkpoint has {len(values)} variables, the model and its optimizer have {len(variables)}; "
            f"{_ADVICE}"
        )
    for variable, value in zip(variables, values, strict=True):
        if tuple(variable.shape) != value.shape:
            name = getattr(variable, "path", variable.name)  # TensorFlow's own have no path
            raise CheckpointError(
                f"variable {name!r} has shape {tuple(variable.shape)}, the checkpoint's "
                f"{value.shape}; {_ADVICE}"
            )
    return list(zip(variables, values, strict=True))


def _readable(variable: Any, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A stored value in the variable's type: NumPy stores those that it does not know as plain bytes."""
    return value.view(_numpy_type(variable)) if value.dtype.kind == "V" else value


def _numpy_type(variable: Any) -> Any:
    return tf.as_dtype(variable.dtype).as_numpy_dtype


def _saved_groups(model: keras.Model) -> dict[str, list[Any]]:
    """What a checkpoint holds: the model with the optimizer of `compile`, and each other optimizer.

    The first group has no name, so that checkpoints of models with one optimizer are what they always were.
    """
    compiled = getattr(model, "optimizer", None)  # absent before compile()
    first = [*_model_variables(model), *(compiled.variables if compiled is not None else ())]
    return {"": first, **{name: held.variables for name, held in _other_optimizers(model).items()}}


def _other_optimizers(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """All but the one that the model is compiled with, by their names in a checkpoint."""
    compiled = getattr(model, "optimizer", None)
    others = [held for held in _optimizers(model) if held is not compiled]
    return {f"optimizer-{number}": held for number, held in enumerate(others, 1)}


def _optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Every optimizer that the model and its layers hold, in attributes, lists or dicts: GANs have two."""
    found = {
        id(held): held
        for layer in model._flatten_layers()
        for value in vars(layer).values()
        for held in _optimizers_in(value)
    }
    return list(found.values())


def _optimizers_in(value: Any) -> Iterator[keras.optimizers.Optimizer]:
    if isinstance(value, keras.optimizers.Optimizer):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _optimizers_in(item)
    elif isinstance(value, dict):
        yield from _optimizers_in(list(value.values()))


def _renew_constants(model: keras.Model) -> None:
    """Let layers compute with the values that their variables now have.

    `keras.layers.Normalization` computes with constants that it makes of its variables when it is adapted,
    and a function that was traced before has them inside.
    """
    normalizations = [
        layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Normalization)
    ]
    for layer in normalizations:
        layer.finalize_state()
    if normalizations:
        model.test_function = model.predict_function = None
        if model.train_function is not None:
            model.make_train_function(force=True)


def _model_variables(model: keras.Model) -> list[Any]:
    return [variable for variable in model.variables if not is_seed(variable)]


def _seed_variables(model: keras.Model) -> list[Any]:
    return [variable for variable in model.variables if is_seed(variable)]


def is_seed(variable: Any) -> bool:
    """Whether a variable is the state of a random generator, of dropout for example."""
    return isinstance(variable, keras.Variable) and variable.name == _SEED
