"""The scoring DAG under a real scheduler: backfills with four active runs, and what starts by itself."""

from __future__ import annotations

import contextlib
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pandas as pd
import psutil
import pytest

from scripts.dag_runs import DagRun
from tests.e2e.conftest import Home

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2000)]

ReadDay = Callable[[str, str], pd.DataFrame]
WEEK = [f"2013-07-{day:02}" for day in range(8, 15)]
ACTIVE_RUNS = 4


class Scheduler:
    """API server, DAG processor and scheduler with a LocalExecutor, on free ports of this machine."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._database = home.airflow / "airflow.db"
        port = _free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.environment = {
            **home.environment,
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(ACTIVE_RUNS),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_free_port()),
        }
        self._processes: list[psutil.Popen] = []

    def start(self) -> None:
        """Start the API server, and when it answers the others: tasks fail that do not reach it."""
        self._start("api-server")
        self.wait(self._answers, "the API server answers", 120)
        self._start("dag-processor")
        self._start("scheduler")

    def _start(self, command: str) -> None:
        with (self._home.airflow / f"{command}.log").open("a") as log:
            self._processes.append(
                psutil.Popen(
                    [sys.executable, "-m", "airflow", command],
                    env=self.environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        """End everything that was started, and what it started."""
        found = [*self._processes]
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += process.children(recursive=True)
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(found, timeout=20)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)

    def airflow(self, *arguments: str) -> None:
        """Run a command of Airflow's CLI."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Stop the parts of Airflow for a moment, with no transaction open.

        SQLite has one writer at a time, and Airflow's command line fails where it is the second.
        """

        def stopped() -> bool:
            for process in self._processes:
                process.suspend()
            if self._is_unlocked():
                return True
            for process in self._processes:
                process.resume()
            return False

        self.wait(stopped, "nobody writes to Airflow's database", 60)
        try:
            yield
        finally:
            for process in self._processes:
                process.resume()

    def _is_unlocked(self) -> bool:
        with contextlib.closing(
            sqlite3.connect(self._database, timeout=0, isolation_level=None)
        ) as connection:
            try:
                connection.execute("begin immediate")
            except sqlite3.OperationalError:
                return False
            connection.execute("rollback")
            return True

    def query(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        """Read from Airflow's database."""
        with contextlib.closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, values).fetchall()

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float) -> None:
        """Wait for a condition, and fail with its name when it does not come, or a part has died."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            dead = [process.args[-1] for process in self._processes if process.poll() is not None]
            assert not dead, f"{', '.join(dead)} ended; see {self._home.airflow}"
            assert time.monotonic() < deadline, f"{what}: not after {timeout_s} s; see {self._home.airflow}"
            time.sleep(0.5)

    def backfill(self, first: str, last: str, *options: str) -> None:
        """Create a backfill and wait for all of its runs to succeed."""
        (before,) = self.query("select coalesce(max(id), 0) from backfill")
        with self.silence():
            self.airflow(
                *("backfill", "create", "--dag-id", "flights_score", "--from-date", first, "--to-date", last),
                *("--max-active-runs", str(ACTIVE_RUNS), *options),
            )
        ((backfill,),) = self.query("select max(id) from backfill")
        assert backfill != before[0]

        def states() -> list[object]:
            found = self.query("select state from dag_run where backfill_id = ?", backfill)
            assert ("failed",) not in found, f"a run of the backfill failed; see {self._home.airflow}/logs"
            return [state for (state,) in found]

        self.wait(lambda: states() == ["success"] * len(WEEK), "the backfill's runs succeed", 900)
        # Until the scheduler has noticed, there cannot be another one.
        ended = "select 1 from backfill where id = ? and completed_at is not null"
        self.wait(lambda: self.query(ended, backfill), "the backfill ends", 120)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/api/v2/version", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def scheduler(home: Home, trained: DagRun) -> Iterator[Scheduler]:
    running = Scheduler(home)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def backfilled(scheduler: Scheduler) -> Scheduler:
    scheduler.backfill(WEEK[0], WEEK[-1])
    return scheduler


def test_a_backfill_scores_every_row_of_a_week(backfilled: Scheduler, read_day: ReadDay) -> None:
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


def test_the_same_backfill_again_changes_nothing(backfilled: Scheduler, read_day: ReadDay) -> None:
    before = {day: read_day("scores", day) for day in WEEK}
    backfilled.backfill(WEEK[0], WEEK[-1], "--reprocess-behavior", "completed")
    for day in WEEK:
        pd.testing.assert_frame_equal(read_day("scores", day), before[day])


def test_the_schedule_and_the_new_model_start_runs_by_themselves(
    backfilled: Scheduler, trained: DagRun, read_day: ReadDay
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
