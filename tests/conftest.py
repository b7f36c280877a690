from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable

import psutil
import pytest
from hypothesis import settings

from tests.processes import living

# Timings on a shared machine say nothing about the code.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# In the environment of everything that this run of the tests starts, Spark's JVM and its workers included.
_MARK, _RUN = "AIRFLOW_HYDROGEN_TEST_RUN", uuid.uuid4().hex
os.environ[_MARK] = _RUN


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
        return (
            "airflow_hydrogen.runtime.rank.worker" in process.cmdline()
            and process.environ().get(_MARK) == _RUN
        )

    return lambda: living(is_ours)
