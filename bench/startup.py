"""Seconds until two ranks have done their first allreduce, against `horovodrun -np 2`.

Ours: from the moment a Spark application asks for the barrier stage: a fresh one, which has run no Python;
one that has warmed its template for ten seconds, as a training does while it prepares data (here the driver
only sleeps meanwhile); and one that asks for its second gang. Theirs: from the launch of `horovodrun`. Both
end when rank 0 has the sum.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.measure import RANKS, Result, Target, compare, horovodrun, python
from bench.ranks import first_allreduce

_ENTRYPOINT = "bench.ranks:first_allreduce"
_PREPARED_S = 10.0


def measure(folder: Path, quick: bool) -> list[Result]:
    """Start both, in turns."""
    rounds = []
    for _ in range(1 if quick else 3):
        baseline = _by_horovodrun()
        cold, warm = _on_spark("cold")
        prepared, _ = _on_spark("prepared")
        rounds.append((cold, prepared, warm, baseline))
        print(f"    cold, prepared, warm, horovodrun: {rounds[-1]}", flush=True)
    named = {
        "start to first allreduce": 1.3,
        "the same, data prepared for 10 s before": 0.15,
        "the same, second gang of an application": 0.12,
    }
    return [
        compare(
            name,
            [(times[column], times[-1]) for times in rounds],
            unit="s",
            against="horovodrun -np 2",
            target=Target("<=", bound),
        )
        for column, (name, bound) in enumerate(named.items())
    ]


def _on_spark(role: str) -> list[float]:
    """The first and the second gang of an application."""
    return [float(seconds) for seconds in python("-m", "bench.startup", role).split()]


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
    from airflow_hydrogen.contract.jobs import Entrypoint
    from airflow_hydrogen.runtime import HorovodRunner
    from bench.spark import local_spark

    seconds = []
    with local_spark() as spark:
        for number in range(2):
            runner = HorovodRunner(RANKS, driver_log_verbosity="log_callback_only")
            if role == "prepared" and number == 0:
                runner.warm(spark, Entrypoint.parse(_ENTRYPOINT), None)
                time.sleep(_PREPARED_S)
            started = time.monotonic()
            seconds.append(runner.run(_ENTRYPOINT) - started)
    print(*seconds, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
