"""Batch normalization over the batches of all ranks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.keras.names import name_of


@keras.saving.register_keras_serializable(package="airflow_hydrogen")
class SyncBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """`hvd.SyncBatchNormalization`: mean and variance of a batch are those of all ranks' batches.

    Follows `horovod.tensorflow.SyncBatchNormalization`: the ranks' means, and means of squares, count alike.
    Give every rank batches of one size. A saved model with this layer is loaded where this module is
    imported; scoring does that by itself.

    Args:
        fused: of Keras 2; False alone is possible.
        kwargs: of `keras.layers.BatchNormalization`.
    """

    def __init__(self, fused: bool = False, **kwargs: Any) -> None:
        if fused in (True, None):
            raise OptimizerError(f"SyncBatchNormalization cannot be fused: pass fused=False, found {fused!r}")
        kwargs.setdefault("name", None)
        super().__init__(**kwargs)

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        import horovod.tensorflow as hvd

        from airflow_hydrogen.runtime.horovod_bridge.serve import announce

        announce()
        mean, variance = super()._moments(inputs, mask)
        if not hvd.is_initialized() or hvd.size() == 1:
            return mean, variance
        # Var[x] = E[x^2] - E[x]^2, and E is a mean over ranks.
        mean, mean_of_square = tf.unstack(_averaged(tf.stack([mean, variance + mean**2])))
        return mean, mean_of_square - mean**2


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _averaged(tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """The mean over the ranks, whose gradient is the mean of theirs."""
    import horovod.tensorflow as hvd

    def average(value: tf.Tensor, kind: str) -> tf.Tensor:
        name = name_of(kind, [value])
        return hvd.allreduce(value, op=hvd.Average, name=name, ignore_name_scope=True)

    return average(tensor, "moments"), lambda gradient: average(gradient, "moments_gradient")
