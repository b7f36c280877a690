"""DistributedOptimizer: the ranks' gradients averaged, under Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.keras import collectives
from airflow_hydrogen.runtime.keras.names import name_of
from airflow_hydrogen.runtime.keras.reduction import Reduction, key

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
    if op not in ("average", "sum"):
        raise OptimizerError(f"op must be 'average' or 'sum', found {op!r}")
    optimizer = checked(optimizer)
    if collectives.size() == 1:
        return optimizer
    hvd = collectives.horovod()
    reduction = Reduction(
        hvd, op=hvd.Average if op == "average" else hvd.Sum, compressor=compressor(hvd, compression)
    )
    return distribute(optimizer, reduction)


@dataclass(frozen=True)
class Accumulation:
    """Gradients that are added up on each rank, and reduced and applied after so many passes.

    Attributes:
        passes: how many, > 1.
        average: divide the sum by `passes`.
    """

    passes: int
    average: bool


def checked(optimizer: keras.optimizers.Optimizer | str) -> keras.optimizers.Optimizer:
    """The optimizer, if it can be distributed.

    Raises:
        OptimizerError: it is distributed already, or Keras does not run on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise OptimizerError(
            f"DistributedOptimizer needs Keras on TensorFlow, found the backend {keras.backend.backend()!r}: "
            "set KERAS_BACKEND=tensorflow"
        )
    optimizer = keras.optimizers.get(optimizer)
    if is_distributed(optimizer) or is_distributed(getattr(optimizer, "inner_optimizer", None)):
        raise OptimizerError(f"{type(optimizer).__name__} is distributed already: wrap it once")
    return optimizer


def distribute(
    optimizer: keras.optimizers.Optimizer,
    reduction: Reduction,
    *,
    name: str = "gradient",
    accumulation: Accumulation | None = None,
) -> keras.optimizers.Optimizer:
    """Make a checked optimizer reduce gradients before it applies them: see `DistributedOptimizer`.

    Args:
        optimizer: it is changed in place.
        reduction: how.
        name: a part of the operations' names, the same on every rank.
        accumulation: reduce and apply only every so many calls.
    """
    # compile() would wrap a scaling optimizer around ours, and so put the allreduce into a branch that a rank
    # enters only if its own gradients are finite: the others would wait for it for ever.
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if keras.config.dtype_policy().name == "mixed_float16" and not scales:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
    object.__setattr__(
        optimizer, "__class__", _distributed_class(type(optimizer), reduction, name, accumulation)
    )
    return optimizer


def is_distributed(optimizer: Any) -> bool:
    """Whether an optimizer is one of `DistributedOptimizer`'s."""
    return hasattr(type(optimizer), _MARK)


def _distributed_class(
    base: Any, reduction: Reduction, operation: str, accumulation: Accumulation | None
) -> type:
    def apply(self: Any, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
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
        grads = list(grads)
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if len(grads) != len(variables):
            raise OptimizerError(f"{name} was given {len(grads)} gradients for {len(variables)} variables")

        def update(gradients: Sequence[Any]) -> None:
            reduced = reduction(gradients, variables, name_of(operation, gradients))
            base.apply(self, reduced, variables)

        if accumulation is None:
            update(grads)
        else:
            _accumulate(self, accumulation, reduction.densified(grads), variables, update)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        # LossScaleOptimizer's constructor sets this one on the optimizer that it wraps: its only trace.
        if name == "loss_scale_factor":
            self.__dict__["_hydrogen_scaled"] = value is None
        base.__setattr__(self, name, value)

    def from_config(cls: type, *args: Any, **kwargs: Any) -> Any:
        # The plain class's, made distributed: its constructor would be taken for a LossScaleOptimizer's work.
        return distribute(
            base.from_config(*args, **kwargs), reduction, name=operation, accumulation=accumulation
        )

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        # As Keras copies optimizers: the configuration, and no state.
        memo[id(self)] = type(self).from_config(self.get_config())
        return memo[id(self)]

    def reduce(self: Any) -> tuple[Any, ...]:
        # A pickle holds the plain optimizer, as a saved model does: nobody can import this class by its name.
        _, *rest = base.__reduce__(self)
        return base._unpickle_model, *rest

    distributed = type(
        base.__name__,
        (base,),
        {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__setattr__": set_attribute,
            "apply": apply,
            "from_config": classmethod(from_config),
            "__deepcopy__": deepcopy,
            "__reduce__": reduce,
            "register_local_var": lambda self, var: reduction.register_local(var),
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


def compressor(hvd: Any, compression: Any) -> Any:
    """The member of `hvd.Compression` that is meant.

    Raises:
        OptimizerError: there is none.
    """
    if compression is None or compression == "none":
        return hvd.Compression.none
    if compression == "fp16":
        return hvd.Compression.fp16
    if hasattr(compression, "compress") and hasattr(compression, "decompress"):
        return compression
    raise OptimizerError(
        f"compression must be None, 'fp16' or a member of hvd.Compression, found {compression!r}"
    )


def _accumulate(
    optimizer: Any,
    accumulation: Accumulation,
    gradients: Sequence[Any],
    variables: Sequence[Any],
    update: Callable[[Sequence[Any]], None],
) -> None:
    """Add gradients up, and update with the sum when it is time.

    Every rank counts alike, so that all of them reduce at the same call. The sums are no part of the
    optimizer's state: they are each rank's own, and a plain optimizer has none.
    """
    if any(isinstance(gradient, tf.IndexedSlices) for gradient in gradients):
        raise OptimizerError(
            "sparse gradients cannot be added up over backward passes: pass sparse_as_dense=True, or "
            "backward_passes_per_step=1"
        )
    if not optimizer.built:
        with keras.name_scope(optimizer.name):
            optimizer.build(variables)
        optimizer.built = True
    counter, sums = _sums(optimizer, gradients, variables)
    for slot, gradient in zip(sums, gradients, strict=True):
        if slot is not None:
            slot.assign_add(gradient)
    counter.assign_add(1)

    def reduce_and_apply() -> tf.Tensor:
        totals = [None if slot is None else slot.read_value() for slot in sums]
        if accumulation.average:
            totals = [None if t is None else t / tf.cast(accumulation.passes, t.dtype) for t in totals]
        update(totals)
        for slot in sums:
            if slot is not None:
                slot.assign(tf.zeros_like(slot))
        counter.assign(0)
        return counter.read_value()

    def wait() -> tf.Tensor:
        optimizer.iterations.assign_add(1)  # Horovod counts the passes
        return counter.read_value()

    tf.cond(tf.equal(counter.read_value(), accumulation.passes), reduce_and_apply, wait)


def forget_sums(optimizer: keras.optimizers.Optimizer) -> None:
    """Begin a window of accumulation anew, after the variables were set back."""
    counter, slots = optimizer.__dict__.get("_hydrogen_sums", (None, {}))
    for variable in [*slots.values(), *([] if counter is None else [counter])]:
        variable.assign(tf.zeros_like(variable))


def _sums(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]
) -> tuple[tf.Variable, list[tf.Variable | None]]:
    """The counter, and a variable for the sum of each gradient; made once, and not tracked."""
    with tf.init_scope():  # out of the graph that is being traced
        if "_hydrogen_sums" not in optimizer.__dict__:
            optimizer.__dict__["_hydrogen_sums"] = tf.Variable(0, trainable=False, dtype=tf.int64), {}
        counter, slots = optimizer.__dict__["_hydrogen_sums"]
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is not None and key(variable) not in slots:
                zeros = tf.zeros(variable.shape, gradient.dtype)
                slots[key(variable)] = tf.Variable(zeros, trainable=False)
    return counter, [None if g is None else slots[key(v)] for g, v in zip(gradients, variables, strict=True)]
