"""The callbacks that a training on several ranks needs, in the order in which it needs them."""

from __future__ import annotations

import keras

from airflow_hydrogen.runtime.keras.checkpoint import CheckpointCallback, OnError
from airflow_hydrogen.runtime.keras.equality import EqualWeightsCallback
from airflow_hydrogen.runtime.keras.history import EventsCallback, HistoryCallback, ShardEpochCallback
from airflow_hydrogen.runtime.keras.synchronize import BroadcastCallback, MetricAverageCallback
from airflow_hydrogen.runtime.keras.warmup import LearningRateWarmupCallback
from airflow_hydrogen.runtime.keras.watching import NonFiniteLossCallback, ProgressCallback


def callbacks(
    *,
    warmup_epochs: float | None = None,
    checkpoint_every: int = 1,
    checkpoint_every_s: float | None = None,
    keep_checkpoints: int = 2,
    on_checkpoint_error: OnError = "raise",
    terminate_on_nan: bool = True,
    check_weights: bool = True,
    tensorboard: bool = True,
) -> list[keras.callbacks.Callback]:
    """Callbacks for `model.fit`, the same list on every rank.

    Put your own behind them: `fit(..., callbacks=[*hydrogen.keras.callbacks(), EarlyStopping()])`. The
    order matters:

    1. `BroadcastCallback` starts all ranks from the same state;
    2. `ProgressCallback` tells the watchdog of each step;
    3. `MetricAverageCallback` changes the metrics in place, so all that read them stand behind it;
    4. `NonFiniteLossCallback` keeps weights that are no numbers out of the checkpoint;
    5. `EqualWeightsCallback` keeps the weights of ranks that train different models out of it as well;
    6. `LearningRateWarmupCallback` sets the rate that the checkpoint is to hold;
    7. `ShardEpochCallback` sets the order of the rows;
    8. `HistoryCallback` reports the epoch, so that the checkpoint's history has it;
    9. `CheckpointCallback` restores over what was broadcast, and saves what the others have done;
    10. `EventsCallback`.

    Args:
        warmup_epochs: raise the learning rate over so many epochs; None: no warm-up.
        checkpoint_every: epochs from one checkpoint to the next, where the job keeps them.
        checkpoint_every_s: about so many seconds from one to the next within an epoch as well.
        keep_checkpoints: how many stay.
        on_checkpoint_error: "raise" or "continue" where one cannot be written.
        terminate_on_nan: fail once the loss is NaN or infinite.
        check_weights: fail once the ranks have different weights. False where they are meant to: a
            `train_step` that averages now and then only.
        tensorboard: write event files, where the job has a local place for them.
    """
    chosen: list[keras.callbacks.Callback] = [
        BroadcastCallback(),
        ProgressCallback(),
        MetricAverageCallback(),
    ]
    if terminate_on_nan:
        chosen.append(NonFiniteLossCallback())
    if check_weights:
        chosen.append(EqualWeightsCallback())
    if warmup_epochs is not None:
        chosen.append(LearningRateWarmupCallback(warmup_epochs))
    chosen += [
        ShardEpochCallback(),
        HistoryCallback(),
        CheckpointCallback(
            every=checkpoint_every,
            every_s=checkpoint_every_s,
            keep=keep_checkpoints,
            on_error=on_checkpoint_error,
        ),
    ]
    if tensorboard:
        chosen.append(EventsCallback())
    return chosen
