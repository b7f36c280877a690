"""Spark's Python daemon of this package, and the process that imports ahead of it: how one is told what.

Whoever starts Spark names the daemon (`spark.python.daemon.module`), and gives it variables.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
from collections.abc import Mapping

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


def start_ahead(python: str, environ: Mapping[str, str], name: str) -> subprocess.Popen[bytes]:
    """Start the process that daemons are forked from; it ends with this one.

    Args:
        python: the interpreter of workers.
        environ: what daemons and workers will have.
        name: of its socket, from `socket_name`; daemons find it by `AHEAD_VARIABLE`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        return subprocess.Popen(
            [python, "-m", MODULE, AHEAD, str(listener.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            env={**environ, "PYTHONUNBUFFERED": "YES"},
            pass_fds=[listener.fileno()],
        )


def socket_name() -> str:
    """One that nobody guesses."""
    return f"airflow-hydrogen-{secrets.token_hex(16)}"
