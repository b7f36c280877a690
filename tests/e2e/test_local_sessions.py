"""Tasks without a Spark connection, in a real Airflow: the first leaves a server behind, others join it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.runtime.publication import publish_model
from scripts.dag_runs import DagRunner
from tests.e2e.conftest import home_of_dags
from tests.integration import onnx_models

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DAG = """
from airflow.sdk import DAG
from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.operators.inference import ArrowInferenceOperator

with DAG("stays"):
    given = dict(model_uri="{folder}/model", source=Source.parquet("{folder}/rows.parquet"))
    first, second, third = (
        ArrowInferenceOperator(task_id=name, sink=Sink.parquet("{folder}/" + name), prepare=prepare, **given)
        for name, prepare in (
            ("first", "beside:by_frames"),
            ("second", "beside:by_frames"),
            ("third", "beside:by_the_context"),
        )
    )
    first >> second >> third
"""
BESIDE = """
def by_frames(spark, rows):
    return rows.selectExpr("*", "id + 1 as more")


def by_the_context(spark, rows):
    return rows.where(f"id < {spark.sparkContext.parallelize([1, 2, 3]).count()}")
"""


def test_the_second_task_joins_what_the_first_has_started(migrated: Path, tmp_path: Path) -> None:
    publish_model(onnx_models.linear(tmp_path / "made.onnx"), str(tmp_path / "model"), columns=["a", "b"])
    table = {"id": np.arange(100), "a": np.arange(100.0), "b": np.ones(100)}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    for name in ("dags", "airflow", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "dags" / "stays.py").write_text(DAG.format(folder=tmp_path))
    (tmp_path / "dags" / "beside.py").write_text(BESIDE)
    home, environment = home_of_dags(
        migrated,
        tmp_path,
        AIRFLOW__AIRFLOW_HYDROGEN__LOCAL_SESSIONS="True",
        TMPDIR=str(tmp_path / "tmp"),  # where its servers and sessions are
    )
    sessions = [sys.executable, "-m", "airflow", "hydrogen", "session"]
    try:
        with DagRunner(environment, home / "log") as runner:
            ran = runner.run("stays")
        as_json = [*sessions, "list", "--output", "json"]
        listed = subprocess.check_output(as_json, env=environment, text=True)
        (server,) = json.loads(listed[listed.index("[") :])
    finally:
        subprocess.run([*sessions, "stop", "--all", "--force"], env=environment, check=True)
    log = (home / "log").read_text()
    assert ran.state == "success", log[-4000:]
    rows = {name: ran.xcoms[name]["report"]["rows"] for name in ("first", "second", "third")}
    assert rows == {"first": 100, "second": 100, "third": 3}
    assert pq.read_table(tmp_path / "second")["more"].to_pylist() == list(range(1, 101))
    assert len(re.findall("starting a Spark Connect server", log)) == 1
    opened = re.findall(r"(opened|joined) session (\w+) of Spark", log)
    assert [how for how, _ in opened] == ["opened", "joined", "joined"]
    assert len({session for _, session in opened}) == 1
    assert "Submitting an application, which the job's code takes: " in log
    assert server["key"] in log
