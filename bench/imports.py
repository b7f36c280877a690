"""Seconds that a DAG file waits for our operators, against those for SparkSubmitOperator alone.

Airflow parses every DAG file in a fresh process, again and again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.measure import Result, Target, alternate, compare, python

_TIMED = "import time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"
_OURS = (
    "from airflow_hydrogen.operators.train import HorovodTrainOperator; "
    "from airflow_hydrogen.operators.inference import ArrowInferenceOperator"
)
_SPARK_SUBMIT = "from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator"


def measure(folder: Path, quick: bool) -> list[Result]:
    """Import each in interpreters of their own, in turns."""
    ours, baseline = (partial(_seconds, statement, folder) for statement in (_OURS, _SPARK_SUBMIT))
    ours(), baseline()  # write bytecode, warm the page cache
    return [
        compare(
            "import of the operators",
            alternate(ours, baseline, 3 if quick else 11),
            unit="s",
            against="SparkSubmitOperator alone",
            target=Target("<=", 0.1, "s more"),
            difference=True,
        )
    ]


def _seconds(statement: str, home: Path) -> float:
    return float(python("-c", _TIMED.format(statement), AIRFLOW_HOME=str(home)))
