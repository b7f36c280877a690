"""The training that several benchmarks measure: the example's model on its prepared flights."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import RANKS, horovodrun
from bench.turns import Contender, meter

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

BATCH_ROWS = 512  # of a rank, as in `flights.train:main`
_EPOCHS = 10_000  # it is told when there is enough


def train(notes: str, lines: str = "") -> None:
    """On every rank: train until there is enough.

    Args:
        notes: folder of the contender.
        lines: print a line a step: "streamed" to where the gang takes it, or "dropped".
    """
    import keras
    from flights.features import LABELS, NUMBERS, WORDS
    from flights.train import build_model

    import airflow_hydrogen.runtime as hydrogen

    context = hydrogen.get_context()
    keras.utils.set_random_seed(2013)
    rows = hydrogen.get_dataset_shard("train").to_tf(
        BATCH_ROWS, label=LABELS, features=[*NUMBERS, *WORDS], layout="columns"
    )
    model = build_model()
    model.compile(
        hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(1e-3 * context.size)),
        loss={"delay": "mse", "late": "binary_crossentropy"},
        loss_weights={"delay": 1 / 40**2, "late": 1.0},
    )
    if lines == "dropped":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    say = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: print(f"step {batch} of a training that says so")
    )
    callbacks = [*hydrogen.keras.callbacks(), *([say] if lines else []), meter(notes, context.rank)]
    model.fit(rows, epochs=_EPOCHS, callbacks=callbacks, verbose=0)


def prepare_flights(spark: SparkSession, folder: Path, where: str) -> tuple[str, int]:
    """Prepare flights for the gang; the folder of the Parquet files, and the number of rows."""
    from flights.data import load
    from flights.features import prepare

    from airflow_hydrogen.contract.jobs import Source
    from airflow_hydrogen.runtime.data import staging

    lake = str(folder / "lake")
    load(lake)
    staged = staging.stage(
        spark,
        "train",
        Source.parquet(f"{lake}/flights", where=where),
        str(folder / "prepared"),
        ranks=RANKS,
        prepare=prepare,
        prepare_kwargs={"lake": lake, "labelled": True},
    )
    return staged.uri, staged.rows


def gang(data: str, notes: Path, *, checkpoints: bool = False, lines: str = "") -> Contender:
    """Our gang, as a training job runs it."""

    def run(folder: str) -> None:
        from airflow_hydrogen.contract.jobs import Entrypoint
        from airflow_hydrogen.runtime import HorovodRunner
        from airflow_hydrogen.runtime.data.files import list_dataset, read_footers
        from airflow_hydrogen.runtime.rank.task import RankTask

        task = RankTask(
            Entrypoint.parse("bench.flights_model:train"),
            kwargs={"notes": folder, "lines": lines},
            datasets={"train": read_footers(list_dataset(data))},
            checkpoints_uri=f"{folder}/checkpoints" if checkpoints else None,
        )
        HorovodRunner(RANKS).run_task(task)

    return Contender(notes, run)


def by_horovodrun(data: str, notes: Path) -> Contender:
    """The same training, as `horovodrun` starts it."""
    return Contender(notes, lambda folder: horovodrun("bench.flights_model", data, folder))


def _main(data: str, notes: str) -> None:
    """One rank under horovodrun: the job's dataset put where the gang puts it."""
    from airflow_hydrogen.runtime import get_context

    get_context().datasets = {"train": data}
    train(notes)


if __name__ == "__main__":
    _main(*sys.argv[1:])
