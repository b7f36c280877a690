"""Run DAGs with `dag.test()` in an Airflow of their own: for the demo and the tests.

Airflow reads its settings when it is imported, and logs to standard output. So it runs in a child process:
this file, started as a program, which takes requests from standard input and answers on a pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

NOW = "now"


@dataclass(frozen=True)
class DagRun:
    """What a run left behind.

    Attributes:
        run_id: the run's id.
        state: `success` or `failed`.
        tasks: task, or `task[2]` where it is mapped -> its state.
        tries: task -> number of the last try.
        xcoms: task -> key -> value.
        events: asset -> extra of the event that the run emitted.
    """

    run_id: str
    state: str
    tasks: Mapping[str, str]
    tries: Mapping[str, int]
    xcoms: Mapping[str, Mapping[str, Any]]
    events: Mapping[str, Mapping[str, Any]]


def private_environment(home: Path, dags: Path, **variables: str) -> dict[str, str]:
    """The environment of an Airflow that shares nothing with another one of this user.

    Args:
        home: its AIRFLOW_HOME, where its database is too.
        dags: the DAGs folder.
        variables: more variables.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    return {
        **inherited,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # What one run leaves behind is not to be found by another.
        "AIRFLOW__AIRFLOW_HYDROGEN__LOCAL_SESSIONS": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        **variables,
    }


def migrate(environment: Mapping[str, str], log: IO[str]) -> None:
    """Make the database, which needs no Airflow running."""
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(command, env=dict(environment), stdout=log, stderr=subprocess.STDOUT, check=True)


class DagRunner:
    """A child process that runs DAGs, one after the other.

    Args:
        environment: see `private_environment`; the database must be there.
        log: the file that gets the child's output.
        on_line: called with each line of it.
    """

    def __init__(
        self, environment: Mapping[str, str], log: Path, on_line: Callable[[str], None] = lambda line: None
    ) -> None:
        self._log = log
        self._tail: deque[str] = deque(maxlen=60)
        answers, childs_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(childs_end)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[childs_end],
        )
        os.close(childs_end)
        self._answers = os.fdopen(answers)
        self._reader = threading.Thread(target=self._read, args=(on_line,), daemon=True)
        self._reader.start()

    def __enter__(self) -> DagRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child, and with it whatever it runs."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._answers.close()

    def dags(self) -> tuple[list[str], dict[str, str]]:
        """The ids of the DAGs, and the errors of files that do not import."""
        answer = self._ask({"what": "dags"})
        return answer["dag_ids"], answer["errors"]

    def run(
        self,
        dag_id: str,
        logical_date: str | None = NOW,
        conf: Mapping[str, Any] | None = None,
        done: str | None = None,
    ) -> DagRun:
        """Run a DAG from start to end.

        Args:
            dag_id: one of `dags()`.
            logical_date: ISO format, "now", or None for a run that has none.
            conf: values of Params.
            done: a pattern of tasks that are not run, and count as successes.
        """
        request = {
            "what": "run",
            "dag_id": dag_id,
            "logical_date": logical_date,
            "conf": dict(conf or {}),
            "done": done,
        }
        return DagRun(**self._ask(request))

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._answers.readline()
        if not answer:
            self._process.wait(10)
            self._reader.join(10)
            tail = "".join(self._tail)
            raise RuntimeError(
                f"Airflow's process ended with exit code {self._process.returncode}; {self._log}:\n{tail}"
            )
        return json.loads(answer)

    def _read(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        with self._log.open("a") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                self._tail.append(line)
                on_line(line)


# --- the child -------------------------------------------------------------------------------------------


def _serve(answers: IO[str]) -> None:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag

    (bundle,) = DagBundlesManager().get_all_dag_bundles()
    bag = BundleDagBag(bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
    for line in sys.stdin:
        request = json.loads(line)
        if request["what"] == "dags":
            answer: Any = {"dag_ids": sorted(bag.dag_ids), "errors": bag.import_errors}
        else:
            dag = bag.dags[request["dag_id"]]
            answer = _run(dag, request["logical_date"], request["conf"], request["done"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _run(dag: Any, logical_date: str | None, conf: dict[str, Any], done: str | None) -> dict[str, Any]:
    from airflow.sdk import timezone

    dates = {} if logical_date == NOW else {"logical_date": logical_date and timezone.parse(logical_date)}
    run = dag.test(run_conf=conf, mark_success_pattern=done, **dates)
    return {"run_id": run.run_id, "state": str(run.state.value), **_traces(dag.dag_id, run.run_id)}


def _traces(dag_id: str, run_id: str) -> dict[str, Any]:
    from airflow.models.asset import AssetEvent
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        tasks = session.scalars(
            select(TaskInstance).where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
        ).all()
        xcoms: dict[str, dict[str, Any]] = {_name(task): {} for task in tasks}
        for row in session.scalars(
            select(XComModel).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id)
        ):
            xcoms[_name(row)][row.key] = XComModel.deserialize_value(row)
        events = session.scalars(
            select(AssetEvent)
            .where(AssetEvent.source_dag_id == dag_id, AssetEvent.source_run_id == run_id)
            .order_by(AssetEvent.id)
        ).all()
        return {
            "tasks": {_name(task): str(task.state) for task in tasks},
            "tries": {_name(task): task.try_number for task in tasks},
            "xcoms": xcoms,
            "events": {event.asset.name: event.extra for event in events},
        }


def _name(row: Any) -> str:
    """A task, or `task[2]` where it is mapped."""
    return row.task_id if row.map_index < 0 else f"{row.task_id}[{row.map_index}]"


@contextlib.contextmanager
def _answers_pipe() -> Iterator[IO[str]]:
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor, "w") as stream:
        yield stream


if __name__ == "__main__":
    with _answers_pipe() as pipe:
        _serve(pipe)
