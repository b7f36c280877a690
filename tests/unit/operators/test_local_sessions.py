from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from airflow_hydrogen.contract.errors import ApplicationError, InvalidJobError, NotOnConnectError
from airflow_hydrogen.contract.jobs import Entrypoint, InferenceJob, Sink, Source, TrainJob
from airflow_hydrogen.operators import local_sessions

JOB = InferenceJob(model_uri="/m", source=Source.parquet("/s"), sink=Sink.parquet("/t"), report_uri="/r")


@pytest.mark.parametrize(
    ("way", "executor", "master", "wanted"),
    [
        ("auto", "LocalExecutor", "local[*]", True),
        ("auto", "LocalExecutor", "local", True),
        ("auto", "CeleryExecutor", "local[*]", False),
        ("auto", "LocalExecutor,CeleryExecutor", "local[*]", False),
        ("auto", "LocalExecutor", "spark://m:7077", False),
        ("auto", "LocalExecutor", "local-cluster[2,1,1024]", False),
        ("True", "CeleryExecutor", "local[2]", True),
        ("true", "LocalExecutor", "yarn", False),
        ("False", "LocalExecutor", "local[*]", False),
    ],
)
def test_where_tasks_share_a_server(
    monkeypatch: pytest.MonkeyPatch, way: str, executor: str, master: str, wanted: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__AIRFLOW_HYDROGEN__LOCAL_SESSIONS", way)
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    assert local_sessions.are_wanted(master) is wanted


def test_a_setting_that_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AIRFLOW_HYDROGEN__LOCAL_SESSIONS", "sometimes")
    with pytest.raises(InvalidJobError, match="must be one of auto, true, false, found 'sometimes'"):
        local_sessions.are_wanted("local[*]")


def test_jobs_on_files_of_this_machine_share_a_server() -> None:
    local_sessions.require_possible(JOB, None)
    entrypoint = Entrypoint.parse("a.b:main")
    training = TrainJob(
        entrypoint=entrypoint, np=2, model_uri="/m", report_uri="/r", datasets={"t": JOB.source}
    )
    local_sessions.require_possible(training, {})


@pytest.mark.parametrize(
    ("changes", "env_vars", "said"),
    [
        ({}, {"TEAM": "a"}, "env_vars"),
        ({"model_uri": "s3://bucket/m"}, None, "'s3://bucket/m'"),
        ({"source": Source.parquet("s3://bucket/s")}, None, "'s3://bucket/s'"),
        ({"sink": Sink.parquet("gs://bucket/s")}, None, "'gs://bucket/s'"),
        ({"source": Source.table("db.t")}, None, "catalogs"),
        ({"source": Source.sql("select * from db.t")}, None, "catalogs"),
        ({"source": Source.avro("/s")}, None, "avro"),
        ({"sink": Sink.delta("/d")}, None, "sink delta"),
    ],
)
def test_others_take_an_application(changes: dict[str, Any], env_vars: Any, said: str) -> None:
    with pytest.raises(NotOnConnectError, match=said):
        local_sessions.require_possible(dataclasses.replace(JOB, **changes), env_vars)


def test_code_that_takes_a_context_is_told_by_its_error() -> None:
    kind = "pyspark.errors.exceptions.base.PySparkAttributeError"
    assert local_sessions.takes_application(ApplicationError("x", error_type=kind))
    assert not local_sessions.takes_application(ApplicationError("x", error_type="ValueError"))
    assert not local_sessions.takes_application(ApplicationError("x"))


def test_code_that_sets_what_frameworks_read_when_they_are_imported_has_workers_of_its_own(
    tmp_path: Path,
) -> None:
    code = tmp_path / "prepare.py"
    code.write_text("import os\nos.environ['TF_DETERMINISTIC_OPS'] = '1'\n")
    with pytest.raises(NotOnConnectError, match=r"code has TF_DETERMINISTIC_OPS in it \(prepare.py\)"):
        local_sessions.require_possible(JOB, None, [code])
    code.write_text("import os\n")
    local_sessions.require_possible(JOB, None, [code])
