"""What safety costs: seconds of training with a checkpoint after each epoch, and with its log streamed.

The flights model on two ranks. Each against the same training without: no checkpoints; and output that goes
nowhere.
"""

from __future__ import annotations

import os
import pickle
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import RANKS, Result, Target, alternate, compare
from bench.spark import local_spark
from bench.training import prepare_flights

if TYPE_CHECKING:
    pass


def measure(folder: Path, quick: bool) -> list[Result]:
    """Train for some epochs with and without, in turns."""
    epochs, pairs = (2, 1) if quick else (5, 4)
    with local_spark() as spark:
        data, rows = prepare_flights(spark, folder, "ds < '2013-01-15'" if quick else "ds < '2013-10-01'")
        run = partial(_train, data, epochs, folder)
        checkpoints = alternate(partial(run, checkpoints=True), partial(run), pairs)
        lines = alternate(partial(run, lines="streamed"), partial(run, lines="dropped"), pairs)
    shared = {"unit": "s", "rows": rows, "epochs": epochs}
    return [
        compare(
            "training with a checkpoint each epoch",
            checkpoints,
            against="without checkpoints",
            target=Target("<=", 1.03),
            **shared,
        ),
        compare(
            "training that prints a line a step, streamed",
            lines,
            against="the same, its output dropped",
            target=Target("<=", 1.01),
            **shared,
        ),
    ]


def train(epochs: int, lines: str) -> float:
    """On every rank: seconds of `fit` after the first epoch."""
    import keras
    from flights.features import LABELS, NUMBERS, WORDS
    from flights.train import build_model

    import airflow_hydrogen.runtime as hydrogen

    context = hydrogen.get_context()
    rows = hydrogen.get_dataset_shard("train").to_tf(
        512, label=LABELS, features=[*NUMBERS, *WORDS], layout="columns"
    )
    model = build_model()
    model.compile(
        hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(1e-3)),
        loss={"delay": "mse", "late": "binary_crossentropy"},
        loss_weights={"delay": 1 / 40**2, "late": 1.0},
    )
    if lines == "dropped":
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
    ended: list[float] = []

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if lines:
                print(f"step {batch} of a training that has something to say about each")

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            ended.append(time.monotonic())

        def on_train_end(self, logs: Any = None) -> None:
            ended.append(time.monotonic())

    callbacks = [*hydrogen.keras.callbacks(tensorboard=False), Clock()]
    model.fit(rows, epochs=epochs, callbacks=callbacks, verbose=0)
    return ended[-1] - ended[1] if context.rank == 0 else 0.0


def _train(data: str, epochs: int, folder: Path, *, checkpoints: bool = False, lines: str = "") -> float:
    from airflow_hydrogen.contract.jobs import Entrypoint
    from airflow_hydrogen.runtime import HorovodRunner
    from airflow_hydrogen.runtime.process import RankTask

    task = RankTask(
        Entrypoint.parse("bench.overheads:train"),
        kwargs={"epochs": epochs, "lines": lines},
        datasets={"train": data},
        checkpoints_uri=str(folder / f"checkpoints-{time.monotonic_ns()}") if checkpoints else None,
    )
    # To a file, as the driver's output goes to Airflow: the terminal is not what is measured.
    with (folder / "log").open("w") as log, redirect_stdout(log):
        return float(pickle.loads(HorovodRunner(RANKS).run_task(task).answer))
