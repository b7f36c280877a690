"""How the launch of a gang grows with its size: gangs of 2 to 256 ranks whose `main` does nothing.

All on this machine, in one Spark with as many task slots, without TensorFlow: what is measured is the barrier
stage, the rendezvous, the driver's channel and one process a rank.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bench.measure import Result, Target, compare

SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
SMALL = 16


def measure(folder: Path, quick: bool) -> list[Result]:
    """Launch gangs of growing size, twice."""
    from pyspark.sql import SparkSession

    from airflow_hydrogen.runtime import HorovodRunner

    sizes = SIZES[:4] if quick else SIZES
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master(f"local[{sizes[-1]}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.host", "localhost")
        .config("spark.driver.memory", "2g")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )

    def launch(size: int) -> float:
        began = time.monotonic()
        HorovodRunner(size, driver_log_verbosity="log_callback_only").run("bench.scale:nothing")
        return time.monotonic() - began

    try:
        launch(sizes[-1])  # forks Spark's Python workers
        rounds = [{size: round(launch(size), 3) for size in sizes} for _ in range(1 if quick else 2)]
    finally:
        spark.stop()
    small, large = min(SMALL, sizes[-1]), sizes[-1]
    return [
        compare(
            f"launch of a rank in a gang of {large}",
            [(seconds[large] / large, seconds[small] / small) for seconds in rounds],
            unit="s",
            against=f"in a gang of {small}",
            target=Target("<=", 1.0),
            seconds_by_np={str(size): min(seconds[size] for seconds in rounds) for size in sizes},
        )
    ]


def nothing() -> None:
    """On every rank."""
