"""Horovod's optimizers for Keras 3."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.horovod_bridge.serve import announce, by_name, is_keras_3
from airflow_hydrogen.runtime.keras.optimizer import Accumulation, checked, compressor, distribute
from airflow_hydrogen.runtime.keras.reduction import Reduction


def for_keras_3(original: Callable[..., Any]) -> Callable[..., Any]:
    """`hvd.DistributedOptimizer` and `hvd.PartialDistributedOptimizer`: ours for Keras 3's optimizers."""

    def make(*args: Any, **kwargs: Any) -> Any:
        arguments = by_name(original, args, kwargs)
        optimizer = arguments["optimizer"]
        if isinstance(optimizer, str) or is_keras_3(type(optimizer)):
            return distributed(**arguments)
        return original(*args, **kwargs)

    return make


def load_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """`hvd.load_model`: a saved model, whose optimizer averages again and has its state."""

    def load(*args: Any, **kwargs: Any) -> Any:
        return loaded(**by_name(original, args, kwargs))

    return load


def distributed(
    optimizer: keras.optimizers.Optimizer | str,
    *,
    name: str | None = None,
    use_locking: bool = False,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = None,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = None,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: int | Sequence[Sequence[Any]] | None = None,
    process_set: Any = None,
    local_layers: keras.layers.Layer | Sequence[keras.layers.Layer] | None = None,
    scale_local_gradients: bool = True,
) -> keras.optimizers.Optimizer:
    """The optimizer, with Horovod's arguments; it is changed in place and returned.

    Raises:
        OptimizerError: an argument cannot be served.
    """
    import horovod.tensorflow as hvd

    hvd.size()  # an error of Horovod's where hvd.init() was not called
    announce()
    op = hvd.Average if op is None else op
    if op not in (hvd.Average, hvd.Sum):
        raise OptimizerError("op of a Keras optimizer can be hvd.Average or hvd.Sum")
    if use_locking:
        raise OptimizerError("Keras's optimizers know no locking: leave use_locking out")
    if not isinstance(backward_passes_per_step, int) or backward_passes_per_step < 1:
        raise OptimizerError(f"backward_passes_per_step must be >= 1, found {backward_passes_per_step!r}")
    reduction = reduction_of(
        op=op,
        compression=compression,
        sparse_as_dense=sparse_as_dense,
        gradient_predivide_factor=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
        device_dense=device_dense,
        device_sparse=device_sparse,
        process_set=process_set,
        scale_local_gradients=scale_local_gradients,
        local_layers=local_layers,
    )
    optimizer = checked(optimizer)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if backward_passes_per_step > 1 and getattr(inner, "gradient_accumulation_steps", None):
        raise OptimizerError(
            f"{type(inner).__name__} adds gradients up by itself: leave out either backward_passes_per_step "
            "or gradient_accumulation_steps"
        )
    return distribute(
        optimizer,
        reduction,
        name=re.sub(r"[^A-Za-z0-9_.-]", "_", name or "gradient"),  # what TensorFlow allows
        accumulation=(
            Accumulation(backward_passes_per_step, average_aggregated_gradients)
            if backward_passes_per_step > 1
            else None
        ),
    )


def reduction_of(
    *,
    op: Any,
    compression: Any,
    gradient_predivide_factor: float,
    num_groups: int,
    groups: int | Sequence[Sequence[Any]] | None,
    local_layers: keras.layers.Layer | Sequence[keras.layers.Layer] | None,
    **options: Any,
) -> Reduction:
    """A reduction from Horovod's arguments.

    Raises:
        OptimizerError: an argument is not what Horovod documents.
    """
    import horovod.tensorflow as hvd

    if gradient_predivide_factor != 1.0 and op != hvd.Average:
        raise OptimizerError("gradient_predivide_factor splits an average: it needs op=hvd.Average")
    if groups is None and num_groups:  # the older name
        groups = num_groups
    is_number = isinstance(groups, int) and groups > 0
    if groups is not None and not is_number and not isinstance(groups, (list, tuple)):
        raise OptimizerError(f"groups must be a number > 0, or lists of variables, found {groups!r}")
    if local_layers is None:
        local_layers = ()
    elif isinstance(local_layers, keras.layers.Layer):
        local_layers = (local_layers,)
    others = [layer for layer in local_layers if not isinstance(layer, keras.layers.Layer)]
    if others:
        raise OptimizerError(f"local_layers must be layers of Keras, found {others[0]!r}")
    return Reduction(
        hvd,
        op,
        compressor(hvd, compression),
        predivide_factor=gradient_predivide_factor,
        groups=groups,
        local_layers=tuple(local_layers),
        **options,
    )


def loaded(
    filepath: Any,
    custom_optimizers: Sequence[type] | None = None,
    custom_objects: dict[str, Any] | None = None,
    compression: Any = None,
    legacy_opts: bool = False,
) -> keras.Model:
    """A saved model with its optimizer distributed, state included.

    Raises:
        OptimizerError: `legacy_opts`, or the model was saved without an optimizer.
    """
    if legacy_opts:
        raise OptimizerError("Keras 3 has no legacy optimizers: leave legacy_opts out")
    objects = {kind.__name__: kind for kind in custom_optimizers or ()}
    # Horovod takes an open HDF5 file as well.
    path = getattr(filepath, "filename", filepath)
    model = keras.models.load_model(path, custom_objects={**objects, **(custom_objects or {})})
    if getattr(model, "optimizer", None) is None:
        raise OptimizerError(
            f"the model in {str(path)!r} was saved without its optimizer: load it with "
            "keras.models.load_model() and compile it with hvd.DistributedOptimizer(...)"
        )
    if str(path).endswith((".h5", ".hdf5")):
        model.optimizer = _from_hdf5(model, str(path))
    model.optimizer = distributed(model.optimizer, compression=compression)
    return model


def _from_hdf5(model: keras.Model, path: str) -> keras.optimizers.Optimizer:
    """The optimizer with the state that the file has, which Keras 3 warns of and leaves behind.

    It builds the optimizer of such a file for no variables at all.

    Raises:
        OptimizerError: the file's state is that of another optimizer.
    """
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import load_optimizer_weights_from_hdf5_group

    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    untrained = [tuple(variable.shape) for variable in optimizer.variables]
    optimizer.build(model.trainable_variables)
    with h5py.File(path) as file:
        stored = load_optimizer_weights_from_hdf5_group(file) if "optimizer_weights" in file else []
        saved = [np.asarray(value) for value in stored]
    if [value.shape for value in saved] == untrained:  # it was saved before its first step
        return optimizer
    if [value.shape for value in saved] != [tuple(variable.shape) for variable in optimizer.variables]:
        raise OptimizerError(
            f"{path!r} has {len(saved)} variables of the optimizer, and its {type(optimizer).__name__} has "
            f"{len(optimizer.variables)}: save the model as .keras"
        )
    for variable, value in zip(optimizer.variables, saved, strict=True):
        variable.assign(value)
    return optimizer
