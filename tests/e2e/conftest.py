"""An Airflow of the tests' own, its data in a temporary folder."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset
import pytest

from scripts.dag_runs import DagRun, DagRunner, migrate, private_environment

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "dags"

# Enough to beat the baseline, and quick.
SHORT_TRAINING = {
    "train_from": "2013-05-01",
    "train_until": "2013-06-30",
    "eval_weeks": 1,
    "epochs": 3,
    "learning_rate": 0.002,
}


@dataclass(frozen=True)
class Home:
    """Folders of the tests' Airflow, and the environment of its processes."""

    airflow: Path
    flights: Path
    environment: dict[str, str]

    @property
    def log(self) -> Path:
        """The output of all its processes."""
        return self.airflow / "e2e.log"


def _environment(airflow: Path, flights: Path) -> dict[str, str]:
    return _private_environment(airflow, DAGS, FLIGHTS_HOME=str(flights))


def _private_environment(airflow: Path, dags: Path, **variables: str) -> dict[str, str]:
    return private_environment(
        airflow,
        dags,
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
        **variables,
    )


def home_of_dags(migrated: Path, folder: Path, **variables: str) -> tuple[Path, dict[str, str]]:
    """A home for the DAGs in `folder`/dags, in which nothing has run yet, and the environment for it."""
    home = folder / "airflow"
    home.mkdir(exist_ok=True)
    shutil.copy(migrated / "airflow.db", home)
    return home, _private_environment(home, folder / "dags", **variables)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose database is there and empty, made once for all processes of pytest."""
    folder = tmp_path_factory.getbasetemp()
    # Those that pytest-xdist has started have a folder each in the run's.
    airflow = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "airflow-empty"
    airflow.mkdir(exist_ok=True)
    with (airflow / "migrate.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        done = airflow / "done"
        if not done.exists():
            migrate(_environment(airflow, airflow), log)
            done.touch()
    return airflow


@pytest.fixture(scope="session")
def home(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The home that most tests share, in the order in which a user would do things."""
    return _copy_home(migrated, tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("flights"))


@pytest.fixture(scope="module")
def modules_home(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home for the tests of one module, in which nothing has run yet."""
    return _copy_home(migrated, tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("flights"))


@pytest.fixture
def empty_home(migrated: Path, tmp_path: Path) -> Home:
    """A home in which nothing has run yet."""
    return _copy_home(migrated, tmp_path / "airflow", tmp_path / "flights")


def _copy_home(migrated: Path, airflow: Path, flights: Path) -> Home:
    airflow.mkdir(exist_ok=True)
    shutil.copy(migrated / "airflow.db", airflow)
    return Home(airflow, flights, _environment(airflow, flights))


@pytest.fixture(scope="session")
def runner(home: Home) -> Iterator[DagRunner]:
    """Runs DAGs with `dag.test()`."""
    with DagRunner(home.environment, home.log) as running:
        yield running


@pytest.fixture(scope="session")
def trained(runner: DagRunner) -> DagRun:
    """A successful run of the training DAG, on two months."""
    run = runner.run("flights_train", conf=SHORT_TRAINING)
    assert run.state == "success", run.tasks
    return run


@pytest.fixture(scope="session")
def read_day(home: Home) -> Callable[[str, str], pd.DataFrame]:
    """The rows of one day of a table, in an order that does not depend on its files."""

    def read(table: str, day: str) -> pd.DataFrame:
        rows: Any = pyarrow.dataset.dataset(home.flights / table / f"ds={day}", format="parquet").to_table()
        frame: pd.DataFrame = rows.to_pandas()
        keys = ["sched_dep_time", "carrier", "flight", "origin", "dest", "tailnum"]
        return frame.sort_values(keys, ignore_index=True)

    return read
