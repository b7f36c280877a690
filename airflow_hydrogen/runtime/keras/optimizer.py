"""DistributedOptimizer: the ranks' gradients averaged, under Keras 3."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.keras import collectives

log = logging.getLogger(__name__)

_numbers = itertools.count()
_MARK = "_hydrogen_distributed"


def DistributedOptimizer(
    optimizer: keras.optimizers.Optimizer | str,
    *,
    compression: Literal["fp16"] | Any | None = None,
    op: Literal["average", "sum"] = "average",
) -> keras.optimizers.Optimizer:
    """Make a Keras optimizer average the gradients of all ranks before it applies them.

    Takes the place of `hvd.DistributedOptimizer`, whose hooks Keras 3 never calls. It works wherever Keras
    calls `optimizer.apply`: in `fit`, compiled or eager, with `steps_per_execution`, and in hand-written
    loops with `GradientTape`. Gradient clipping, weight decay, EMA and gradient accumulation see the averaged
    gradients, so that they do what one process would do with all of the data. Accumulating optimizers
    (`gradient_accumulation_steps`) average at every step and not only at those that update.

    The optimizer is changed in place and returned: it keeps its state, and its class becomes a subclass of
    the same name, which a saved model records as the plain one. With one rank it is returned as it is.

    Args:
        optimizer: an optimizer, or Keras's name for one ("adam"). Its state, if any, is kept.
        compression: "fp16" sends gradients in half precision; a member of `hvd.Compression` works too.
        op: "average", or "sum" where the learning rate is not scaled with the number of ranks.

    Returns:
        The optimizer. Under the global policy "mixed_float16" it is a `LossScaleOptimizer` around it, as
        `compile` would make it. Make the optimizer after the policy is set.

    Raises:
        OptimizerError: it is distributed already, or Keras does not run on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise OptimizerError(
            f"DistributedOptimizer needs Keras on TensorFlow, found the backend {keras.backend.backend()!r}: "
            "set KERAS_BACKEND=tensorflow"
        )
    if op not in ("average", "sum"):
        raise OptimizerError(f"op must be 'average' or 'sum', found {op!r}")
    optimizer = keras.optimizers.get(optimizer)
    if is_distributed(optimizer) or is_distributed(getattr(optimizer, "inner_optimizer", None)):
        raise OptimizerError(f"{type(optimizer).__name__} is distributed already: wrap it once")
    if collectives.size() == 1:
        return optimizer
    hvd = collectives.horovod()
    # compile() would wrap a scaling optimizer around ours, and so put the allreduce into a branch that a rank
    # enters only if its own gradients are finite: the others would wait for it for ever.
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if keras.config.dtype_policy().name == "mixed_float16" and not scales:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
    reduce = _reducer(hvd, _compressor(hvd, compression), op)
    object.__setattr__(optimizer, "__class__", _distributed_class(type(optimizer), reduce))
    return optimizer


def is_distributed(optimizer: Any) -> bool:
    """Whether an optimizer is one of `DistributedOptimizer`'s."""
    return hasattr(type(optimizer), _MARK)


def _distributed_class(base: Any, reduce: Callable[[Sequence[Any]], list[Any]]) -> type:
    def apply(self: Any, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> Any:
        name = base.__name__
        if self.__dict__.get("_hydrogen_scaled"):
            raise OptimizerError(
                f"a LossScaleOptimizer stands around DistributedOptimizer({name}): a rank whose gradients "
                "overflow would leave the others waiting. Set the policy 'mixed_float16' before the "
                "optimizer is made, or write "
                f"DistributedOptimizer(keras.optimizers.LossScaleOptimizer({name}(...)))"
            )
        if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
            raise OptimizerError(
                f"DistributedOptimizer({name}) cannot be compiled by XLA: pass jit_compile=False to "
                "compile() (its default turns XLA on where there is a GPU), or use "
                "airflow_hydrogen.runtime.keras.callbacks(), which does that for you"
            )
        return base.apply(self, reduce(list(grads)), trainable_variables)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        # LossScaleOptimizer's constructor sets this one on the optimizer that it wraps: its only trace.
        if name == "loss_scale_factor":
            self.__dict__["_hydrogen_scaled"] = value is None
        base.__setattr__(self, name, value)

    distributed = type(
        base.__name__,
        (base,),
        {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__setattr__": set_attribute,
            "apply": apply,
            _MARK: True,
        },
    )
    _keep_registered_name(base, distributed)
    return distributed


def _keep_registered_name(base: Any, distributed: type) -> None:
    """A class registered with `register_keras_serializable` is saved under its registered name."""
    name = keras.saving.get_registered_name(base)
    if name != base.__name__:
        from keras.src.saving import object_registration

        object_registration.GLOBAL_CUSTOM_NAMES[distributed] = name


def _compressor(hvd: Any, compression: Any) -> Any:
    if compression is None or compression == "none":
        return hvd.Compression.none
    if compression == "fp16":
        return hvd.Compression.fp16
    if hasattr(compression, "compress") and hasattr(compression, "decompress"):
        return compression
    raise OptimizerError(
        f"compression must be None, 'fp16' or a member of hvd.Compression, found {compression!r}"
    )


def _reducer(hvd: Any, compressor: Any, op: str) -> Callable[[Sequence[Any]], list[Any]]:
    """A function from gradients to reduced gradients; None stays None.

    In a graph dense gradients go one by one, as they become ready, and Horovod's fusion buffer joins them:
    under Gloo that is as fast as one grouped operation, and it can overlap with the rest of the backward
    pass. Eagerly every operation waits for its end, and one for all is 6 to 14 times as fast (docs/keras.md).
    Sparse gradients are gathered: the rows of all ranks, one rank after the other.
    """
    prefix = f"hydrogen_gradient_{next(_numbers)}"
    options = {"op": hvd.Average if op == "average" else hvd.Sum, "compression": compressor}

    def reduce_dense(gradients: dict[int, Any]) -> dict[int, Any]:
        if not tf.executing_eagerly():
            return {
                number: hvd.allreduce(gradient, name=f"{prefix}_{number}", ignore_name_scope=True, **options)
                for number, gradient in gradients.items()
            }
        reduced: dict[int, Any] = {}
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients.values()):
            group = {number: gradient for number, gradient in gradients.items() if gradient.dtype == dtype}
            name = f"{prefix}_{dtype.name}"
            together = hvd.grouped_allreduce(
                list(group.values()), name=name, ignore_name_scope=True, **options
            )
            reduced.update(zip(group, together, strict=True))
        return reduced

    def reduce_sparse(gradient: tf.IndexedSlices, name: str) -> tf.IndexedSlices:
        values, context = compressor.compress(gradient.values)
        values = hvd.allgather(values, name=f"{name}_values", ignore_name_scope=True)
        indices = hvd.allgather(gradient.indices, name=f"{name}_indices", ignore_name_scope=True)
        values = compressor.decompress(values, context)
        if op == "average":
            values /= tf.cast(hvd.size(), values.dtype)
        return tf.IndexedSlices(values, indices, gradient.dense_shape)

    def reduce(gradients: Sequence[Any]) -> list[Any]:
        reduced: list[Any] = [None] * len(gradients)
        dense: dict[int, Any] = {}
        for number, gradient in enumerate(gradients):
            if isinstance(gradient, tf.IndexedSlices):
                reduced[number] = reduce_sparse(gradient, f"{prefix}_{number}")
            elif gradient is not None:
                dense[number] = tf.convert_to_tensor(gradient)
        for number, gradient in reduce_dense(dense).items():
            reduced[number] = gradient
        return reduced

    return reduce
