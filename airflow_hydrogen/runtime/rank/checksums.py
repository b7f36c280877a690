"""Checksums of weights: whether two ranks have the same, without sending them."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from typing import Any

from airflow_hydrogen.contract.errors import RanksDivergedError
from airflow_hydrogen.runtime.rank.context import TrainContext

Weights = tuple[tuple[str, int], ...]


def checksum(values: Any) -> int:
    """CRC-32 of an array's bytes, shape and type: the same for arrays that are the same bit for bit.

    About 0.7 billion float32 numbers a second, with the copy out of TensorFlow. NaNs count as the bits that
    they are.
    """
    import numpy as np  # here: not every rank has a model

    array = np.asarray(values)
    kind = zlib.crc32(f"{array.dtype}{array.shape}".encode())
    # As plain bytes: the buffer protocol knows no bfloat16.
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, kind)


def of_returned(value: Any, context: TrainContext) -> Weights | None:
    """Path and checksum of each trainable variable of a Keras model that `main` returned.

    None where there is nothing to compare: for other values, with one rank, and where the ranks have
    compared their weights while they trained.
    """
    keras = sys.modules.get("keras")
    if context.size == 1 or context.weights_compared or keras is None or not isinstance(value, keras.Model):
        return None
    return tuple((variable.path, checksum(variable)) for variable in value.trainable_variables)


def require_equal(weights: Sequence[Weights | None]) -> None:
    """Compare what the ranks' models are made of, where `main` returned one on every rank.

    Args:
        weights: of every rank, by rank.

    Raises:
        RanksDivergedError: a model is not rank 0's, which would be published.
    """
    models = [found for found in weights if found is not None]
    if len(models) < len(weights):
        return
    first = models[0]
    advice = "(where that is meant, return the model on rank 0 alone)"
    for rank, model in enumerate(models):
        if len(model) != len(first):
            raise RanksDivergedError(
                "at the end of main",
                max(first, model, key=len)[min(len(first), len(model))][0],
                f"rank {rank} returned a model with {len(model)} trainable variables, rank 0 one with "
                f"{len(first)} {advice}",
            )
        # By their places: Keras counts names per process.
        others = [
            path for (path, expected), (_, found) in zip(first, model, strict=True) if found != expected
        ]
        if others:
            raise RanksDivergedError(
                "at the end of main",
                others[0],
                f"{len(others)} of {len(first)} trainable variables of the models that main returned on "
                f"ranks 0 and {rank} differ {advice}",
            )
