"""ArrowInferenceOperator holds the source against the model before it submits."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Connection

from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.operators import source_checks
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.schemas import looks
from airflow_hydrogen.testing import fake_spark_submit, run_task


@pytest.fixture(autouse=True)
def _time_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "TIMEOUT_S", 60)


@pytest.fixture
def model(tmp_path: Path) -> str:
    names = ("dep_delay", "distance")
    columns = [{"name": name, "dtype": "float32"} for name in names]
    signature = {
        "inputs": [{"name": "x", "columns": columns, "dtype": "float32", "shape": [2]}],
        "outputs": [{"name": "prediction", "dtype": "float32", "shape": [1]}],
    }
    (tmp_path / "model").mkdir()
    document = {"format_version": 1, "signature": signature}
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(document))
    return str(tmp_path / "model")


@pytest.fixture
def lake(tmp_path: Path) -> str:
    columns = {"Dep_Delay": [1.0], "distance": ["far"], "prediction": [0.0], "id": [1]}
    (tmp_path / "lake").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "lake" / "x.parquet")
    return str(tmp_path / "lake")


def operator(model: str, lake: str, **arguments: Any) -> ArrowInferenceOperator:
    given = {"model_uri": model, "source": Source.parquet(lake), "sink": Sink.parquet(f"{lake}-scored")}
    return ArrowInferenceOperator(task_id="score", **{**given, **arguments})


def test_all_differences_are_told_and_nothing_is_submitted(model: str, lake: str) -> None:
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException) as caught:
        run_task(operator(model, lake))
    assert submissions == []
    found = "'Dep_Delay', 'distance', 'prediction', 'id'"
    assert str(caught.value) == (
        "3 points in which source and job do not fit:\n"
        f"  - feature 'dep_delay' not found; the columns are {found}; is it 'Dep_Delay' for 'dep_delay'?\n"
        "  - column 'distance': expected float32, found string\n"
        "  - output column 'prediction' is already a column of the source; rename it with output_columns, or "
        "leave it out of keep_columns"
    )


def test_a_source_that_fits_is_submitted(model: str, tmp_path: Path, caplog: Any) -> None:
    pq.write_table(pa.table({"dep_delay": [1.0], "distance": [1]}), tmp_path / "x.parquet")
    caplog.set_level(logging.INFO)
    with fake_spark_submit() as submissions:
        run_task(operator(model, str(tmp_path / "x.parquet")))
    assert len(submissions) == 1
    assert "The source fits the model: 2 columns, looked at without Spark in" in caplog.text


def test_columns_are_those_that_are_chosen(model: str, lake: str) -> None:
    source = Source.parquet(lake, columns=["id", "Distance"])
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException) as caught:
        run_task(operator(model, lake, source=source))
    assert submissions == []
    assert str(caught.value).splitlines()[1:] == [
        "  - column 'Distance' not found; the columns are 'Dep_Delay', 'distance', 'prediction', 'id'; is it "
        "'distance' for 'Distance'?",
        "  - feature 'dep_delay', 'distance' not found; the columns are 'id', 'Distance'; is it 'Distance' "
        "for 'distance'?",
    ]


def test_what_prepare_is_given_is_looked_at_and_nothing_else(model: str, lake: str) -> None:
    with fake_spark_submit() as submissions:
        run_task(operator(model, lake, prepare="json:loads"))
        assert len(submissions) == 1
        wrong = Source.parquet(lake, columns=["nose"])
        with pytest.raises(AirflowFailException, match="column 'nose' not found"):
            run_task(operator(model, lake, prepare="json:loads", source=wrong))
        with pytest.raises(AirflowFailException, match="output_columns names 'q'"):
            run_task(operator(model, lake, prepare="json:loads", output_columns={"q": "p"}))
    assert len(submissions) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_uri": "/no/such/model"}, "the model /no/such/model is not on this machine"),
        ({"source": Source.parquet("/no/such/lake")}, "no file is there"),
        ({"source": Source.json("/lake")}, "only Spark knows the columns of a json source"),
        ({"conf": {"spark.sql.parquet.mergeSchema": "true"}}, "has Spark look at every file"),
    ],
)
def test_where_nothing_can_be_seen_the_driver_checks_alone(
    model: str, lake: str, caplog: Any, changes: dict[str, Any], reason: str
) -> None:
    caplog.set_level(logging.INFO)
    with fake_spark_submit() as submissions:
        run_task(operator(model, lake, **changes))
    assert len(submissions) == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == source_checks.__name__]
    assert line.startswith("The source is not held against the model before submission: ")
    assert reason in line


def test_a_driver_on_the_cluster_has_other_files(model: str, lake: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    connection = Connection(
        conn_id="spark_default", conn_type="spark", host="yarn", extra='{"deploy-mode": "cluster"}'
    )
    with fake_spark_submit(connection=connection) as submissions:
        run_task(operator(model, lake, durable=False))
    assert len(submissions) == 1
    assert "its driver runs on the cluster, and has other local files" in caplog.text
