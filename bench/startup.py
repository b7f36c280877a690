"""Seconds until two ranks have done their first allreduce, against `horovodrun -np 2`.

Ours: from the moment a fresh Spark application, which has run no Python yet, asks for the barrier stage.
Theirs: from the launch of `horovodrun`. Both end when rank 0 has the sum. Both import TensorFlow meanwhile,
which takes most of the time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.measure import RANKS, Result, Target, alternate, compare, horovodrun, python
from bench.ranks import first_allreduce


def measure(folder: Path, quick: bool) -> list[Result]:
    """Start both, in turns."""
    return [
        compare(
            "start to first allreduce",
            alternate(_on_spark, _by_horovodrun, 1 if quick else 5),
            unit="s",
            against="horovodrun -np 2",
            target=Target("<=", 1.3),
        )
    ]


def _on_spark() -> float:
    return float(python("-m", "bench.startup", "spark"))


def _by_horovodrun() -> float:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "done"
        started = time.monotonic()
        horovodrun("bench.startup", "rank", str(answer))
        return float(answer.read_text()) - started


def _main(role: str, answer: str = "") -> None:
    if role == "rank":
        done = first_allreduce()
        import horovod.tensorflow as hvd

        if hvd.rank() == 0:
            Path(answer).write_text(repr(done))
        return
    from airflow_hydrogen.runtime import HorovodRunner
    from bench.spark import local_spark

    with local_spark():
        started = time.monotonic()
        done = HorovodRunner(RANKS, driver_log_verbosity="log_callback_only").run(
            "bench.ranks:first_allreduce"
        )
        print(done - started, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
