"""Parsing a DAG that uses the operators imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "cloudpickle",
    "horovod",
    "keras",
    "numpy",
    "openlineage",
    "pandas",
    "pyarrow",
    "pyspark",
    "tensorflow",
    "torch",
    "airflow_hydrogen.operators.lineage",
    "airflow_hydrogen.runtime",
}
OURS = [
    "airflow_hydrogen.operators.train",
    "airflow_hydrogen.operators.inference",
    "airflow_hydrogen.operators.publish",
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


def import_in_a_fresh_interpreter(modules: list[str]) -> set[str]:
    """Modules that are loaded after imports; `bench/imports.py` measures the seconds."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {[*ANYWAY, *modules]!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.medium
def test_operators_import_nothing_heavy() -> None:
    after = import_in_a_fresh_interpreter(OURS)
    added = after - import_in_a_fresh_interpreter([])
    assert not {name for name in added if name.partition(".")[0] in HEAVY or name in HEAVY}
    assert not {name for name in after if name.startswith("airflow_hydrogen.runtime")}
