"""Parsing a DAG that uses the operators imports nothing heavy, and costs next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {
    "cloudpickle",
    "horovod",
    "keras",
    "numpy",
    "pandas",
    "pyarrow",
    "pyspark",
    "tensorflow",
    "torch",
    "airflow_hydrogen.runtime",
}
OURS = [
    "airflow_hydrogen.operators.train",
    "airflow_hydrogen.operators.inference",
    "airflow_hydrogen.decorators.horovod",
    "airflow_hydrogen.sensors.gpu_cluster",
    "airflow_hydrogen.contract.jobs",
]
# What a DAG file with a SparkSubmitOperator and TaskFlow imports anyway.
ANYWAY = [
    "airflow.providers.apache.spark.operators.spark_submit",
    "airflow.sdk.definitions.dag",
    "airflow.sdk.bases.decorator",
]


def import_in_a_fresh_interpreter(modules: list[str]) -> tuple[set[str], float]:
    """Modules that are loaded after imports, and the CPU seconds of these imports."""
    code = (
        "import gc, importlib, json, sys, time\n"
        f"for name in {ANYWAY!r}: importlib.import_module(name)\n"
        "gc.collect()  # else a collection of what Airflow left falls into our time\n"
        "start = time.process_time()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps([sorted(sys.modules), time.process_time() - start]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ
    )
    loaded, seconds = json.loads(done.stdout.splitlines()[-1])
    return set(loaded), seconds


def test_operators_import_nothing_heavy_and_little_else() -> None:
    before, _ = import_in_a_fresh_interpreter([])
    after, seconds = import_in_a_fresh_interpreter(OURS)
    added = after - before
    heavy = {name for name in added if name.partition(".")[0] in HEAVY or name in HEAVY}
    assert not heavy
    assert not {name for name in after if name.startswith("airflow_hydrogen.runtime")}
    if seconds >= 0.1:  # a busy machine
        seconds = min(seconds, import_in_a_fresh_interpreter(OURS)[1])
    assert seconds < 0.1, f"importing the operators costs {seconds:.3f} s more than SparkSubmitOperator"
