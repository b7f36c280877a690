"""A model that was trained elsewhere, published and scored by a DAG in a real Airflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.dag_runs import DagRunner
from tests.e2e.conftest import home_of_dags
from tests.integration import onnx_models

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DAG = """
from airflow.sdk import DAG, Asset, task
from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.operators.publish import PublishModelOperator

with DAG("elsewhere"):

    @task
    def width() -> int:
        return 2

    columns = [{{"name": "pair", "width": "{{{{ ti.xcom_pull(task_ids='width') }}}}"}}]
    publish = PublishModelOperator(
        task_id="publish",
        model="{folder}/made.onnx",
        model_uri="{folder}/models/late",
        columns=columns,
        metrics={{"auc": 0.9}},
        outlets=[Asset("late")],
    )
    score = ArrowInferenceOperator(
        task_id="score",
        model_uri=publish.output,
        source=Source.parquet("{folder}/rows.parquet"),
        sink=Sink.parquet("{folder}/scored"),
    )
    width() >> publish >> score
"""


def test_a_dag_publishes_a_model_and_scores_with_it(migrated: Path, tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "made.onnx")
    pairs = np.arange(200, dtype="float64").reshape(100, 2)
    pq.write_table(pa.table({"id": range(100), "pair": pairs.tolist()}), tmp_path / "rows.parquet")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "elsewhere.py").write_text(DAG.format(folder=tmp_path))
    home, environment = home_of_dags(
        migrated,
        tmp_path,
        AIRFLOW_CONN_SPARK_DEFAULT='{"conn_type": "spark", "host": "local[2]"}',
    )
    with DagRunner(environment, home / "log") as runner:
        ran = runner.run("elsewhere")
    log = (home / "log").read_text()
    assert ran.state == "success", log[-4000:]
    assert ran.events["late"]["model_version"] == ran.xcoms["publish"]["report"]["model_version"]
    assert ran.events["late"]["metrics"] == {"auc": 0.9}
    report = ran.xcoms["score"]["report"]
    assert (report["engine"], report["rows"]) == ("onnx", 100)
    assert report["model_version"] == ran.events["late"]["model_version"]
    found = pq.read_table(ran.xcoms["score"]["return_value"]).to_pandas().sort_values("id")
    assert np.array_equal(found["prediction"], pairs[:, 0] + 10 * pairs[:, 1])
    assert "TensorFlow" not in log
