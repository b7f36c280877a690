"""The Spark that the benchmarks share: some task slots on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import RANKS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def local_spark(
    slots: int = RANKS, jars: Sequence[Path] = (), settings: Mapping[str, str] | None = None
) -> Iterator[SparkSession]:
    """A session with Spark's own defaults, but for what a log and a laptop do not need, and some settings."""
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = (
        SparkSession.builder.master(f"local[{slots}]")
        .appName("bench")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.host", "localhost")
        .config("spark.log.level", "ERROR")
    )
    if jars:
        builder = builder.config("spark.jars", ",".join(map(str, jars)))
    for name, value in (settings or {}).items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    try:
        yield session
    finally:
        session.stop()
