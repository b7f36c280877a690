"""The gradients of all ranks made one: what the optimizer and the tape do with Horovod."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from airflow_hydrogen.contract.errors import OptimizerError

Gradients = Sequence[Any]


def plain(variable: Any) -> Any:
    """TensorFlow's variable of a Keras one; everything else as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def key(variable: Any) -> Any:
    """What tells one variable, or tensor, from another, whether it comes as Keras's or as TensorFlow's."""
    return plain(variable).ref()


@dataclass
class Reduction:
    """How gradients are reduced. The arguments of Horovod's optimizers and tapes, by their names there.

    In a graph dense gradients go one by one, as they become ready, and Horovod's fusion buffer joins them:
    under Gloo that is as fast as one grouped operation, and it can overlap with the rest of the backward
    pass. Eagerly every operation waits for its end, and one for all is 6 to 14 times as fast (docs/keras.md).
    Sparse gradients are gathered: the rows of all ranks, one rank after the other.

    Attributes:
        hvd: `horovod.tensorflow`, initialised.
        op: `hvd.Average`, `hvd.Sum`, or another of Horovod's that reduces tensors.
        compressor: a member of `hvd.Compression`.
        sparse_as_dense: turn sparse gradients into dense ones, and add them up.
        predivide_factor: divide by it before the sum of an average, and by the rest after it.
        groups: reduce so many groups, or these groups of variables, in one operation each.
        device_dense, device_sparse: where; empty: where Horovod puts them.
        process_set: of Horovod; None: all ranks. A rank outside of it keeps its own gradients.
        local_layers: the gradients of their weights stay each rank's own.
        scale_local_gradients: divide those by the number of ranks, so that they weigh what an average weighs.
    """

    hvd: Any
    op: Any
    compressor: Any
    sparse_as_dense: bool = False
    predivide_factor: float = 1.0
    groups: int | Sequence[Sequence[Any]] | None = None
    device_dense: str = ""
    device_sparse: str = ""
    process_set: Any = None
    scale_local_gradients: bool = True
    local_layers: Sequence[keras.layers.Layer] = ()
    _local: set[Any] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.process_set is None:
            self.process_set = self.hvd.global_process_set

    @property
    def size(self) -> int:
        """The number of ranks that reduce together."""
        return int(self.process_set.size())

    def register_local(self, variable: Any) -> None:
        """Keep the gradients of a variable each rank's own."""
        self._local.add(key(variable))

    def is_local(self, variable: Any) -> bool:
        """Whether a variable's gradients stay each rank's own. A layer may be built at any time."""
        if not self._local and not self.local_layers:
            return False
        weights = {key(weight) for layer in self.local_layers for weight in layer.trainable_weights}
        return key(variable) in self._local | weights

    def densified(self, gradients: Gradients) -> list[Any]:
        """The gradients, sparse ones made dense where that was asked for."""
        return [
            tf.convert_to_tensor(g) if self.sparse_as_dense and isinstance(g, tf.IndexedSlices) else g
            for g in gradients
        ]

    def __call__(self, gradients: Gradients, variables: Sequence[Any], prefix: str) -> list[Any]:
        """Reduce.

        Args:
            gradients: tensors, `IndexedSlices` or None, which stays None.
            variables: what they are the gradients of.
            prefix: of the operations' names, the same on every rank. Horovod matches tensors by them: no two
                that are on their way at the same time may share one.
        """
        if not self.process_set.included() or self.size == 1:
            return list(gradients)
        gradients = self.densified(gradients)
        reduced = list(gradients)
        dense: dict[int, Any] = {}
        for number, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            if gradient is None:
                continue
            if self.is_local(variable):
                reduced[number] = self._scaled(gradient)
            elif isinstance(gradient, tf.IndexedSlices):
                reduced[number] = self._reduce_sparse(gradient, f"{prefix}_{number}")
            else:
                dense[number] = tf.convert_to_tensor(gradient)
        for number, gradient in self._reduce_dense(dense, variables, prefix).items():
            reduced[number] = gradient
        return reduced

    def _reduce_dense(
        self, gradients: dict[int, Any], variables: Sequence[Any], prefix: str
    ) -> dict[int, Any]:
        options = self._options()
        # Horovod's grouped operation has no Adasum.
        if self.groups is None and (self.op == self.hvd.Adasum or not tf.executing_eagerly()):
            return {
                number: self.hvd.allreduce(gradient, name=f"{prefix}_{number}", **options)
                for number, gradient in gradients.items()
            }
        reduced: dict[int, Any] = {}
        for group_number, group in enumerate(self._grouped(list(gradients), variables)):
            # One operation takes tensors of one type.
            for dtype in dict.fromkeys(gradients[number].dtype for number in group):
                numbers = [number for number in group if gradients[number].dtype == dtype]
                together = self.hvd.grouped_allreduce(
                    [gradients[number] for number in numbers],
                    name=f"{prefix}_{group_number}_{dtype.name}",
                    **options,
                )
                reduced.update(zip(numbers, together, strict=True))
        return reduced

    def _grouped(self, numbers: list[int], variables: Sequence[Any]) -> list[list[int]]:
        """The places of the gradients, in the groups that were asked for; by default all in one."""
        if self.groups is None:
            return [numbers]
        if isinstance(self.groups, int):
            size = -(-len(numbers) // self.groups) or 1
            return [numbers[start : start + size] for start in range(0, len(numbers), size)]
        groups: dict[Any, list[int]] = {}
        group_of = {key(held): place for place, group in enumerate(self.groups) for held in group}
        for number in numbers:
            alone = ("alone", number)
            groups.setdefault(group_of.get(key(variables[number]), alone), []).append(number)
        return list(groups.values())

    def _options(self) -> dict[str, Any]:
        options = {
            "op": self.op,
            "compression": self.compressor,
            "device_dense": self.device_dense,
            "process_set": self.process_set,
            "ignore_name_scope": True,
        }
        if self.predivide_factor != 1.0:
            # The backend divides an average by the number of ranks, after the sum.
            options["prescale_factor"] = 1.0 / self.predivide_factor
            options["postscale_factor"] = self.predivide_factor
        return options

    def _reduce_sparse(self, gradient: tf.IndexedSlices, name: str) -> tf.IndexedSlices:
        if self.op not in (self.hvd.Average, self.hvd.Sum):
            raise OptimizerError(
                "sparse gradients can be averaged and summed, and nothing else: pass sparse_as_dense=True, "
                "or op=hvd.Average"
            )
        options = {"process_set": self.process_set, "ignore_name_scope": True}
        with tf.device(self.device_sparse):
            values, context = self.compressor.compress(gradient.values)
            values = self.hvd.allgather(values, name=f"{name}_values", **options)
            indices = self.hvd.allgather(gradient.indices, name=f"{name}_indices", **options)
            values = self.compressor.decompress(values, context)
            if self.op == self.hvd.Average:
                values /= tf.cast(self.size, values.dtype)
        return tf.IndexedSlices(values, indices, gradient.dense_shape)

    def _scaled(self, gradient: Any) -> Any:
        if not self.scale_local_gradients:
            return gradient
        if isinstance(gradient, tf.IndexedSlices):
            values = gradient.values / tf.cast(self.size, gradient.values.dtype)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return gradient / tf.cast(self.size, gradient.dtype)
