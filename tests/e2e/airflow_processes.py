"""Airflow as it runs for users: its parts as processes, on a database of their own."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.e2e import airflow_api
from tests.integration.daemons import free_port


class AirflowProcesses:
    """API server, DAG processor and scheduler with a LocalExecutor, on free ports of this machine.

    Args:
        folder: its AIRFLOW_HOME, with the database; the logs are there too.
        environment: variables of all processes.
        parallelism: tasks at once.
        triggerer: whether there is one.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, parallelism: int, triggerer: bool = False
    ) -> None:
        self.folder = folder
        self._triggerer = triggerer
        self._database = folder / "airflow.db"
        port = free_port("127.0.0.1")
        self.address = f"http://127.0.0.1:{port}"
        self.environment = {
            **environment,
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(parallelism),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            # The files stay as they are: to parse them every half minute takes a process each.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "120",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port("127.0.0.1")),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port("127.0.0.1")),
        }
        self._key = ""
        self._processes: list[psutil.Popen] = []

    def __enter__(self) -> AirflowProcesses:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the API server, and when it answers what starts tasks: they fail that do not reach it."""
        self._start("api-server")
        self._start("dag-processor")
        self.wait(self._answers, "the API server answers", 120)
        self._start("scheduler")
        if self._triggerer:
            self._start("triggerer")

    def _start(self, command: str) -> None:
        with (self.folder / f"{command}.log").open("a") as log:
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

    def command(self, *arguments: str) -> None:
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
            assert not dead, f"{', '.join(dead)} ended; see {self.folder}"
            assert time.monotonic() < deadline, f"{what}: not after {timeout_s} s; see {self.folder}"
            time.sleep(0.5)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask Airflow's API, as its UI does.

        Raises:
            urllib.error.HTTPError: it answers with an error of ours.
        """
        if not self._key and not path.startswith("/auth/"):
            self._key = self.ask("GET", "/auth/token")["access_token"]
        answers: list[Any] = []

        def answered() -> bool:
            try:
                answers.append(airflow_api.ask(self.address, method, path, body, self._key))
            except urllib.error.HTTPError as error:
                if error.code != 500:  # SQLite has one writer at a time, and this was the second
                    raise
            return bool(answers)

        self.wait(answered, f"an answer to {method} {path}", 60)
        return answers[0]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/api/v2/version", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
