"""What safety costs: training with a checkpoint after each epoch, and with its log streamed.

The flights model on two ranks, which move in turns with those of the same training without: no checkpoints;
and output that goes nowhere.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path

from bench.flights_model import BATCH_ROWS, gang, prepare_flights
from bench.measure import RANKS, Result, Target, compare
from bench.spark import local_spark
from bench.turns import rates_in_turns


def measure(folder: Path, quick: bool) -> list[Result]:
    """Train with and without, in turns."""
    blocks = 1 if quick else 6
    with local_spark(2 * RANKS) as spark:
        data, rows = prepare_flights(spark, folder, "ds < '2013-01-15'" if quick else "ds < '2013-10-01'")
        # The driver's output goes to a file, as it goes to Airflow: the terminal is not what is measured.
        with (folder / "log").open("w") as log, redirect_stdout(log):
            checkpoints = rates_in_turns(
                gang(data, folder / "checkpoints", checkpoints=True),
                gang(data, folder / "none"),
                blocks=blocks,
            )
            lines = rates_in_turns(
                gang(data, folder / "streamed", lines="streamed"),
                gang(data, folder / "dropped", lines="dropped"),
                blocks=blocks,
            )
    scale = BATCH_ROWS * RANKS
    return [
        compare(
            name,
            [(mine * scale, other * scale) for mine, other in pairs],
            unit="rows/s",
            against=against,
            target=target,
            rows=rows,
        )
        for name, pairs, against, target in (
            (
                "training with a checkpoint each epoch",
                checkpoints,
                "without checkpoints",
                Target(">=", 0.97),
            ),
            (
                "training that prints a line a step, streamed",
                lines,
                "the same, its output dropped",
                Target(">=", 0.99),
            ),
        )
    ]
