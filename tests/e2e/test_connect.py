"""Jobs on a real Spark Connect server, as a task's own process and as a task of a real Airflow."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract import jobs, partitions, reports
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.jobs import Entrypoint, InferenceJob, Sink, Source, TrainJob
from airflow_hydrogen.contract.private_folders import private_folder
from airflow_hydrogen.contract.reports import InferenceReport, TrainReport
from airflow_hydrogen.operators.packing import pack_project, pack_runtime
from airflow_hydrogen.runtime.publication import publish_model
from scripts.dag_runs import DagRunner
from tests.e2e.conftest import ROOT, home_of_dags
from tests.e2e.connect_server import SECRET, TOKEN, Server, connect_server
from tests.integration import onnx_models
from tests.integration.models import publish_plain

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

APPS = "tests.e2e.connect_apps"
ROWS = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with connect_server(tmp_path_factory.mktemp("connect")) as running:
        yield running


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What the operator sends: the runtime, and code of the project."""
    folder = tmp_path_factory.mktemp("code")
    names = ["tests/__init__.py", "tests/e2e/__init__.py", "tests/e2e/connect_apps.py"]
    files = {Path(name): ROOT / name for name in names if (ROOT / name).exists()}
    project = pack_project(folder / "project.zip", files)
    return str(pack_runtime(folder / "airflow_hydrogen_runtime.zip")), str(project)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> str:
    """prediction = a + 10 b."""
    folder = tmp_path_factory.mktemp("models")
    file = onnx_models.linear(folder / "made.onnx")
    return publish_model(file, str(folder / "linear"), columns=["a", "b"])


@pytest.fixture
def rows(tmp_path: Path) -> str:
    table = {"id": np.arange(ROWS), "a": np.arange(ROWS, dtype="float32"), "b": np.ones(ROWS, "float32")}
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table(table), tmp_path / "rows" / "0.parquet")
    return str(tmp_path / "rows")


class Job:
    """A job as the operator's process runs it."""

    def __init__(self, job: InferenceJob | TrainJob, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.job = dataclasses.replace(job, report_uri=str(folder / "report.json"))
        (folder / "job.json").write_text(jobs.dumps(self.job))
        self._log = folder / "log"
        # A proxy for all other machines is nothing to this one.
        nowhere = {"JAVA_HOME": "/nowhere", "http_proxy": "http://127.0.0.1:9"}
        environment = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT)}
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airflow_hydrogen.runtime", str(folder / "job.json")],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def report(self) -> Any:
        self.process.wait(120)
        found = reports.loads(Path(self.job.report_uri).read_text())
        assert isinstance(found, TrainReport if isinstance(self.job, TrainJob) else InferenceReport)
        return found

    def rows(self) -> Any:
        report = self.report()
        assert report.failure is None, f"{report.failure}\n{self.log}"
        return pq.read_table(report.output_uri).to_pandas().sort_values("id", ignore_index=True)

    def error(self) -> str:
        failure = self.report().failure
        assert failure is not None, self.log
        return f"{failure.error_type.rpartition('.')[2]} {failure.retryable}: {failure.message}"


Run = Callable[..., Job]


@pytest.fixture
def run(server: Server, code: tuple[str, ...], linear: str, rows: str, tmp_path: Path) -> Iterator[Run]:
    started: list[Job] = []

    def begin(access: dict[str, Any] | None = None, **changes: Any) -> Job:
        opened = dataclasses.replace(server.access, py_files=code, code=f"{code}", **(access or {}))
        given = {
            "model_uri": linear,
            "source": Source.parquet(rows),
            "sink": Sink.parquet(str(tmp_path / "scored")),
            "report_uri": "set below",
            **changes,
        }
        started.append(Job(InferenceJob(connect=opened, **given), tmp_path / f"job-{len(started)}"))
        return started[-1]

    yield begin
    for job in started:
        job.process.kill()
        job.process.wait()


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.05)


def session_of(job: Job) -> tuple[str, str]:
    """Whether it was opened or joined, and which one it is."""
    (line,) = [line for line in job.log.splitlines() if " session " in line and line.startswith("airflow-")]
    return line.split()[1], line.split()[3]


def plain_model(folder: Path, name: str = "plain") -> str:
    """A file that names a folder, for predictors of `connect_apps`."""
    (folder / name).mkdir()
    return str(publish_plain(folder / name, str(folder)))


def test_a_partition_is_scored_without_java_and_the_next_job_meets_the_workers(
    run: Run, tmp_path: Path
) -> None:
    model, predictor = plain_model(tmp_path), f"{APPS}:counts_its_loads"
    first = run(model_uri=model, predictor=predictor)
    assert np.array_equal(first.rows()["prediction"], 2 * np.arange(ROWS))
    second = run(model_uri=model, predictor=predictor, sink=Sink.parquet(str(tmp_path / "again")))
    assert np.array_equal(second.rows()["prediction"], 2 * np.arange(ROWS))
    assert (session_of(second)[0], session_of(second)[1]) == ("joined", session_of(first)[1])
    assert len(list(tmp_path.glob("loaded-*"))) == 1
    assert TOKEN not in first.log + second.log
    kept = "".join(file.read_text() for file in leases())
    assert "spark.hadoop.fs.s3a.secret.key" in kept and TOKEN not in kept and SECRET not in kept
    assert second.report().source == first.report().source
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".scored")]


@pytest.mark.parametrize("kind", ["condition", "bound", "csv", "sql", "partitions"])
def test_rows_that_spark_reads_are_scored_as_those_that_workers_read(
    run: Run, rows: str, tmp_path: Path, kind: str
) -> None:
    expected = np.arange(100, dtype="float32")
    if kind == "condition":
        source = Source.parquet(rows, where="id < 100")
    elif kind == "bound":
        source = Source.parquet(rows, where="id < :limit", where_args={"limit": 100})
    elif kind == "csv":
        pq.read_table(rows).to_pandas()[:100].to_csv(tmp_path / "rows.csv", index=False)
        source = Source.csv(str(tmp_path / "rows.csv"))
    elif kind == "sql":
        query = "select id, cast(a as float) a, b from t where id < :limit"
        source = Source.sql(query, t=Source.parquet(rows), query_args={"limit": 100})
    else:
        (tmp_path / "days" / "day=2").mkdir(parents=True)
        pq.write_table(pq.read_table(rows).slice(0, 100), tmp_path / "days" / "day=2" / "0.parquet")
        source = Source.parquet(str(tmp_path / "days"))
    found = run(source=source).rows()
    assert found["id"].tolist() == list(range(100))
    assert np.array_equal(found["prediction"], expected + 10)


def test_a_job_finds_nothing_of_the_one_before_it_in_its_session(run: Run, tmp_path: Path) -> None:
    left = run(prepare=f"{APPS}:leaves_all_kinds_of_things")
    assert np.array_equal(left.rows()["more"], np.arange(ROWS) + 1.0)
    told = run(
        prepare=f"{APPS}:tells_what_is_there", access={"settings": {"spark.sql.shuffle.partitions": "7"}}
    )
    there = told.rows()["there"][0]
    assert session_of(told) == ("joined", session_of(left)[1])
    assert there.startswith("[] [] ") and there.endswith(" 7") and "Tokyo" not in there
    assert run(prepare=f"{APPS}:tells_what_is_there").rows()["there"][0].endswith(" 200")


def test_rows_are_read_that_have_come_since_the_job_before(run: Run, rows: str) -> None:
    kinds = {
        "condition": {"source": Source.parquet(rows, where="id >= 0")},
        "prepare": {"prepare": f"{APPS}:reads_a_table", "prepare_kwargs": {"folder": rows}},
        "sql": {"source": Source.sql("select * from grows")},
    }

    def found() -> list[int]:
        return [len(run(**given).rows()) for given in kinds.values()]

    assert found() == [ROWS] * 3
    pq.write_table(pq.read_table(rows), Path(rows, "1.parquet"))
    assert found() == [2 * ROWS] * 3


def test_jobs_at_the_same_time_have_a_session_each(run: Run, tmp_path: Path) -> None:
    model, predictor = plain_model(tmp_path), f"{APPS}:never_ends"
    first = run(model_uri=model, predictor=predictor)
    eventually(lambda: list(tmp_path.glob("alive-*")), "the first job scores")
    second = run(sink=Sink.parquet(str(tmp_path / "second")))
    assert len(second.rows()) == ROWS
    (tmp_path / "enough").touch()
    assert len(first.rows()) == ROWS
    assert session_of(first)[1] != session_of(second)[1]


def test_a_worker_loads_the_model_that_lies_there_now(run: Run, tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    publish_model(onnx_models.linear(tmp_path / "made.onnx"), model, columns=["a", "b"])
    assert run(model_uri=model).rows()["prediction"][5] == 15
    shutil.rmtree(model)
    publish_model(onnx_models.linear(tmp_path / "made.onnx"), model, columns=["b", "a"])
    assert run(model_uri=model).rows()["prediction"][5] == 51


def test_bad_rows_are_quarantined(run: Run, rows: str, tmp_path: Path) -> None:
    table = pq.read_table(rows).to_pandas()
    table["a"] = table["a"].where(table["id"] != 7)
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), Path(rows, "0.parquet"))
    job = run(on_bad_row="quarantine")
    assert len(job.rows()) == ROWS - 1
    report = job.report()
    assert (report.rows_in, report.rows_quarantined) == (ROWS, 1)
    assert pq.read_table(report.quarantine_uri)["id"].to_pylist() == [7]


@pytest.mark.parametrize("where", [None, "id >= 0"])
def test_a_range_of_partitions_is_replaced(run: Run, rows: str, tmp_path: Path, where: str | None) -> None:
    table = pq.read_table(rows)
    days = pa.array([f"2013-01-0{1 + number % 2}" for number in range(ROWS)])
    pq.write_table(table.append_column("ds", days), Path(rows, "0.parquet"))
    declared = partitions.days("2013-01-01", "2013-01-04")
    sink = Sink.parquet(str(tmp_path / "days"), partition_by=["ds"], partitions=declared)
    job = run(sink=sink, source=Source.parquet(rows, where=where))
    assert job.report().failure is None, job.log
    folders = [folder for folder in os.listdir(tmp_path / "days") if folder.startswith("ds=")]
    found = {folder: pq.read_table(tmp_path / "days" / folder).num_rows for folder in folders}
    assert found == {"ds=2013-01-01": 500, "ds=2013-01-02": 500, "ds=2013-01-03": 0}


@pytest.mark.parametrize(
    ("access", "said"),
    [
        ({"token": "wrong"}, "ConnectRefusedError False: .* refuses this client: .*[Tt]oken"),
        ({"token": None}, "ConnectRefusedError False: .* refuses this client"),
        ({"host": "127.0.0.1"}, "ConnectRefusedError False: .*not in TLS.*write localhost"),
        ({"use_ssl": True}, "ConnectRefusedError False: .*not in TLS.*use_ssl is set"),
    ],
)
def test_a_server_that_does_not_let_the_job_in_is_named_at_once(
    run: Run, access: dict[str, Any], said: str
) -> None:
    started = time.monotonic()
    error = run(access).error()
    assert re.search(said, error), error
    assert TOKEN not in error
    assert time.monotonic() - started < 30


def test_a_server_that_is_not_there_may_be_there_later(run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert run({"port": port}).error().startswith("ConnectServerError True: the Spark Connect server at")


def test_a_job_that_is_killed_leaves_nothing_running_and_the_server_lives_on(
    run: Run, server: Server, tmp_path: Path
) -> None:
    model, predictor = plain_model(tmp_path), f"{APPS}:never_ends"
    job = run(model_uri=model, predictor=predictor)
    eventually(lambda: list(tmp_path.glob("alive-*")), "the job scores")
    os.killpg(job.process.pid, signal.SIGKILL)
    (alive,) = tmp_path.glob("alive-*")

    def is_quiet() -> bool:
        return time.time() - alive.stat().st_mtime > 2

    eventually(is_quiet, "nothing scores any more", timeout_s=20)
    assert server.process.poll() is None
    assert not (tmp_path / "scored").exists()
    (tmp_path / "enough").touch()
    assert len(run(model_uri=model, predictor=predictor).rows()) == ROWS
    assert os.listdir(tmp_path / "scored")


def test_a_session_that_is_closed_in_mid_job_is_another_one_for_the_next_try(
    run: Run, server: Server, tmp_path: Path
) -> None:
    model, predictor = plain_model(tmp_path), f"{APPS}:never_ends"
    job = run(model_uri=model, predictor=predictor)
    eventually(lambda: list(tmp_path.glob("alive-*")), "the job scores")
    close_session(server, session_of(job)[1])
    assert job.error().startswith("ConnectServerError True: ")
    assert not (tmp_path / "scored").exists()
    (tmp_path / "enough").touch()
    again = run(model_uri=model, predictor=predictor)
    assert len(again.rows()) == ROWS
    assert session_of(again) != session_of(job)


def leases() -> list[Path]:
    return [file for file in private_folder("sessions").rglob("*") if file.is_file()]


def close_session(server: Server, begins: str) -> None:
    """Close it as its server does when nothing has happened in it for an hour."""
    texts = [file.read_text() for file in leases()]
    found = [json.loads(text)["session_id"] for text in texts if text]
    (session_id,) = {name for name in found if name.startswith(begins)}
    closer = (
        "import sys; from airflow_hydrogen.contract.connect import ConnectAccess;"
        "from airflow_hydrogen.runtime.connect.sessions import _client;"
        f"_client(ConnectAccess(conn_id='', host='localhost', port={server.access.port}, token={TOKEN!r}),"
        f" {session_id!r}, 0).client.release_session()"
    )
    subprocess.run([sys.executable, "-c", closer], check=True, cwd=ROOT)


def test_a_server_that_dies_in_mid_job_and_comes_back(run: Run, tmp_path: Path) -> None:
    for name in ("server", "anew"):
        (tmp_path / name).mkdir()
    model, predictor = plain_model(tmp_path), f"{APPS}:never_ends"
    with connect_server(tmp_path / "server") as other:
        port = other.access.port
        job = run({"port": port}, model_uri=model, predictor=predictor)
        eventually(lambda: list(tmp_path.glob("alive-*")), "the job scores")
        other.process.kill()
        assert job.error().startswith("ConnectServerError True: ")
    assert not (tmp_path / "scored").exists()
    (tmp_path / "enough").touch()
    with connect_server(tmp_path / "anew", port):
        again = run({"port": port}, model_uri=model, predictor=predictor)
        assert len(again.rows()) == ROWS
        assert session_of(again)[0] == "opened"


@pytest.fixture
def train(server: Server, code: tuple[str, ...], tmp_path: Path) -> Iterator[Callable[..., Job]]:
    started: list[Job] = []
    x = np.random.default_rng(1).normal(size=1000).astype("float32")
    (tmp_path / "line").mkdir()
    pq.write_table(pa.table({"x": x, "y": 3 * x + 1}), tmp_path / "line" / "0.parquet")

    def begin(entrypoint: str, **changes: Any) -> Job:
        given = {"np": 2, "model_uri": str(tmp_path / "model"), "report_uri": "set below", **changes}
        access = dataclasses.replace(server.access, py_files=code, code=f"{code}")
        job = TrainJob(entrypoint=Entrypoint.parse(f"{APPS}:{entrypoint}"), connect=access, **given)
        started.append(Job(job, tmp_path / f"training-{len(started)}"))
        return started[-1]

    yield begin
    for job in started:
        job.process.kill()
        job.process.wait()


def test_a_gang_trains_in_a_barrier_stage_of_the_server(
    train: Callable[..., Job], run: Run, tmp_path: Path
) -> None:
    given = {
        "datasets": {"train": Source.parquet(str(tmp_path / "line"), where="x < 10")},
        "entrypoint_kwargs": {"epochs": 20},
    }
    job = train("trains", **given)
    report = job.report()
    assert report.failure is None, f"{report.failure}\n{job.log}"
    assert (report.np, report.epochs, report.rows) == (2, 20, 1000)
    assert report.metrics["loss"] < 0.1
    assert "rank 0 of 2" in job.log and "rank 1 of 2" in job.log
    rows = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": [0, 1], "x": pa.array([1.0, 2.0], pa.float32())}), rows)
    scored = run(model_uri=report.model_uri, source=Source.parquet(str(rows))).rows()
    assert np.allclose(scored["prediction"], [4, 7], atol=0.3)

    failed = train("fails_on_rank_1", model_uri=str(tmp_path / "none"))
    assert "RankFailedError" in failed.error() and "rank 1 does not want to" in failed.error()
    again = train("trains", model_uri=str(tmp_path / "again"), **given)
    assert again.report().failure is None, again.log
    assert session_of(again) == ("joined", session_of(job)[1])


def test_a_gang_for_which_there_is_no_room_says_so(
    train: Callable[..., Job], run: Run, tmp_path: Path
) -> None:
    busy = run(model_uri=plain_model(tmp_path), predictor=f"{APPS}:never_ends")
    eventually(lambda: list(tmp_path.glob("alive-*")), "one of two slots is taken")
    gang = GangOptions(start_timeout_s=3, max_restarts=0, fork=False)
    error = train("fails_on_rank_1", gang=gang).error()
    assert error.startswith("GangLostError True: 0 of 2 ranks"), error
    (tmp_path / "enough").touch()
    assert len(busy.rows()) == ROWS


DAG = """
from airflow.sdk import DAG
from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.operators.inference import ArrowInferenceOperator

with DAG("connected"):
    common = dict(model_uri="{model}", source=Source.parquet("{rows}"), prepare="beside:with_more")
    sink = Sink.parquet("{folder}/scored")
    score = ArrowInferenceOperator(task_id="score", conn_id="server", sink=sink, **common)
    again = ArrowInferenceOperator(task_id="again", conn_id="server", sink=sink, **common)
    refused = ArrowInferenceOperator(
        task_id="refused", conn_id="server", sink=sink, executor_memory="2g", **common
    )
    score >> again >> refused
"""
BESIDE = """
def with_more(spark, rows):
    return rows.selectExpr("*", "id + 1 as more")
"""


def test_tasks_of_a_dag_share_a_session(
    server: Server, linear: str, rows: str, migrated: Path, tmp_path: Path
) -> None:
    (tmp_path / "dags").mkdir()
    dag = DAG.format(model=linear, rows=rows, folder=tmp_path)
    (tmp_path / "dags" / "connected.py").write_text(dag)
    (tmp_path / "dags" / "beside.py").write_text(BESIDE)
    connection = {"conn_type": "spark_connect", "host": "localhost", "port": server.access.port}
    home, environment = home_of_dags(
        migrated,
        tmp_path,
        AIRFLOW_CONN_SERVER=json.dumps({**connection, "password": TOKEN}),
        JAVA_HOME="/nowhere",
    )
    with DagRunner(environment, home / "log") as runner:
        ran = runner.run("connected")
    log = (home / "log").read_text()
    assert ran.tasks == {"score": "success", "again": "success", "refused": "failed"}, log[-4000:]
    assert ran.xcoms["again"]["report"]["rows"] == ROWS
    assert pq.read_table(tmp_path / "scored")["more"].to_pylist() == list(range(1, ROWS + 1))
    assert "opened session" in log and "joined session" in log
    assert "executor_memory='2g' is not possible on Spark Connect" in log
    assert TOKEN not in log
