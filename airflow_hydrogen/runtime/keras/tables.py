"""What layers learn in `adapt` and do not keep in variables: vocabularies and the bounds of bins.

Every rank that adapts such a layer to its shard gets another table: the same word has another number there.
They cannot be broadcast as variables are. Keras fixes a vocabulary's size as soon as a layer is called, and
rank 0's shard alone does not have all words. So they have to be the same from the start.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import keras

from airflow_hydrogen.contract.errors import CheckpointError, OptimizerError
from airflow_hydrogen.runtime.keras import collectives


def require_equal(model: keras.Model) -> None:
    """Fail on every rank where the ranks' layers have learnt different tables.

    Raises:
        OptimizerError: they have; it names the first such layer.
    """
    if collectives.size() == 1:
        return
    tables = _tables(model)
    collectives.require_same(f"the model has {len(tables)} layers with a vocabulary or bins", len(tables))
    others = collectives.differing([_checksum(table) for _, table in tables])
    if others:
        layer, table = tables[others[0]]
        found = collectives.gather_json([layer.name, len(table)])
        kind = type(layer).__name__
        entries = ", ".join(f"{length} entries on rank {rank}" for rank, (_, length) in enumerate(found))
        raise OptimizerError(
            f"layer {layer.name!r} ({kind}) has learnt something else on each rank ({entries}): each "
            f"adapted it to its own shard. Give all ranks the same: {_remedy(layer)}"
        )


def checksums(model: keras.Model) -> list[int]:
    """Of all tables, for a checkpoint."""
    return [_checksum(table) for _, table in _tables(model)]


def require_those_of(model: keras.Model, saved: Sequence[int]) -> None:
    """Fail where a checkpoint was trained with other tables than the model has now.

    Raises:
        CheckpointError: they are others.
    """
    tables = _tables(model)
    for (layer, table), checksum in zip(tables, saved, strict=False):
        if _checksum(table) != checksum:
            raise CheckpointError(
                f"layer {layer.name!r} ({type(layer).__name__}) has another table than the checkpoint was "
                "trained with: the data to which it is adapted have changed. Remove the checkpoints, or give "
                "the job another model URI"
            )


def _tables(model: keras.Model) -> list[tuple[keras.layers.Layer, list[Any]]]:
    found: list[tuple[keras.layers.Layer, list[Any]]] = []
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Discretization):
            found.append((layer, list(layer.bin_boundaries or ())))
        elif hasattr(layer, "get_vocabulary"):
            weights = getattr(layer, "idf_weights_const", None)
            found.append(
                (layer, [*layer.get_vocabulary(), *(weights.numpy().tolist() if weights is not None else ())])
            )
    return found


def _checksum(table: Sequence[Any]) -> int:
    return zlib.crc32("\n".join(map(repr, table)).encode())


def _remedy(layer: keras.layers.Layer) -> str:
    if isinstance(layer, keras.layers.Discretization):
        return (
            "Discretization(bin_boundaries=hvd.broadcast_object(adapted.bin_boundaries)), or bounds that are "
            "known before"
        )
    return (
        "words = hvd.allgather_object(adapted.get_vocabulary(include_special_tokens=False)), then "
        f"{type(layer).__name__}(vocabulary=sorted(set().union(*words))), or one that is known before"
    )
