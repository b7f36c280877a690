"""The scoring DAG under a real scheduler: backfills with four active runs, and what starts by itself."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from scripts.dag_runs import DagRun
from tests.e2e.airflow_processes import AirflowProcesses
from tests.e2e.conftest import Home

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2000)]

ReadDay = Callable[[str, str], pd.DataFrame]
ACTIVE_RUNS = 4
DAYS = [f"2013-07-{day:02}" for day in range(8, 8 + ACTIVE_RUNS + 1)]
AGAIN = DAYS[1:3]


def run_backfill(airflow: AirflowProcesses, days: list[str], *options: str) -> None:
    """Create a backfill and wait for all of its runs to succeed."""
    (before,) = airflow.query("select coalesce(max(id), 0) from backfill")
    with airflow.silence():
        airflow.command(
            *("backfill", "create", "--dag-id", "flights_score", "--from-date", days[0]),
            *("--to-date", days[-1], "--max-active-runs", str(ACTIVE_RUNS), *options),
        )
    ((backfill,),) = airflow.query("select max(id) from backfill")
    assert backfill != before[0]

    def states() -> list[object]:
        found = airflow.query("select state from dag_run where backfill_id = ?", backfill)
        assert ("failed",) not in found, f"a run of the backfill failed; see {airflow.folder}/logs"
        return [state for (state,) in found]

    airflow.wait(lambda: states() == ["success"] * len(days), "the backfill's runs succeed", 900)
    # Until the scheduler has noticed, there cannot be another one.
    ended = "select 1 from backfill where id = ? and completed_at is not null"
    airflow.wait(lambda: airflow.query(ended, backfill), "the backfill ends", 120)


@pytest.fixture(scope="module")
def scheduler(home: Home, trained: DagRun) -> Iterator[AirflowProcesses]:
    published_the_day_before(home.airflow / "airflow.db")
    (home.airflow / "tmp").mkdir()
    environment = {
        **home.environment,
        # Its tasks submit applications in test_flights.py. Here the first one starts what the others join.
        "AIRFLOW__AIRFLOW_HYDROGEN__LOCAL_SESSIONS": "True",
        "TMPDIR": str(home.airflow / "tmp"),
    }
    with AirflowProcesses(home.airflow, environment, parallelism=ACTIVE_RUNS) as running:
        try:
            yield running
        finally:
            stop = [sys.executable, "-m", "airflow", "hydrogen", "session", "stop", "--all", "--force"]
            subprocess.run(stop, env=running.environment, check=True)


def published_the_day_before(database: Path) -> None:
    """Date the model's event back, while no Airflow runs.

    The run that it starts comes at the same time as the scheduled one. They would have the same day, and
    so the same partition, which one of them would lose.
    """
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in (
            ("asset_event", "timestamp"),
            ("asset_dag_run_queue", "created_at"),
            # A run gets no event from before its DAG waited for the asset.
            ("dag_schedule_asset_reference", "created_at"),
        ):
            connection.execute(
                f"update {table} set {column} = date({column}, '-1 day') || substr({column}, 11)"
            )


@pytest.fixture(scope="module")
def backfilled(scheduler: AirflowProcesses) -> AirflowProcesses:
    run_backfill(scheduler, DAYS)
    return scheduler


def test_a_backfill_scores_every_row_of_its_days(backfilled: AirflowProcesses, read_day: ReadDay) -> None:
    for day in DAYS:
        scores, flights = read_day("scores", day), read_day("lake/flights", day)
        assert len(scores) == len(flights) > 0, day
        pd.testing.assert_series_equal(scores["flight"], flights["flight"])
    logs = "".join(
        file.read_text() for file in (backfilled.folder / "logs").rglob("dag_id=flights_score/**/*.log")
    )
    assert "joined session" in logs
    assert "starting a Spark Connect server" in logs
    active = backfilled.query(
        "select count(*) from dag_run a join dag_run b on a.run_type = b.run_type "
        "and b.start_date <= a.start_date and b.end_date > a.start_date "
        "where a.run_type = 'backfill' group by a.id"
    )
    assert 2 <= max(int(str(count)) for (count,) in active) <= ACTIVE_RUNS


def test_a_backfill_of_days_that_are_scored_changes_nothing(
    backfilled: AirflowProcesses, read_day: ReadDay
) -> None:
    before = {day: read_day("scores", day) for day in DAYS}
    run_backfill(backfilled, AGAIN, "--reprocess-behavior", "completed")
    for day in DAYS:
        pd.testing.assert_frame_equal(read_day("scores", day), before[day])


def test_the_schedule_and_the_new_model_start_runs_by_themselves(
    backfilled: AirflowProcesses, trained: DagRun, read_day: ReadDay
) -> None:
    def states(run_type: str) -> list[object]:
        found = backfilled.query("select state from dag_run where run_type = ?", run_type)
        assert ("failed",) not in found, f"a {run_type} run failed"
        return [state for (state,) in found]

    for run_type in ("scheduled", "asset_triggered"):
        backfilled.wait(lambda kind=run_type: "success" in states(kind), f"a {run_type} run succeeds", 900)
    # They have no Param: they score the day of 2013 that corresponds to their own.
    ((run_after,),) = backfilled.query(
        "select max(run_after) from dag_run where run_type = 'asset_triggered'"
    )
    day = f"2013-{str(run_after)[5:10]}"
    assert len(read_day("scores", day)) == len(read_day("lake/flights", day))
