"""A backfill of small partitions: tasks that join a session of this machine against spark-submit for each.

Both run in an Airflow with a scheduler, a day and 1,000 rows a task, four runs at once. What Airflow itself
takes is told by a task that does nothing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench.measure import Result, Target, compare
from scripts.dag_runs import migrate, private_environment
from tests.e2e.airflow_processes import AirflowProcesses

ROWS = 1_000
DAYS = 30
ACTIVE_RUNS = 4
_FIRST = date(2013, 1, 1)
_ROOT = Path(__file__).resolve().parents[1]
_TIMEOUT_S = 1800
_ALONE = range(DAYS, DAYS + 3)

_DAG = """
from datetime import datetime, timezone
from airflow.sdk import DAG, task
from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.operators.inference import ArrowInferenceOperator

common = dict(schedule="@daily", start_date=datetime(2013, 1, 1, tzinfo=timezone.utc), catchup=False)
with DAG("score_day", **common):
    ArrowInferenceOperator(
        task_id="score",
        model_uri="{model}",
        source=Source.parquet("{rows}"),
        sink=Sink.parquet("{scores}", partition={{"ds": "{{{{ ds }}}}"}}),
    )
with DAG("nothing", **common):
    @task
    def nothing():
        return None
    nothing()
"""


def measure(folder: Path, quick: bool) -> list[Result]:
    """Backfill days with both, one after the other in the same hour, the second of each counts."""
    from bench.scoring import publish_model, write_rows

    rows = write_rows(folder / "rows", ROWS)
    model = publish_model(folder, rows)
    (folder / "dags").mkdir()
    dag = _DAG.format(model=model, rows=rows, scores=folder / "scores")
    (folder / "dags" / "days.py").write_text(dag)
    days = 4 if quick else DAYS
    joined = _Backfills(folder, "joined", sessions=True).run(days)
    submitted = _Backfills(folder, "submitted", sessions=False).run(days)
    assert len(pq.read_table(folder / "scores").column("ds").unique()) == days + len(_ALONE)
    return [
        compare(
            f"backfill of {days} days, {ACTIVE_RUNS} runs at once",
            [(joined["seconds"], submitted["seconds"])],
            unit="s",
            against="the same by spark-submit",
            target=Target("<=", 1 / 6),
            airflow_alone_s=joined["nothing"],
            task_s=joined["task"],
            task_of_spark_submit_s=submitted["task"],
        ),
        compare(
            "scoring of 1,000 rows as a task on a warm session",
            [(joined["alone"], submitted["alone"])],
            unit="s",
            against="the same by spark-submit",
            target=Target("<=", 1 / 6),
            a_task_that_does_nothing_s=joined["nothing_alone"],
        ),
    ]


class _Backfills:
    """An Airflow of its own.

    Args:
        folder: of the benchmark.
        name: of its home.
        sessions: whether tasks join a server of this machine.
    """

    def __init__(self, folder: Path, name: str, *, sessions: bool) -> None:
        home = folder / name
        for made in (home, home / "tmp"):
            made.mkdir()
        self._environment = private_environment(
            home,
            folder / "dags",
            PYTHONPATH=os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
            AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
            AIRFLOW__AIRFLOW_HYDROGEN__LOCAL_SESSIONS=str(sessions),
            TMPDIR=str(home / "tmp"),
        )
        with (home / "migrate.log").open("w") as log:
            migrate(self._environment, log)
        self._home = home

    def run(self, days: int) -> dict[str, float]:
        """Seconds of a backfill, of one of its tasks, and of what does nothing."""
        with AirflowProcesses(self._home, self._environment, parallelism=ACTIVE_RUNS) as airflow:
            try:
                _backfill(airflow, "score_day", 1, ACTIVE_RUNS)  # what is started once, for each run at once
                seconds = _backfill(airflow, "score_day", 0, days)
                task = _task_s(airflow, "score_day")
                nothing = _backfill(airflow, "nothing", 0, days)
                alone = [_one(airflow, "score_day", day) for day in _ALONE]
                nothing_alone = [_one(airflow, "nothing", day) for day in _ALONE]
            finally:
                stop = [sys.executable, "-m", "airflow", "hydrogen", "session", "stop", "--all", "--force"]
                subprocess.run(stop, env=self._environment, check=True, capture_output=True)
        return {
            "seconds": seconds,
            "task": task,
            "nothing": nothing,
            "alone": statistics.median(alone),
            "nothing_alone": statistics.median(nothing_alone),
        }


def _backfill(airflow: AirflowProcesses, dag: str, first: int, days: int) -> float:
    """Seconds from the command's end to that of the last run."""
    begin, end = _FIRST + timedelta(first), _FIRST + timedelta(first + days - 1)
    with airflow.silence():
        airflow.command(
            *("backfill", "create", "--dag-id", dag, "--from-date", str(begin), "--to-date", str(end)),
            *("--max-active-runs", str(ACTIVE_RUNS), "--reprocess-behavior", "completed"),
        )
    started = time.monotonic()
    ((number,),) = airflow.query("select max(id) from backfill")

    def states() -> list[Any]:
        found = airflow.query("select state from dag_run where backfill_id = ?", number)
        assert ("failed",) not in found, f"a run of the backfill failed; see {airflow.folder}/logs"
        return [state for (state,) in found]

    airflow.wait(lambda: states() == ["success"] * days, "the backfill's runs succeed", _TIMEOUT_S)
    seconds = time.monotonic() - started
    ended = "select 1 from backfill where id = ? and completed_at is not null"
    airflow.wait(lambda: airflow.query(ended, number), "the backfill ends", 120)
    return seconds


def _one(airflow: AirflowProcesses, dag: str, day: int) -> float:
    """Seconds from the start of a task to its end, nothing beside it."""
    _backfill(airflow, dag, day, 1)
    return _task_s(airflow, dag, newest=1)


def _task_s(airflow: AirflowProcesses, dag: str, newest: int = 10_000) -> float:
    found = airflow.query(
        "select start_date, end_date from task_instance where dag_id = ? order by end_date desc limit ?",
        dag,
        newest,
    )
    spans = [datetime.fromisoformat(str(end)) - datetime.fromisoformat(str(start)) for start, end in found]
    return statistics.median(span.total_seconds() for span in spans)
