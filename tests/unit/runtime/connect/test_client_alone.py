"""Spark Connect's client is enough: what it lacks of Spark is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WITHOUT = """
import sys
for name in ("py4j", "pyspark.core"):
    sys.modules[name] = None
from pyspark.util import is_remote_only
assert is_remote_only()
"""
_CALLS = """
from airflow_hydrogen.runtime.spark_errors import spark_errors
spark_errors()
"""
_MODULES = (
    "airflow_hydrogen.runtime.__main__",
    "airflow_hydrogen.runtime.scoring.application",
    "airflow_hydrogen.runtime.training",
)


@pytest.mark.medium
def test_the_applications_import_nothing_that_the_client_lacks() -> None:
    code = f"{_WITHOUT}import {', '.join(_MODULES)}\n{_CALLS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
