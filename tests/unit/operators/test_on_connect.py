from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Connection

from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.testing import fake_spark_submit, run_task

SERVER = Connection(conn_id="server", conn_type="spark_connect", host="spark.example.org", password="hush")


def operator(**changes: Any) -> ArrowInferenceOperator:
    given = {
        "task_id": "score",
        "conn_id": "server",
        "model_uri": "/models/m",
        "source": Source.parquet("/lake/in"),
        "sink": Sink.parquet("/lake/out"),
        **changes,
    }
    return ArrowInferenceOperator(**given)


def test_a_job_for_a_server_goes_to_a_client_with_the_code_that_a_session_needs() -> None:
    with fake_spark_submit(connection=SERVER) as submissions:
        ran = run_task(operator(conf={"spark.sql.ansi.enabled": "false"}))
    (submission,) = submissions
    job = submission.job
    assert isinstance(job, InferenceJob) and job.connect is not None
    assert (job.connect.url, job.connect.token) == ("sc://spark.example.org:15002", "hush")
    assert job.connect.settings == {"spark.sql.ansi.enabled": "false"}
    assert "airflow_hydrogen/runtime/__main__.py" in submission.files
    assert "airflow_hydrogen_runtime" not in submission.environment["PYTHONPATH"]
    assert "hush" not in " ".join(submission.command) + str(submission.environment)
    assert job.spark_log_uri is None
    assert ran.return_value == "/lake/out"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"executor_memory": "2g"}, "executor_memory='2g' is not possible on Spark Connect"),
        ({"spark_log_level": "INFO"}, "spark_log_level='INFO' is not possible"),
        ({"sink": Sink.delta("/lake/out")}, "sink delta /lake/out is not possible"),
        ({"conf": {"spark.executor.cores": "2"}}, "conf 'spark.executor.cores' is not possible"),
    ],
)
def test_what_a_server_cannot_do_fails_without_a_retry(changes: dict[str, Any], said: str) -> None:
    with fake_spark_submit(connection=SERVER) as submissions, pytest.raises(AirflowFailException, match=said):
        run_task(operator(**changes))
    assert not submissions


def test_cores_of_ranks_are_the_servers() -> None:
    train = HorovodTrainOperator(
        task_id="train", conn_id="server", entrypoint="json:loads", np=2, model_uri="/m", cpus_per_process=2
    )
    with (
        fake_spark_submit(connection=SERVER),
        pytest.raises(AirflowFailException, match="cpus_per_process=2 is not possible"),
    ):
        run_task(train)
