"""The scoring DAG under a real scheduler: backfills with four active runs, and what starts by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
import pytest

from scripts.dag_runs import DagRun
from tests.e2e.airflow_processes import AirflowProcesses
from tests.e2e.conftest import Home

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2000)]

ReadDay = Callable[[str, str], pd.DataFrame]
WEEK = [f"2013-07-{day:02}" for day in range(8, 15)]
ACTIVE_RUNS = 4


def run_backfill(airflow: AirflowProcesses, first: str, last: str, *options: str) -> None:
    """Create a backfill and wait for all of its runs to succeed."""
    (before,) = airflow.query("select coalesce(max(id), 0) from backfill")
    with airflow.silence():
        airflow.command(
            *("backfill", "create", "--dag-id", "flights_score", "--from-date", first, "--to-date", last),
            *("--max-active-runs", str(ACTIVE_RUNS), *options),
        )
    ((backfill,),) = airflow.query("select max(id) from backfill")
    assert backfill != before[0]

    def states() -> list[object]:
        found = airflow.query("select state from dag_run where backfill_id = ?", backfill)
        assert ("failed",) not in found, f"a run of the backfill failed; see {airflow.folder}/logs"
        return [state for (state,) in found]

    airflow.wait(lambda: states() == ["success"] * len(WEEK), "the backfill's runs succeed", 900)
    # Until the scheduler has noticed, there cannot be another one.
    ended = "select 1 from backfill where id = ? and completed_at is not null"
    airflow.wait(lambda: airflow.query(ended, backfill), "the backfill ends", 120)


@pytest.fixture(scope="module")
def scheduler(home: Home, trained: DagRun) -> Iterator[AirflowProcesses]:
    with AirflowProcesses(home.airflow, home.environment, parallelism=ACTIVE_RUNS) as running:
        yield running


@pytest.fixture(scope="module")
def backfilled(scheduler: AirflowProcesses) -> AirflowProcesses:
    run_backfill(scheduler, WEEK[0], WEEK[-1])
    return scheduler


def test_a_backfill_scores_every_row_of_a_week(backfilled: AirflowProcesses, read_day: ReadDay) -> None:
    for day in WEEK:
        scores, flights = read_day("scores", day), read_day("lake/flights", day)
        assert len(scores) == len(flights) > 0, day
        pd.testing.assert_series_equal(scores["flight"], flights["flight"])
    active = backfilled.query(
        "select count(*) from dag_run a join dag_run b on a.run_type = b.run_type "
        "and b.start_date <= a.start_date and b.end_date > a.start_date "
        "where a.run_type = 'backfill' group by a.id"
    )
    assert 2 <= max(int(str(count)) for (count,) in active) <= ACTIVE_RUNS


def test_the_same_backfill_again_changes_nothing(backfilled: AirflowProcesses, read_day: ReadDay) -> None:
    before = {day: read_day("scores", day) for day in WEEK}
    run_backfill(backfilled, WEEK[0], WEEK[-1], "--reprocess-behavior", "completed")
    for day in WEEK:
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
