"""Warm scoring of few rows and of many: seconds are a line above a million, and a worker's memory is flat.

And the memory of a worker with either engine. Peaks of resident memory are the kernel's high water marks, set
back before each run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract.jobs import Engine
from bench.measure import Result, Target, alternate, compare
from bench.memory import status_mb
from bench.scoring import FEATURES, KEY, publish_model, score_rows
from bench.spark import local_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SIZES = (10_000, 100_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
_PART_ROWS = 500_000
_ROUNDS = 3


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score 10,000 to 30,000,000 rows, and look at the workers."""
    sizes = tuple(size // 10 for size in _SIZES) if quick else _SIZES
    places = _write_all(folder, sizes, _PART_ROWS // 10 if quick else _PART_ROWS)
    first, middle, last = sizes[-4], sizes[-2], sizes[-1]
    model = publish_model(folder, places[first])
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    peaks: dict[int, float] = {}
    with local_spark() as spark:
        score = partial(_score, spark, model, places, str(folder / "scores"))
        score(first)  # imports TensorFlow and loads the model
        for number in range(1 if quick else _ROUNDS):
            for size in sizes:
                _forget_peaks()
                seconds[size].append(score(size))
                if number == 0:  # later ones find what the largest has left
                    peaks[size] = _peak_mb()
                print(f"    {size:,} rows: {seconds[size][-1]:.3g} s", flush=True)
    pairs = [
        (_rate(seconds, number, middle, last), _rate(seconds, number, first, middle))
        for number in range(len(seconds[first]))
    ]
    return [
        compare(
            f"rows a second of those from {middle:,} to {last:,}",
            pairs,
            unit="rows/s",
            against=f"of those from {first:,} to {middle:,}",
            target=Target(">=", 0.9),
            rows_per_second_by_rows={
                str(size): round(size / statistics.median(found)) for size, found in seconds.items()
            },
            off_line=_off_line({size: statistics.median(seconds[size]) for size in sizes[-4:]}),
        ),
        compare(
            f"memory of a worker that scores {last:,} rows",
            [(peaks[last], peaks[first])],
            unit="MB",
            against=f"{first:,} rows",
            target=Target("<=", 1.1),
            worker_mb_by_rows={str(size): round(peak) for size, peak in peaks.items()},
        ),
        _engines(folder, model, places[first], first, quick),
    ]


def _score(spark: SparkSession, model: str, places: Mapping[int, str], target: str, rows: int) -> float:
    return rows / score_rows(spark, model, places[rows], target, rows)


def _rate(seconds: Mapping[int, list[float]], number: int, fewer: int, more: int) -> float:
    """Rows a second of those that one size has more than another: what a job costs anyhow is in both."""
    return (more - fewer) / (seconds[more][number] - seconds[fewer][number])


def _off_line(seconds: Mapping[int, float]) -> dict[str, float]:
    """Rows -> how far their seconds are from the line through the fewest and the most, as a share of it."""
    fewest, most = min(seconds), max(seconds)
    slope = (seconds[most] - seconds[fewest]) / (most - fewest)
    line = {size: seconds[fewest] + slope * (size - fewest) for size in seconds}
    return {str(size): round(seconds[size] / line[size] - 1, 3) for size in seconds}


def _engines(folder: Path, model: str, source: str, rows: int, quick: bool) -> Result:
    """The memory of a worker that has scored in ONNX Runtime alone, against TensorFlow."""

    def peak(engine: Engine) -> float:
        with local_spark() as spark:  # its own, for workers that have done nothing else
            score_rows(spark, model, source, str(folder / "scores"), rows, engine)
            return _peak_mb()

    return compare(
        "memory of a worker, ONNX Runtime",
        alternate(partial(peak, "onnx"), partial(peak, "tensorflow"), 1 if quick else 2),
        unit="MB",
        against="TensorFlow",
        target=Target("<=", 0.4),
        rows=rows,
    )


# --- rows --------------------------------------------------------------------------------------------------


def _write_all(folder: Path, sizes: tuple[int, ...], part_rows: int) -> dict[int, str]:
    """Datasets of these sizes, in files of so many rows which they share."""
    random = np.random.default_rng(0)
    features = {name: random.standard_normal(part_rows, dtype="float32") for name in FEATURES}
    parts = folder / "parts"
    parts.mkdir()
    for number in range(max(sizes) // part_rows):
        _write(parts / f"{number:04d}.parquet", number * part_rows, features)
    places = {}
    for size in sizes:
        place = folder / f"rows-{size}"
        place.mkdir()
        if size < part_rows:
            _write(place / "0000.parquet", 0, {name: values[:size] for name, values in features.items()})
        for number in range(size // part_rows):
            (place / f"{number:04d}.parquet").hardlink_to(parts / f"{number:04d}.parquet")
        places[size] = str(place)
    return places


def _write(file: Path, first_key: int, features: Mapping[str, np.ndarray]) -> None:
    count = len(features[FEATURES[0]])
    pq.write_table(
        pa.table({KEY: np.arange(first_key, first_key + count), **features}), file, use_dictionary=False
    )


# --- workers -----------------------------------------------------------------------------------------------


def _workers() -> list[int]:
    """Processes that Spark's Python daemon has forked."""
    daemons = {process.pid for process in psutil.Process().children(recursive=True) if _is_daemon(process)}
    return [child.pid for pid in daemons for child in psutil.Process(pid).children() if child.pid in daemons]


def _is_daemon(process: psutil.Process) -> bool:
    """Whether it is Spark's Python daemon, or a fork of it."""
    return "pyspark.daemon" in process.cmdline()


def _forget_peaks() -> None:
    for pid in _workers():
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Of a worker, the mean."""
    return statistics.mean(status_mb("VmHWM", pid) for pid in _workers())
