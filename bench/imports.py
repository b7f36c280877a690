"""Seconds that a DAG file waits for our operators, besides those for SparkSubmitOperator.

Airflow parses every DAG file in a fresh process, again and again. Both are timed in the same interpreter, the
provider's operator first: the import of Airflow itself scatters by more than our part takes.
"""

from __future__ import annotations

import json
from pathlib import Path

from bench.measure import Result, Target, compare, python

_TIMED = """
import gc, json, time
started = time.perf_counter()
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
baseline = time.perf_counter() - started
gc.collect()  # else a collection of what Airflow left falls into our part
started = time.perf_counter()
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
print(json.dumps([baseline + time.perf_counter() - started, baseline]))
"""


def measure(folder: Path, quick: bool) -> list[Result]:
    """Import both in several fresh interpreters, the first of which writes the bytecode."""
    _pair(folder)
    pairs = [_pair(folder) for _ in range(3 if quick else 7)]
    return [
        compare(
            "import of the operators",
            pairs,
            unit="s",
            against="SparkSubmitOperator alone",
            target=Target("<=", 0.1, "s more"),
            difference=True,
        )
    ]


def _pair(home: Path) -> tuple[float, float]:
    ours, baseline = json.loads(python("-c", _TIMED, AIRFLOW_HOME=str(home)))
    return ours, baseline
