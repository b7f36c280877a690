"""Spark's Python daemon of this package, and the process that imports ahead of it: how one is told what.

Whoever starts Spark names the daemon (`spark.python.daemon.module`), and gives it variables.
"""

from __future__ import annotations

import re

MODULE = "airflow_hydrogen.runtime.scoring.daemon"
"""The module that is the daemon, and with `AHEAD`, a socket and its parent as arguments the other process."""

AHEAD = "--ahead"

MODULES_VARIABLE = "AIRFLOW_HYDROGEN_WORKER_MODULES"
"""What is imported before a worker is forked: names of modules with commas between them."""

AHEAD_VARIABLE = "AIRFLOW_HYDROGEN_WORKERS_AHEAD"
"""The name of the socket of the process that has imported ahead."""

OF_EVERY_WORKER = (
    "pandas",
    "pyarrow.parquet",
    "pyspark.worker",
    "airflow_hydrogen.runtime.scoring.inference",
)
"""What every worker that scores imports, and Spark's own with it."""

READ_AT_IMPORT = re.compile(
    r"(?:KERAS|TF(?!_CONFIG|_NUM_|_FORCE_GPU|_GPU)|TF2|XLA|OMP|KMP|GOMP|MKL|OPENBLAS|NUMEXPR|ONEDNN|DNNL|GRPC"
    r"|ABSL|TORCH|PYTORCH)_[A-Z][A-Z0-9_]*"
)
"""Variables that frameworks and their libraries read when they are imported, and not as late as at the first
use of a device or of a thread pool."""
