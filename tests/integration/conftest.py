from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest


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
    """The processes of ranks that are alive on this machine."""

    def find() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            command = process.info["cmdline"] or []
            if (
                "airflow_hydrogen.runtime.worker" in command
                and process.info["status"] != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        return found

    return find
