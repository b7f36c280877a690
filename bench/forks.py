"""What forking ranks from a template is worth, on ranks of this machine without Spark.

Ask to first allreduce: a gang of two whose template is warm, against one that is started from nothing.
Resident memory: PSS of eight ranks that have done an allreduce, their template counted in, against eight that
were started. A page that several processes share counts in each by its part: the sum is what the host needs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.measure import RANKS, Result, Target, alternate, compare

_MANY = 8


def measure(folder: Path, quick: bool) -> list[Result]:
    """Ours is forked, the baseline is started."""
    _seconds(fork=True)  # the template imports
    return [
        compare(
            "ask to first allreduce, ranks forked",
            alternate(lambda: _seconds(fork=True), lambda: _seconds(fork=False), 1 if quick else 5),
            unit="s",
            against="ranks started (fork=False)",
            target=Target("<=", 0.2),
        ),
        compare(
            f"resident memory of {_MANY} ranks, forked",
            alternate(lambda: _memory_mb(fork=True), lambda: _memory_mb(fork=False), 1 if quick else 3),
            unit="MB",
            against="ranks started (fork=False)",
            target=Target("<=", 0.6),
        ),
    ]


def _run(size: int, main: str, fork: bool) -> Any:
    from airflow_hydrogen.runtime import HorovodRunner

    return HorovodRunner(-size, driver_log_verbosity="log_callback_only", fork=fork).run(main)


def _seconds(fork: bool) -> float:
    began = time.monotonic()
    return float(_run(RANKS, "bench.ranks:first_allreduce", fork)) - began


def _memory_mb(fork: bool) -> float:
    return float(_run(_MANY, "bench.ranks:resident_mb", fork))
