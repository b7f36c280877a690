"""Seconds from `kill -9` of a rank to the first step after the restart, against a cold start.

Both end with an allreduce on all ranks. The cold start imports TensorFlow in the template and starts Spark's
first Python workers; the restart pays for finding the failure, ending the others and Spark's second stage.
Each pair has a process of its own: templates live as long as their driver.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bench.measure import RANKS, Result, Target, compare, python
from bench.spark import local_spark


def measure(folder: Path, quick: bool) -> list[Result]:
    """Start and restart a gang in a fresh Spark, several times."""
    pairs = []
    for number in range(1 if quick else 4):
        notes = folder / str(number)
        notes.mkdir()
        began = float(python("-m", "bench.faults", str(notes)))
        restarted = _read(notes, "step.1") - _read(notes, "killed")
        cold = _read(notes, "step.0") - began
        print(f"    restart {restarted:.3g}, cold start {cold:.3g}", flush=True)
        pairs.append((restarted, cold))
    return [
        compare(
            "kill -9 of a rank to the first step after it",
            pairs,
            unit="s",
            against="cold start to the first step",
            target=Target("<=", 0.5),
        )
    ]


def _run(folder: Path) -> float:
    from airflow_hydrogen.runtime import HorovodRunner

    with local_spark():
        began = time.monotonic()
        HorovodRunner(RANKS, max_restarts=1, driver_log_verbosity="log_callback_only").run(
            "bench.ranks:step_and_die", folder=str(folder)
        )
    return began


def _read(folder: Path, name: str) -> float:
    return float(json.loads((folder / name).read_text()))


if __name__ == "__main__":
    print(_run(Path(sys.argv[1])), flush=True)
