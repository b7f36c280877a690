"""Whether the ranks still train one model: their weights compared, whatever the training loop."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np

from airflow_hydrogen.contract.errors import RanksDivergedError
from airflow_hydrogen.runtime.keras import collectives
from airflow_hydrogen.runtime.rank.checksums import checksum
from airflow_hydrogen.runtime.rank.context import get_context

log = logging.getLogger(__name__)

# Ranks that apply the same gradients have the same bits. The exception: a GPU adds up the rows of a sparse
# gradient in no fixed order. Such differences stay this small, against the variable's largest number.
_ROUNDING = 1e-4


class EqualWeightsCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Fail at the end of an epoch after which the ranks have different weights.

    They have as soon as one gradient is applied that was not averaged: by a plain optimizer in a custom
    `train_step`, say. Stands before what reports the epoch and what saves it.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare.

        Raises:
            RanksDivergedError: the weights differ.
        """
        _compare(self.model, f"after epoch {epoch}")


def require_equal_weights(model: keras.Model) -> None:
    """Fail where the ranks have different weights: for loops of your own, once an epoch.

    Only the trainable weights count; the moving statistics of BatchNormalization are each rank's own. Every
    rank sends a checksum of each variable, and its numbers only where those differ. Differences of rounding
    size, which sparse gradients on GPUs leave, are a warning.

    Call it on every rank or on none: the ranks wait for each other. With one rank it does nothing.

    Raises:
        RanksDivergedError: the weights differ; on every rank.
    """
    _compare(model, "now")


def _compare(model: keras.Model, when: str) -> None:
    if collectives.size() == 1:
        return
    variables = model.trainable_variables
    collectives.require_same(f"the model has {len(variables)} trainable variables", len(variables))
    others = collectives.differing([checksum(variable) for variable in variables])
    if others:
        collectives.require_same_shapes([variables[number] for number in others])
        for number in others:
            _require_close(variables[number], f"{len(others)} of {len(variables)}", when)
        log.warning(
            "%s the weights of %d variables differ between the ranks by rounding, %r first",
            when,
            len(others),
            variables[others[0]].path,
        )
    get_context().weights_compared = True


def _require_close(variable: Any, share: str, when: str) -> None:
    """Compare a variable with rank 0's, number by number. Every rank comes to the same end."""
    mine = np.asarray(variable).astype("float64")
    first = collectives.first_rank_value(mine)
    with np.errstate(invalid="ignore"):
        apart = np.where((mine == first) | (np.isnan(mine) & np.isnan(first)), 0.0, np.abs(mine - first))
    largest = float(np.nan_to_num(np.abs(first), nan=0.0, posinf=0.0).max())
    furthest = float(np.nan_to_num(apart, nan=np.inf).max())
    distances = collectives.gather(np.array([furthest])).tolist()
    if all(distance <= _ROUNDING * largest for distance in distances):
        return
    found = ", ".join(
        f"rank {rank} by up to {distance:.3g}" for rank, distance in enumerate(distances) if rank
    )
    raise RanksDivergedError(
        when,
        variable.path,
        f"{share} trainable variables differ, and {variable.path!r} on {found} from rank 0, whose largest "
        f"number there is {largest:.3g}",
    )
