from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

# In the environment of everything that this run of the tests starts, Spark's JVM and its workers included.
_MARK, _RUN = "AIRFLOW_HYDROGEN_TEST_RUN", uuid.uuid4().hex
os.environ[_MARK] = _RUN


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """One Spark in local mode with two task slots, for every test that does not need another."""
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.host", "localhost")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait for a condition, and fail with its name when it does not come."""

    def wait(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not after {timeout_s} s"
            time.sleep(0.05)

    return wait


@pytest.fixture
def rank_processes() -> Callable[[], list[psutil.Process]]:
    """The processes of ranks that this run of the tests started and that are alive."""

    def is_ours(process: psutil.Process) -> bool:
        try:
            return (
                "airflow_hydrogen.runtime.worker" in process.cmdline()
                and process.environ().get(_MARK) == _RUN
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:  # it ended meanwhile
            return False

    return lambda: [process for process in psutil.process_iter() if is_ours(process)]
