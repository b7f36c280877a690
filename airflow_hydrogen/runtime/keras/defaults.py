"""The callbacks that a training on several ranks needs, in the order in which it needs them."""

from __future__ import annotations

import keras

from airflow_hydrogen.runtime.keras.checkpoint import CheckpointCallback
from airflow_hydrogen.runtime.keras.history import EventsCallback, HistoryCallback, ShardEpochCallback
from airflow_hydrogen.runtime.keras.synchronize import BroadcastCallback, MetricAverageCallback
from airflow_hydrogen.runtime.keras.warmup import LearningRateWarmupCallback


def callbacks(
    *,
    warmup_epochs: float | None = None,
    checkpoint_every: int = 1,
    keep_checkpoints: int = 2,
    tensorboard: bool = True,
) -> list[keras.callbacks.Callback]:
    """Callbacks for `model.fit`, the same list on every rank.

    Put your own behind them: `fit(..., callbacks=[*hydrogen.keras.callbacks(), EarlyStopping()])`. The
    order matters:

    1. `BroadcastCallback` starts all ranks from the same state;
    2. `MetricAverageCallback` changes the metrics in place, so all that read them stand behind it;
    3. `LearningRateWarmupCallback` sets the rate that the checkpoint is to hold;
    4. `ShardEpochCallback` sets the order of the rows;
    5. `HistoryCallback` reports the epoch, so that the checkpoint's history has it;
    6. `CheckpointCallback` restores over what was broadcast, and saves what the others have done;
    7. `EventsCallback`.

    Args:
        warmup_epochs: raise the learning rate over so many epochs; None: no warm-up.
        checkpoint_every: epochs from one checkpoint to the next, where the job keeps them.
        keep_checkpoints: how many stay.
        tensorboard: write event files, where the job has a local place for them.
    """
    chosen: list[keras.callbacks.Callback] = [BroadcastCallback(), MetricAverageCallback()]
    if warmup_epochs is not None:
        chosen.append(LearningRateWarmupCallback(warmup_epochs))
    chosen += [
        ShardEpochCallback(),
        HistoryCallback(),
        CheckpointCallback(every=checkpoint_every, keep=keep_checkpoints),
    ]
    if tensorboard:
        chosen.append(EventsCallback())
    return chosen
