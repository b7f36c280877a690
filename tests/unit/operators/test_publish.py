"""PublishModelOperator: what its process is asked, and what it makes of the answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseHook
from airflow.sdk import DAG, Asset, AssetAlias, Connection

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import UnpublishableModelError, UriInUseError
from airflow_hydrogen.contract.publications import PublishJob, PublishReport
from airflow_hydrogen.contract.reports import Failure
from airflow_hydrogen.hooks import buckets
from airflow_hydrogen.hooks.programs import Program
from airflow_hydrogen.operators.publish import PublishModelOperator
from airflow_hydrogen.testing import run_task

Answer = Callable[[PublishJob], PublishReport | None]


def operator(**arguments: Any) -> PublishModelOperator:
    defaults: dict[str, Any] = {
        "model": "/in/{{ run_id }}.onnx",
        "model_uri": "/models/{{ run_id }}",
        "columns": ["a", "{{ 'b' }}"],
    }
    return PublishModelOperator(task_id="publish", **{**defaults, **arguments})


def success(job: PublishJob) -> PublishReport:
    return PublishReport(
        model_uri=job.model_uri,
        model_version="ab" * 32,
        alias=job.alias,
        framework="onnx",
        metrics=job.metrics,
    )


@pytest.fixture
def answers() -> list[Answer]:
    """What processes answer, one after the other; the last one answers all that follow."""
    return [success]


@pytest.fixture
def asked(answers: list[Answer]) -> Iterator[list[PublishJob]]:
    """The jobs of the processes that were started, none of which is one."""
    jobs: list[PublishJob] = []

    def run(program: Program, say: Callable[[str], None]) -> int:
        jobs.append(PublishJob.loads(Path(program._command[-1]).read_text()))
        report = answers[0](jobs[-1])
        if report is not None:
            Path(str(jobs[-1].report_uri)).write_text(report.dumps())
        program._lines.append("Out of memory")
        return 0 if report is not None and report.failure is None else 1

    with mock.patch.object(Program, "run", run):
        yield jobs


def test_the_job_holds_the_rendered_arguments(asked: list[PublishJob]) -> None:
    task = operator(
        columns={"x": ["{{ 'a' }}", {"name": "pixels", "width": "{{ 3 }}"}], "word": "carrier"},
        outputs=["{{ 'p' }}"],
        example={"a": 1.0},
        alias="/models/{{ 'production' }}.alias",
        metrics={"auc": 0.9},
        outlets=[Asset("late"), AssetAlias("models")],
    )
    ran = run_task(task)
    job = asked[0]
    assert (job.model, job.model_uri) == ("/in/test_run.onnx", "/models/test_run")
    assert job.columns == {"x": ["a", {"name": "pixels", "width": 3}], "word": "carrier"}
    assert (job.outputs, job.example, job.metrics) == (("p",), {"a": 1.0}, {"auc": 0.9})
    assert job.run is not None and (job.run.task_id, job.run.run_id) == ("publish", "test_run")
    assert ran.return_value == "/models/test_run"
    assert ran.xcoms["report"]["model_version"] == "ab" * 32
    assert "failure" not in ran.xcoms["report"]
    (extra,) = ran.outlet_extra.values()
    assert (extra["model_version"], extra["model_alias"]) == ("ab" * 32, "/models/production.alias")
    assert list(ran.alias_events["models"]) == [uris.asset_uri("/models/test_run")]


def test_native_rendering_keeps_names_that_look_like_numbers(asked: list[PublishJob]) -> None:
    dag = DAG("d", render_template_as_native_obj=True)
    run_task(operator(dag=dag, columns="{{ ['a', 7] }}", metrics="{{ {'auc': 0.5} }}"))
    assert (asked[0].columns, asked[0].metrics) == (["a", "7"], {"auc": 0.5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"columns": "{{ ['a', 'b'] }}"},
            "columns must be a list or a mapping.*render_template_as_native_obj",
        ),
        ({"columns": [None]}, r"columns\[0\] must be a string"),
        ({"model": "{{ 'm.pt' }}"}, r"torch\.export\.save"),
        ({"model_uri": "{{ '' }}"}, "model_uri must be a URI or a path"),
        ({"metrics": "{{ {'auc': 0.5} }}"}, "metrics must be a mapping"),
        ({"aws_conn_id": "none"}, "names the connection 'none', which is not there"),
    ],
)
def test_arguments_that_cannot_work_start_nothing(
    arguments: dict[str, Any], message: str, asked: list[PublishJob]
) -> None:
    with pytest.raises(AirflowFailException, match=message):
        run_task(operator(**arguments))
    assert asked == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UnpublishableModelError("m", "it takes 3 values"), AirflowFailException),
        (UriInUseError("/m", "process 1", "model_uri"), None),
    ],
)
def test_errors_are_carried_over_with_whether_a_retry_can_help(
    error: Any, kind: Any, asked: list[PublishJob], answers: list[Answer]
) -> None:
    answers[:] = [lambda job: PublishReport(failure=Failure.of(error))]
    with pytest.raises(AirflowException, match=type(error).__name__) as raised:
        run_task(operator())
    wanted = kind or (AirflowException if error.retryable else AirflowFailException)
    assert type(raised.value) is wanted


def test_a_process_that_dies_is_told_with_its_last_lines(
    asked: list[PublishJob], answers: list[Answer]
) -> None:
    answers[:] = [lambda job: None]
    with pytest.raises(AirflowException, match=r"without a report.*\nOut of memory") as raised:
        run_task(operator())
    assert not isinstance(raised.value, AirflowFailException)


def test_a_task_that_is_ended_ends_its_process_and_fails() -> None:
    task = operator()

    def run(program: Program, say: Callable[[str], None]) -> int:
        task.on_kill()
        assert program.killed
        return -15

    with mock.patch.object(Program, "run", run), pytest.raises(AirflowException, match="was ended"):
        run_task(task)
    task.on_kill()  # nothing runs


def test_keys_of_s3_travel_in_a_file_of_this_users_and_buckets_are_asked_for(asked: list[PublishJob]) -> None:
    connection = Connection(
        conn_id="lake",
        conn_type="aws",
        login="AKIA",
        password="hush",
        extra='{"endpoint_url": "http://s:7070"}',
    )
    opened: list[Any] = []
    with (
        mock.patch.object(BaseHook, "get_connection", return_value=connection),
        mock.patch.object(buckets, "require_open", lambda access, names, same_host: opened.append(names)),
    ):
        run_task(operator(model="s3://in/m.onnx", model_uri="s3://models/m", aws_conn_id="lake"))
    assert asked[0].s3 is not None
    assert asked[0].s3.secret_key == "hush"
    assert set(opened[0]) == {"in", "models"}
    assert "hush" not in repr(asked[0])


def test_lineage_leads_from_the_file_to_the_version_of_the_model(asked: list[PublishJob]) -> None:
    task = operator()
    run_task(task)
    told = task.get_openlineage_facets_on_complete(None)
    assert [dataset.name for dataset in told.inputs] == ["/in/test_run.onnx"]
    assert [dataset.name for dataset in told.outputs] == ["/models/test_run"]
    assert told.outputs[0].facets["version"].datasetVersion == "ab" * 32
    failed = operator(model="/in/m.onnx", model_uri="/models/m")
    assert "version" not in failed.get_openlineage_facets_on_failure(None).outputs[0].facets


def test_a_worker_that_lacks_what_every_model_needs_says_so(
    asked: list[PublishJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else object())
    with pytest.raises(AirflowFailException, match=r"^pyarrow is not installed.*\[airflow,spark,onnx\]"):
        run_task(operator())
    assert asked == []
