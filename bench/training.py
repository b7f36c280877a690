"""Training rows/s of the flights model on two ranks, against `horovodrun -np 2`.

Both sides run the same function on the same prepared Parquet files with the same number of math threads, and
move in turns of half a second. Neither the start of Spark nor that of TensorFlow is in it.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path

from bench.flights_model import BATCH_ROWS, by_horovodrun, gang, prepare_flights
from bench.measure import RANKS, Result, Target, compare
from bench.spark import local_spark
from bench.turns import rates_in_turns


def measure(folder: Path, quick: bool) -> list[Result]:
    """Start both, and let them move in turns."""
    with local_spark() as spark:
        data, rows = prepare_flights(spark, folder, "ds < '2013-01-15'" if quick else "ds < '2013-10-01'")
        with (folder / "log").open("w") as log, redirect_stdout(log):
            pairs = rates_in_turns(
                gang(data, folder / "gang"),
                by_horovodrun(data, folder / "horovodrun"),
                blocks=1 if quick else 6,
            )
    scale = BATCH_ROWS * RANKS
    return [
        compare(
            "training on 2 ranks, flights model",
            [(mine * scale, other * scale) for mine, other in pairs],
            unit="rows/s",
            against="horovodrun -np 2",
            target=Target(">=", 0.97),
            rows=rows,
        )
    ]
