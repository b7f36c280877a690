"""Training rows/s of the flights model on two ranks, against `horovodrun -np 2`.

Both sides run `flights.train:main` on the same prepared Parquet files with the same number of math threads,
and report the rows/s that the training itself measured, from its second epoch on: neither the start of Spark
nor that of TensorFlow is in it.
"""

from __future__ import annotations

import json
import pickle
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import RANKS, Result, Target, alternate, compare, horovodrun
from bench.spark import local_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def measure(folder: Path, quick: bool) -> list[Result]:
    """Train for some epochs with each, in turns."""
    epochs = 2 if quick else 4
    with local_spark() as spark:
        data, rows = prepare_flights(spark, folder, "ds < '2013-01-15'" if quick else "ds < '2013-10-01'")
        pairs = alternate(
            partial(_on_spark, spark, data, epochs), partial(_by_horovodrun, data, epochs), 1 if quick else 5
        )
    return [
        compare(
            "training on 2 ranks, flights model",
            pairs,
            unit="rows/s",
            against="horovodrun -np 2",
            target=Target(">=", 0.97),
            rows=rows,
            epochs=epochs,
        )
    ]


def train(epochs: int) -> float:
    """On every rank: rows/s of all ranks together, over the epochs after the first."""
    from flights.train import main as train_flights

    from airflow_hydrogen.runtime import get_context

    train_flights(epochs=epochs)
    context = get_context()
    if context.rank > 0:
        return 0.0
    return statistics.harmonic_mean([line["rows_per_second"] for line in context.history[1:]])


def prepare_flights(spark: SparkSession, folder: Path, where: str) -> tuple[str, int]:
    """Prepare flights for the gang; the folder of the Parquet files, and the number of rows."""
    from flights.data import load
    from flights.features import prepare

    from airflow_hydrogen.contract.jobs import Source
    from airflow_hydrogen.runtime import sources

    lake = str(folder / "lake")
    load(lake)
    staged = sources.stage(
        spark,
        "train",
        Source.parquet(f"{lake}/flights", where=where),
        str(folder / "prepared"),
        ranks=RANKS,
        prepare=prepare,
        prepare_kwargs={"lake": lake, "labelled": True},
    )
    return staged.uri, staged.rows


def _on_spark(spark: SparkSession, data: str, epochs: int) -> float:
    from airflow_hydrogen.contract.jobs import Entrypoint
    from airflow_hydrogen.runtime import HorovodRunner
    from airflow_hydrogen.runtime.process import RankTask

    task = RankTask(
        Entrypoint.parse("bench.training:train"), kwargs={"epochs": epochs}, datasets={"train": data}
    )
    result = HorovodRunner(RANKS, driver_log_verbosity="log_callback_only").run_task(task)
    return float(pickle.loads(result.answer))


def _by_horovodrun(data: str, epochs: int) -> float:
    answer = Path(data).with_name("horovodrun.json")
    horovodrun("bench.training", data, str(epochs), str(answer))
    return float(json.loads(answer.read_text()))


def _main(data: str, epochs: str, answer: str) -> None:
    """One rank under horovodrun: the job's dataset put where the gang puts it."""
    from airflow_hydrogen.runtime import get_context

    context = get_context()
    context.datasets = {"train": data}
    rate = train(int(epochs))
    if context.rank == 0:
        Path(answer).write_text(json.dumps(rate))


if __name__ == "__main__":
    _main(*sys.argv[1:])
