"""Horovod's gradient tapes, over variables of Keras 3 and of TensorFlow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.horovod_bridge.optimizers import reduction_of
from airflow_hydrogen.runtime.horovod_bridge.serve import announce, by_name
from airflow_hydrogen.runtime.keras.names import name_of
from airflow_hydrogen.runtime.keras.reduction import Reduction


def for_any_variable(original: Callable[..., Any]) -> Callable[..., Any]:
    """`hvd.DistributedGradientTape` and `hvd.PartialDistributedGradientTape`."""

    def make(*args: Any, **kwargs: Any) -> Any:
        return distributed(**by_name(original, args, kwargs))

    return make


def distributed(gradtape: tf.GradientTape, *, local_layers: Any = None, **options: Any) -> tf.GradientTape:
    """A tape with what `gradtape` has recorded, whose `gradient` reduces; `gradtape` stays as it is.

    Raises:
        OptimizerError: an argument is not what Horovod documents.
    """
    announce()
    tape = copy.copy(gradtape)
    kind = type(gradtape)
    tape.__class__ = type(kind.__name__, (_DistributedTape, kind), {})
    tape._reduction = reduction_of(local_layers=local_layers, **options)
    return tape


class _DistributedTape:
    """What `hvd.DistributedGradientTape` adds to a tape."""

    _reduction: Reduction

    def register_local_source(self, source: Any) -> None:
        """Keep the gradients of a variable each rank's own."""
        self._reduction.register_local(source)

    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        use_generic_names: bool = False,
        *,
        unconnected_gradients: Any = tf.UnconnectedGradients.NONE,
    ) -> Any:
        """As `tf.GradientTape.gradient`, reduced over the ranks.

        Args:
            target, sources, output_gradients, unconnected_gradients: of TensorFlow's.
            use_generic_names: Horovod's way to names that do not depend on layers; here they never do.
        """
        gradients = super().gradient(target, sources, output_gradients, unconnected_gradients)  # type: ignore[misc]
        # IndexedSlices are leaves, as they are to the tape.
        flat, flat_sources = tf.nest.flatten(gradients), tf.nest.flatten(sources)
        reduced = self._reduction(flat, flat_sources, name_of("tape", flat))
        return tf.nest.pack_sequence_as(gradients, reduced)

    def jacobian(self, *args: Any, **kwargs: Any) -> Any:
        """Not there: TensorFlow asks for its rows at the same time, under one name.

        Raises:
            OptimizerError: always.
        """
        raise OptimizerError(
            "hvd.DistributedGradientTape reduces gradients alone: take the Jacobian from the tf.GradientTape "
            "that it was made of, and reduce it with hvd.allreduce(...)"
        )

    batch_jacobian = jacobian

    def get_local_and_global_gradients(
        self,
        target: Any,
        sources: Sequence[Any],
        output_gradients: Any = None,
        use_generic_names: bool = False,
    ) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
        """Pairs of source and gradient: those that stay each rank's own, and those that were reduced."""
        pairs = zip(sources, self.gradient(target, sources, output_gradients), strict=True)
        local: list[tuple[Any, Any]] = []
        shared: list[tuple[Any, Any]] = []
        for source, gradient in pairs:
            (local if self._reduction.is_local(source) else shared).append((source, gradient))
        return local, shared
