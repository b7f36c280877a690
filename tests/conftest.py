from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

from tests.processes import living
from tests.sizes import Budgets, size_of

# One Airflow with one model in it.
SHARING = {"tests/e2e/test_scheduler.py": "tests/e2e/test_flights.py"}
_ASKS_FOR_SPARK = re.compile(r"^def \w+\([^)]*\b(?:spark|warehouse)\b", re.MULTILINE)

# Hundreds of processes import the same, and compile it anew where Python may not keep what it has compiled:
# TensorFlow takes 9 s then and 3 s otherwise, Airflow 4.4 s and 1.7 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Timings on a shared machine say nothing about the code.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# In the environment of everything that this run of the tests starts, Spark's JVM and its workers included.
_MARK, _RUN = "AIRFLOW_HYDROGEN_TEST_RUN", uuid.uuid4().hex
os.environ[_MARK] = _RUN
# Most of these JVMs live for seconds, in which the second compiler only costs: a small application of Spark
# takes 25 s of processor time with it, 15 s without. Threads that collect beside it cost another second.
# With the first alone Java keeps 48 MB of compiled code and no more, which a session of Spark that lives long
# fills: what it needs is thrown away then and compiled anew.
os.environ.setdefault(
    "JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"
)
# A server that a test's task leaves behind is one that others would join; tests that are about it say so.
os.environ["AIRFLOW__AIRFLOW_HYDROGEN__LOCAL_SESSIONS"] = "False"
# Airflow writes its settings there when it is first imported, and processes of pytest would do that at once.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-hydrogen-tests-")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist's processes report to the one that has started them
        config.pluginmanager.register(Budgets())


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["AIRFLOW_HOME"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its size, and begin with the files that take longest: short ones come at the end."""
    sizes: dict[str, Counter[str | None]] = defaultdict(Counter)
    for item in items:
        if size := size_of(item):
            item.add_marker(size)
        sizes[_unit(item.nodeid)][size] += 1
    found = {unit: (-counts["large"], -counts["medium"]) for unit, counts in sizes.items()}
    items.sort(key=lambda item: found[_unit(item.nodeid)])


def _unit(nodeid: str) -> str:
    """What one process of pytest runs as a whole: a file, or several that share what takes long to make."""
    file = nodeid.partition("::")[0]
    return SHARING.get(file, file)


def _shares_spark(file: Path) -> bool:
    """Whether tests or fixtures of a file ask for `spark` or `warehouse` (tests/integration/conftest.py).

    A process of pytest takes half a minute of processor time for them before its first test: for Spark, the
    servers beside it, and TensorFlow here and in Spark's workers.
    """
    return bool(_ASKS_FOR_SPARK.search(file.read_text()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            """The first process begins with what has no use for `spark`, the others with what has."""
            wanted = node.gateway.id != "gw0"
            fitting = (unit for unit in self.workqueue if _shares_spark(config.rootpath / unit) == wanted)
            if unit := next(fitting, None):
                self.workqueue.move_to_end(unit, last=False)
            super()._assign_work_unit(node)

    return ByUnit(config, log) if config.getvalue("dist") == "loadfile" else None


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
