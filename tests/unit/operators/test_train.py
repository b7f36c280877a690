"""HorovodTrainOperator: what it submits, and what it makes of the answer."""

from __future__ import annotations

import datetime
import functools
import importlib
import inspect
import math
import os
import re
import stat
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import DAG, Asset, AssetAlias, BaseOperator, Connection

from airflow_hydrogen.contract import pickling
from airflow_hydrogen.contract.errors import HydrogenError, NotEnoughSlotsError, NullValueError
from airflow_hydrogen.contract.jobs import Run, Source, TrainJob
from airflow_hydrogen.contract.reports import TrainReport
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook
from airflow_hydrogen.operators.hook_options import HOOK_OPTIONS
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.testing import TaskRun, fake_spark_submit, run_task, spark_ui_line

HOSTILE = "' or reflect('java.lang.System', 'exit', 1) = '"
STANDALONE = Connection(conn_id="spark_default", conn_type="spark", host="spark://master", port=7077)


def main(epochs: int = 1) -> int:
    return epochs


def operator(**arguments: Any) -> HorovodTrainOperator:
    defaults: dict[str, Any] = {"entrypoint": main, "np": 2, "model_uri": "/models/{{ run_id }}"}
    return HorovodTrainOperator(task_id="train", **{**defaults, **arguments})


def test_every_option_of_the_providers_hook_is_passed_on() -> None:
    parameters = set(inspect.signature(SparkSubmitHook.__init__).parameters) - {"self"}
    assert set(HOOK_OPTIONS) == parameters
    assert not [name for name in HOOK_OPTIONS.values() if not hasattr(operator(), name)]


def test_job_holds_the_rendered_arguments() -> None:
    task = operator(
        entrypoint_kwargs={"epochs": "{{ params.epochs }}", "nested": ["{{ ds }}"]},
        np="{{ params.np }}",
        train_data=Source.parquet("s3://lake/flights", where="ds < :day", where_args={"day": "{{ ds }}"}),
        validation_data={"kind": "csv", "uri": "/later/{{ ds }}.csv"},
        datasets={
            "weather": Source.sql(
                "select * from w where at > :at",
                query_args={"at": "{{ params.at }}"},
                w=Source.parquet("/w/{{ ds }}"),
            )
        },
        prepare_kwargs={"day": "{{ ds }}"},
        keep_checkpoints=True,
        exports=["onnx"],
        driver_log_verbosity="log_callback_only",
        start_timeout_s=5,
        fork=False,
    )
    with fake_spark_submit() as submissions:
        ran = run_task(
            task, ds="2013-02-01", params={"np": 4, "epochs": 3, "at": HOSTILE}, run_id="manual__1"
        )
    job = submissions[0].job
    assert ran.return_value == job.model_uri == "/models/manual__1"
    assert (job.np, job.entrypoint_kwargs) == (4, {"epochs": "3", "nested": ["2013-02-01"]})
    assert job.datasets["train"] == Source.parquet(
        "s3://lake/flights", where="ds < :day", where_args={"day": "2013-02-01"}
    )
    assert job.datasets["validation"].uri == "/later/2013-02-01.csv"
    assert job.datasets["weather"].tables["w"].uri == "/w/2013-02-01"
    weather = job.datasets["weather"]
    assert (weather.query, weather.query_args) == ("select * from w where at > :at", {"at": HOSTILE})
    assert (job.prepare_kwargs, job.keep_checkpoints) == ({"day": "2013-02-01"}, True)
    assert job.exports == ("onnx",)
    assert (job.gang.driver_log_verbosity, job.gang.start_timeout_s) == ("log_callback_only", 5)
    assert job.gang.fork is False
    assert submissions[0].option("--name") == "airflow-hydrogen.test_dag__train__manual__1"


def test_callable_travels_inside_the_job() -> None:
    with fake_spark_submit() as submissions:
        run_task(operator(entrypoint=functools.partial(main, epochs=7)))
    entrypoint = submissions[0].job.entrypoint
    assert (entrypoint.kind, entrypoint.name) == ("callable", f"{__name__}:main")
    assert pickling.loads(entrypoint.pickle)() == 7


def test_change_of_code_is_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "flhashed/train.py": "import flhashedhelper\ndef main(): pass",
        "flhashed/prepare.py": "def join(spark, frame): return frame",
        "flhashedhelper.py": "x = 1",
        "flhashedscript.py": "import flhashedhelper",
        "flhasheddag.py": "import flhashedhelper\ndef main(): return flhashedhelper.x",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    function = importlib.import_module("flhasheddag").main

    def code_of(entrypoint: Any) -> dict[str, str]:
        with fake_spark_submit() as submissions:
            run_task(operator(entrypoint=entrypoint, prepare="flhashed.prepare:join"))
        return dict(submissions[0].job.code)

    entrypoints = ["flhashed.train:main", str(tmp_path / "flhashedscript.py"), function]
    before = [code_of(entrypoint) for entrypoint in entrypoints]
    assert before == [code_of(entrypoint) for entrypoint in entrypoints]
    assert all(set(code) == {"entrypoint", "prepare"} for code in before)
    (tmp_path / "flhashedhelper.py").write_text("x = 2")
    after = [code_of(entrypoint) for entrypoint in entrypoints]
    assert all(old["entrypoint"] != new["entrypoint"] for old, new in zip(before, after, strict=True))
    # Its package's other modules count, what it does not import does not.
    assert [old["prepare"] != new["prepare"] for old, new in zip(before, after, strict=True)] == [True] * 3
    (tmp_path / "flhasheddag.py").write_text("def main(): return 3")
    assert [code_of(entrypoint) for entrypoint in entrypoints[:2]] == after[:2]


def test_code_of_an_installed_package_counts_and_absent_code_does_not() -> None:
    with fake_spark_submit(connection=STANDALONE) as submissions:
        run_task(operator(entrypoint="json.decoder:JSONDecoder", prepare="flno.such:join"))
    assert set(submissions[0].job.code) == {"entrypoint"}


def test_code_beside_the_dag_travels_with_the_job(tmp_path: Path) -> None:
    (tmp_path / "flbeside").mkdir()
    (tmp_path / "flbeside" / "train.py").write_text("import flhelpers\ndef main(): pass")
    (tmp_path / "flbeside" / "prepare.py").write_text("def join(spark, frame): return frame")
    (tmp_path / "flhelpers.py").write_text("")
    dag = DAG("flights")
    dag.fileloc = str(tmp_path / "flights_dag.py")
    task = operator(entrypoint="flbeside.train:main", prepare="flbeside.prepare:join", dag=dag)
    with fake_spark_submit() as submissions:
        run_task(task)
    assert {"flbeside/train.py", "flbeside/prepare.py", "flhelpers.py"} < set(submissions[0].files)
    assert "airflow_hydrogen/runtime/__main__.py" in submissions[0].files
    assert submissions[0].job.entrypoint.value == "flbeside.train:main"


def test_code_in_a_zip_of_dags_travels_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dags = tmp_path / "dags.zip"
    with zipfile.ZipFile(dags, "w") as archive:
        archive.writestr("flzipdag.py", "from flziphelpers import double\ndef main(): return double(4)")
        archive.writestr("flziphelpers.py", "def double(x): return 2 * x")
        archive.writestr("flziptrain.py", "import flziphelpers\ndef main(): pass")
    # As Airflow imports a zip.
    monkeypatch.syspath_prepend(str(dags))
    module = importlib.import_module("flzipdag")
    monkeypatch.undo()
    dag = DAG("flights")
    dag.fileloc = str(dags / "flzipdag.py")
    with fake_spark_submit() as submissions:
        run_task(operator(entrypoint=module.main, dag=dag))
        dag = DAG("flights")
        dag.fileloc = str(dags / "flzipdag.py")
        run_task(operator(entrypoint="flziptrain:main", dag=dag))
    assert submissions[0].files["flziphelpers.py"] == b"def double(x): return 2 * x"
    assert {"flziptrain.py", "flziphelpers.py"} < set(submissions[1].files)


def test_neighbours_of_a_function_in_a_package_travel_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flneighbours").mkdir()
    (tmp_path / "flneighbours" / "train.py").write_text("from .net import build\ndef main(): return build()")
    (tmp_path / "flneighbours" / "net.py").write_text("def build(): return 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    with fake_spark_submit() as submissions:
        run_task(operator(entrypoint=importlib.import_module("flneighbours.train").main))
    assert {"flneighbours/train.py", "flneighbours/net.py"} < set(submissions[0].files)


def test_modules_beside_a_script_travel_with_it(tmp_path: Path) -> None:
    (tmp_path / "flscripted.py").write_text("import flbesidethescript")
    (tmp_path / "flbesidethescript.py").write_text("")
    with fake_spark_submit() as submissions:
        run_task(operator(entrypoint=str(tmp_path / "flscripted.py")))
    assert "flbesidethescript.py" in submissions[0].files


def test_import_that_is_nowhere_is_named_before_submission(tmp_path: Path) -> None:
    (tmp_path / "flentry.py").write_text("import flnext\ndef main(): pass")
    (tmp_path / "flnext.py").write_text("import flgone")
    (tmp_path / "flentryscript.py").write_text("import flnext")
    for entrypoint in ("flentry:main", "flentryscript.py"):

        def submit(entrypoint: str = entrypoint) -> TaskRun:
            dag = DAG("flights")
            dag.fileloc = str(tmp_path / "dag.py")
            return run_task(operator(entrypoint=entrypoint, dag=dag))

        message = (
            rf"entry point '{entrypoint}' cannot run: {tmp_path}/flnext.py imports 'flgone', which is not"
        )
        with fake_spark_submit() as submissions, pytest.raises(AirflowFailException, match=message):
            submit()
        assert submissions == []
        with fake_spark_submit(connection=STANDALONE):
            assert submit()  # the cluster may have it


def test_script_is_found_beside_the_dag(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import flbesidescript")
    (tmp_path / "flbesidescript.py").write_text("")
    dag = DAG("flights")
    dag.fileloc = str(tmp_path / "flights_dag.py")
    with fake_spark_submit() as submissions:
        run_task(operator(entrypoint="train.py", entrypoint_args=["--epochs", 3], dag=dag))
    job = submissions[0].job
    assert (job.entrypoint.kind, job.entrypoint.value) == ("script", str(tmp_path / "train.py"))
    assert list(job.entrypoint_args) == ["--epochs", "3"]
    assert "flbesidescript.py" in submissions[0].files


def test_job_file_is_private_and_gone_afterwards() -> None:
    modes: list[int] = []

    def look(job: Any) -> TrainReport:
        folder = Path(job.report_uri).parent
        modes.extend(stat.S_IMODE(os.stat(path).st_mode) for path in (folder, folder / "job.json"))
        modes.append(int(any("s3cret" in part for part in submissions[0].command)))
        return TrainReport(model_uri=job.model_uri)

    with fake_spark_submit(look) as submissions:
        run_task(operator(entrypoint_kwargs={"token": "s3cret"}, name="x"))
    assert modes == [0o700, 0o600, 0]
    assert not Path(submissions[0].job.report_uri).parent.exists()


def test_options_of_the_author_stay() -> None:
    task = operator(
        conf={"spark.ui.enabled": "false", "spark.task.cpus": "3"},
        py_files="/mine.zip",
        cpus_per_process=2,
        gpus_per_process="{{ 1 }}",
        executor_memory="3g",
        env_vars={"A": "1"},
    )
    with fake_spark_submit(connection=STANDALONE) as submissions:
        run_task(task)
        run_task(task)  # nothing piles up on the operator
    submission = submissions[1]
    assert submission.conf == {
        "spark.ui.enabled": "false",
        "spark.task.cpus": "3",
        "spark.executor.resource.gpu.amount": "1",
        "spark.executor.cores": "3",
        "spark.cores.max": "6",
        "spark.dynamicAllocation.enabled": "false",
    }
    py_files = (submission.option("--py-files") or "").split(",")
    assert [Path(file).name for file in py_files] == ["mine.zip", "airflow_hydrogen_runtime.zip"]
    assert submission.option("--executor-memory") == "3g"
    assert submission.environment["A"] == "1"


def test_no_gpu_setting_without_gpus() -> None:
    with fake_spark_submit() as submissions:
        run_task(operator())
    assert submissions[0].conf == {}
    assert submissions[0].option("--master") == "local[*]"


def test_driver_on_the_cluster_gets_files_and_a_shared_report(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    connection = Connection(
        conn_id="spark_default", conn_type="spark", host="yarn", extra='{"deploy-mode": "cluster"}'
    )
    uris = []
    with fake_spark_submit(connection=connection) as submissions:
        for run_id in ("a", "a", "b"):
            arguments = {"entrypoint": str(tmp_path / "train.py"), "model_uri": str(tmp_path / "model")}
            task = operator(**arguments, durable=False, files="/mine.txt")
            run_task(task, run_id=run_id)
            uris.append(submissions[-1].job.report_uri)
    assert uris[0] == uris[1] != uris[2]
    assert uris[0].startswith(str(tmp_path / "model.report-"))
    files = [Path(file).name for file in (submissions[0].option("--files") or "").split(",")]
    assert files == ["mine.txt", "job.json", "train.py"]
    assert submissions[0].command[-1] == "job.json"
    assert submissions[0].job.entrypoint.value == "train.py"


def test_report_of_an_earlier_application_is_not_taken(tmp_path: Path) -> None:
    connection = Connection(
        conn_id="spark_default", conn_type="spark", host="yarn", extra='{"deploy-mode": "cluster"}'
    )
    arguments: dict[str, Any] = {"model_uri": str(tmp_path / "model"), "durable": False}
    with fake_spark_submit(connection=connection):
        run_task(operator(**arguments))
    with (
        fake_spark_submit(None, connection=connection),
        pytest.raises(AirflowException, match="without a report"),
    ):
        run_task(operator(**arguments))


# --- what comes back ---------------------------------------------------------------------------------


def test_report_becomes_xcoms_and_asset_events(capsys: pytest.CaptureFixture[str]) -> None:
    model = Asset("flight_delay_model")
    report = TrainReport(
        model_uri="s3://models/m",
        model_version="3f2a" * 16,
        metrics={"loss": 0.25, "nan": math.nan},
        np=2,
        epochs=3,
        rows=1000,
        seconds={"total": 12.0},
        rows_per_second=250.0,
        versions={"keras": "3"},
        resumed_from_epoch=1,
        sources={"train": {"source": "delta '/orders'", "version": 812}},
    )
    with fake_spark_submit(report):
        ran = run_task(operator(outlets=[model, AssetAlias("models")]), run_id="r")
    assert ran.return_value == "s3://models/m"
    assert ran.xcoms["report"]["metrics"] == {"loss": 0.25, "nan": None}
    assert ran.xcoms["report"]["rows_per_second"] == 250.0
    assert "failure" not in ran.xcoms["report"]
    assert ran.alias_events == {"models": {"s3://models/m": ran.outlet_extra[model]}}
    assert ran.outlet_extra == {
        model: {
            "model_uri": "s3://models/m",
            "model_version": report.model_version,
            "sources": report.sources,
            "metrics": {"loss": 0.25, "nan": None},
            "run": {
                "dag_id": "test_dag",
                "task_id": "train",
                "run_id": "r",
                "map_index": -1,
                "clear_number": 0,
            },
        }
    }
    log = capsys.readouterr().out
    assert f"Training on local[*]: entry point {__name__}:main, np=2, datasets none, model /models/r" in log
    assert (
        "Trained on 1,000 rows in 12.0 s, 250 rows/s (np=2, 3 epochs, resumed from epoch 1, loss=0.25" in log
    )


def test_other_results_are_returned() -> None:
    with fake_spark_submit(TrainReport(result={"accuracy": math.inf})):
        assert run_task(operator()).return_value == {"accuracy": None}


def test_alias_gets_no_event_where_nothing_was_published(caplog: pytest.LogCaptureFixture) -> None:
    with fake_spark_submit(TrainReport(result=7)):
        ran = run_task(operator(outlets=[AssetAlias("models")]))
    assert (ran.return_value, ran.alias_events) == (7, {})
    assert "asset alias 'models' gets no event: nothing was published" in caplog.text


def test_no_xcoms_when_they_are_not_wanted() -> None:
    with fake_spark_submit():
        assert "report" not in run_task(operator(do_xcom_push=False)).xcoms


def test_single_value_with_multiple_outputs_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    task = operator(multiple_outputs=True)
    with fake_spark_submit():
        assert run_task(task).return_value == "/models/test_run"
    assert task.multiple_outputs is False
    assert (
        "multiple_outputs is ignored: the result is '/models/test_run', not a mapping"
        in capsys.readouterr().out
    )


def test_links_work_while_the_task_runs() -> None:
    xcoms: dict[str, Any] = {}

    def look(job: Any) -> TrainReport:
        assert xcoms == {
            "_link_model": "file:///models/test_run",
            "_link_spark_ui": "http://driver:4040",
            "_link_spark_log": f"file://{job.spark_log_uri}",
        }
        return TrainReport(model_uri=job.model_uri)

    with fake_spark_submit(look, log=[spark_ui_line("http://driver:4040")]):
        run_task(operator(), xcoms=xcoms)


def test_sparks_whole_log_has_a_place_of_its_own_for_each_try() -> None:
    def place(**arguments: Any) -> str | None:
        with fake_spark_submit() as submissions:
            run_task(operator(**arguments))
        return submissions[0].job.spark_log_uri

    beside = place()
    assert beside is not None
    assert re.fullmatch(r"/models/\.test_run\.spark-[0-9a-f]{12}-1\.log", beside)
    key = beside.removeprefix("/models/.test_run.spark-")
    assert place(spark_log_uri="s3a://logs/{{ run_id }}/") == f"s3a://logs/test_run/train-{key}"
    assert place(model_uri="s3://models/m") == f"s3://models/.m.spark-{key}"


def test_the_place_of_the_log_does_not_change_the_job() -> None:
    def fingerprint(**arguments: Any) -> str:
        with fake_spark_submit() as submissions:
            run_task(operator(**arguments))
        job = submissions[0].job
        assert isinstance(job, TrainJob)
        return job.fingerprint()

    assert fingerprint() == fingerprint(spark_log_uri="/logs")


def test_the_level_of_sparks_log() -> None:
    def settings(**arguments: Any) -> list[str]:
        with fake_spark_submit() as submissions:
            run_task(operator(**arguments))
        return [word for word in submissions[0].command if word.startswith("spark.log.level")]

    assert settings() == []
    assert settings(spark_log_level="INFO") == ["spark.log.level=INFO"]
    assert settings(spark_log_level="INFO", conf={"spark.log.level": "ERROR"}) == ["spark.log.level=ERROR"]
    with pytest.raises(AirflowFailException, match="spark_log_level must be one of .*, found 'verbose'"):
        settings(spark_log_level="verbose")


def test_reused_model_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_spark_submit(TrainReport(model_uri="/m", reused=True)):
        run_task(operator())
    assert "The model is there already, from an earlier try: /m" in capsys.readouterr().out


# --- identity ----------------------------------------------------------------------------------------


def run_of(task: HorovodTrainOperator, **arguments: Any) -> Run:
    with fake_spark_submit() as submissions:
        run_task(task, **arguments)
    run: Run = submissions[0].job.run
    return run


def test_tries_share_their_identity_and_a_clear_changes_it() -> None:
    first = run_of(operator(retries=2), run_id="r", map_index=3)
    assert first == Run(dag_id="test_dag", task_id="train", run_id="r", map_index=3, clear_number=2)
    assert run_of(operator(retries=2), run_id="r", map_index=3, max_tries=2) == first
    cleared = run_of(operator(retries=2), run_id="r", map_index=3, max_tries=1 + 2)  # after one try
    assert cleared != first


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_editing_retries_between_two_tries_changes_no_identity(retries: int) -> None:
    """Airflow keeps the task instance's max_tries, whatever the DAG says afterwards."""
    first = run_of(operator(retries=2), run_id="r")
    assert run_of(operator(retries=retries), run_id="r", max_tries=2) == first
    cleared = run_of(operator(retries=2), run_id="r", max_tries=1 + 2)
    assert run_of(operator(retries=retries), run_id="r", max_tries=1 + 2) == cleared


# --- failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (NotEnoughSlotsError(4, 2), AirflowException, r"^NotEnoughSlotsError: the gang needs np=4"),
        (NullValueError("late", 3, 10, "int64"), AirflowFailException, r"^NullValueError: column 'late'"),
        (ValueError("boom"), AirflowException, r"^ValueError: boom"),
    ],
)
def test_failure_of_the_application_is_the_tasks(
    error: Exception, raised: type[Exception], message: str
) -> None:
    with fake_spark_submit(error), pytest.raises(AirflowException, match=message) as caught:
        run_task(operator())
    assert type(caught.value) is raised


def test_silent_death_shows_the_last_lines_of_the_driver() -> None:
    message = (
        r"(?s)the application ended without a report; spark-submit failed \(Cannot execute: .*"
        r"Error code is: 137.\). Its last lines:\nstarted\njava.lang.OutOfMemoryError$"
    )
    with (
        fake_spark_submit(None, log=["started", "java.lang.OutOfMemoryError"], exit_code=137),
        pytest.raises(AirflowException, match=message) as caught,
    ):
        run_task(operator())
    assert type(caught.value) is AirflowException  # a retry may help


def test_success_without_a_report_is_a_failure() -> None:
    with (
        fake_spark_submit(None, exit_code=0),
        pytest.raises(AirflowException, match="spark-submit succeeded"),
    ):
        run_task(operator())


def test_reported_success_counts_more_than_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_spark_submit(exit_code=1):
        assert run_task(operator()).return_value == "/models/test_run"
    assert "The application reported success, then spark-submit failed" in capsys.readouterr().out


def test_a_success_is_not_warned_of_for_classes_that_could_not_be_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HydrogenSparkSubmitHook, "give_up_archive", lambda self, reason: True)
    with fake_spark_submit(exit_code=1):
        assert run_task(operator()).return_value == "/models/test_run"
    said = capsys.readouterr().out
    assert "Spark's classes could not be kept" in said
    assert "warning" not in said


def test_complaints_of_the_provider_are_not_hidden() -> None:
    connection = Connection(
        conn_id="spark_default", conn_type="spark", host="yarn", extra='{"deploy-mode": "cluster"}'
    )
    with (
        fake_spark_submit(connection=connection),
        pytest.raises(ValueError, match="yarn_track_via_rm_api=True"),
    ):
        run_task(operator())


def test_killed_task_does_not_succeed() -> None:
    task = operator()

    def kill(job: Any) -> TrainReport:
        task.on_kill()
        return TrainReport(model_uri=job.model_uri)

    with fake_spark_submit(kill), pytest.raises(AirflowException, match="ended while the application ran"):
        run_task(task)


def test_task_killed_early_submits_nothing() -> None:
    task = operator()
    task.on_kill()
    with (
        fake_spark_submit() as submissions,
        pytest.raises(AirflowException, match="ended before the application"),
    ):
        run_task(task)
    assert submissions == []


# --- templates that render to Python's types ----------------------------------------------------------


def native(**arguments: Any) -> HorovodTrainOperator:
    return operator(dag=DAG("flights", render_template_as_native_obj=True), **arguments)


def test_native_rendering_leaves_text_as_text() -> None:
    task = native(
        entrypoint="{{ params.script }}",
        entrypoint_args=["--month", "{{ '2024_01' }}", "{{ '00' }}", 0.5, 3],
        np="{{ params.np }}",
        train_data=Source.csv(
            "{{ ds_nodash }}", where="x > :x", where_args={"x": "{{ params.np }}"}, sep="{{ 1 }}"
        ),
        datasets={
            "weather": Source.sql("{{ '1' }}", w=Source.parquet("{{ '1_0' }}")),
            "b": "{{ params.source }}",
        },
        model_uri="{{ ds_nodash }}",
        name="{{ ds_nodash }}",
        conf={"spark.a": "{{ '007' }}{{ '0_0' }}", "spark.b": "{{ true }}"},
        env_vars={"DAY": "{{ ds_nodash }}"},
    )
    given = {"kind": "csv", "uri": 20240102, "options": {"header": False}}
    with fake_spark_submit() as submissions:
        script = f"{__file__}"
        run_task(task, ds_nodash="20240102", params={"script": script, "np": 4, "source": given})
    job = submissions[0].job
    assert list(job.entrypoint_args) == ["--month", "2024_01", "00", "0.5", "3"]
    train, weather = job.datasets["train"], job.datasets["weather"]
    assert (job.np, train.uri, train.options) == (4, "20240102", {"sep": "1"})
    assert train.where_args == {"x": 4}
    assert (weather.query, weather.tables["w"].uri) == ("1", "1_0")
    assert job.datasets["b"] == Source.csv("20240102", header="false")
    assert job.model_uri == submissions[0].option("--name") == "20240102"
    assert submissions[0].conf == {"spark.a": "0070_0", "spark.b": "True"}
    assert submissions[0].environment["DAY"] == "20240102"


@pytest.mark.parametrize("natively", [False, True])
def test_what_a_mapped_task_got_from_another_is_no_template(natively: bool) -> None:
    text = "{{ params.secret }}"
    given: dict[str, Any] = {
        "entrypoint_args": [text],
        "train_data": Source.parquet(text).to_dict(),
        "datasets": {"weather": Source.parquet(text).to_dict()},
        "conf": {"spark.a": text},
    }
    with DAG("flights", render_template_as_native_obj=natively) as dag:
        upstream = BaseOperator(task_id="upstream")
        mapped = HorovodTrainOperator.partial(
            task_id="train", entrypoint="train.py", np=1, model_uri="/m", name="train"
        ).expand_kwargs(upstream.output)
    task = mapped.unmap(given)
    context: Any = {"params": {"secret": "found"}}
    resolved = {id(value) for value in given.values()}
    task._do_render_template_fields(
        task, task.template_fields, context, dag.get_template_env(), seen_oids=resolved
    )
    assert {name: getattr(task, name) for name in given} == given


def test_dates_are_bound_as_their_text() -> None:
    source = Source.parquet("/lake", where="ds < :day", where_args={"day": "{{ logical_date.date() }}"})
    with fake_spark_submit() as submissions:
        run_task(
            native(train_data=source),
            logical_date=datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        )
    assert submissions[0].job.datasets["train"].where_args == {"day": "2024-01-02"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_uri": "{{ none }}"}, r"model_uri must be a URI or a path, found None"),
        (
            {"model_uri": "{{ [1] }}"},
            r"model_uri must be a string, found \[1\]; a template of a DAG with render",
        ),
        ({"np": "{{ none }}"}, r"np must be an integer, found None"),
        ({"entrypoint": "{{ none }}"}, r"entrypoint must be 'package.module:function' or .* found None"),
        ({"entrypoint": "{{ 1 }}"}, r"entrypoint must be 'package.module:function' or .* found 1"),
        ({"prepare": "{{ 1 }}"}, r"prepare must have the form 'package.module:function', found 1"),
        ({"train_data": {"kind": "csv", "uri": True}}, r"train_data uri must be a string, found True"),
        ({"name": "{{ [1] }}"}, r"name must be a string, found \[1\]"),
    ],
)
def test_native_values_that_cannot_be_text_are_named(arguments: dict[str, Any], message: str) -> None:
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException, match=message):
        run_task(native(**arguments))
    assert submissions == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"entrypoint_kwargs": "{{ {'epochs': 1} }}"},
            r"entrypoint_kwargs must be a mapping, found \"\{'epochs",
        ),
        ({"prepare_kwargs": [1]}, r"prepare_kwargs must be a mapping, found \[1\]"),
        (
            {"datasets": "train"},
            r"datasets must be a mapping, found 'train'; a template renders to text unless",
        ),
        ({"entrypoint_args": "--epochs 3"}, r"entrypoint_args must be a list of strings, found '--epochs 3'"),
        ({"entrypoint_args": ["a", None]}, r"entrypoint_args\[1\] must be a string, found None"),
    ],
)
def test_arguments_of_another_shape_are_named(arguments: dict[str, Any], message: str) -> None:
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException, match=message):
        run_task(operator(**arguments))
    assert submissions == []


def test_prepare_is_no_callable() -> None:
    message = f"prepare must be 'package.module:function', found the callable {__name__}:main: it is imported"
    with pytest.raises(TypeError, match=message):
        operator(prepare=main)


LOCK = threading.Lock()


def holds_lock() -> None:
    with LOCK:
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"np": "four"}, r"np must be an integer, found 'four'"),
        ({"np": 1.5}, r"np must be an integer, found 1.5"),
        ({"model_uri": " "}, r"model_uri must be a URI or a path, found ' '"),
        (
            {"train_data": "s3://lake"},
            r"train_data must be a Source, such as Source.parquet\(uri\).*'s3://lake'",
        ),
        ({"train_data": {"kind": "dbase", "uri": "x"}}, r"train_data: source kind 'dbase' is not known"),
        (
            {"datasets": {"a": {"kind": "csv", "url": "x"}}},
            r"datasets\['a'\]: Source has no url; expected kind",
        ),
        (
            {"train_data": Source.parquet("/a"), "datasets": {"train": Source.parquet("/b")}},
            r"train_data and datasets\['train'\] are both given",
        ),
        ({"entrypoint_kwargs": {"when": object()}}, r"entrypoint_kwargs\['when'\] must be JSON: <object"),
        ({"entrypoint": "no colon"}, r"entrypoint 'no colon' is neither 'package.module:function' nor"),
        (
            {"entrypoint": "flno.such:main"},
            r"'flno.such:main' does not import: no module 'flno.such' on sys.path",
        ),
        (
            {"entrypoint": "json:no_such"},
            r"'json:no_such' does not exist: .*json/__init__.py has no 'no_such'",
        ),
        ({"prepare": "flno.such:join"}, r"prepare 'flno.such:join' does not import"),
        ({"prepare": "join"}, r"prepare must have the form 'package.module:function', found 'join'"),
        ({"entrypoint": "/no/train.py"}, r"entry point '/no/train.py' does not exist on this machine"),
        ({"entrypoint": holds_lock}, r"holds_lock cannot be pickled because of global variable 'LOCK'"),
        ({"entrypoint_args": ["--x"]}, r"entrypoint_args are the command line of a script"),
        ({"cpus_per_process": 0}, r"cpus_per_process must be at least 1, found 0"),
        ({"gpus_per_process": -1}, r"gpus_per_process must be at least 0, found -1"),
        ({"conn_id": "typo"}, r"there is no connection 'typo'"),
    ],
)
def test_bad_input_fails_without_retry_before_submission(arguments: dict[str, Any], message: str) -> None:
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException, match=message):
        run_task(operator(**arguments))
    assert submissions == []


def test_module_that_is_not_here_may_be_on_the_cluster() -> None:
    def submit(arguments: dict[str, Any], connection: Connection | None) -> TaskRun:
        with fake_spark_submit(connection=connection):
            return run_task(operator(entrypoint="flno.such:main", **arguments))

    assert submit({}, STANDALONE)
    assert submit({"py_files": "/mine.zip"}, None)
    assert submit({"env_vars": {"PYSPARK_PYTHON": "/opt/other/python"}}, None)


@pytest.mark.parametrize("option", ["application", "application_args", "java_class"])
def test_application_is_not_the_authors(option: str) -> None:
    with pytest.raises(TypeError, match=f"HorovodTrainOperator takes no {option}: it submits an application"):
        operator(**{option: "x"})


def test_typos_are_refused() -> None:
    with pytest.raises(TypeError, match="Invalid arguments were passed to HorovodTrainOperator"):
        operator(entrypoint_kwarg={})


def test_errors_of_ours_do_not_leave_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow decides about retries by its own exceptions."""
    assert not issubclass(HydrogenError, AirflowException)
    with fake_spark_submit(), pytest.raises(AirflowFailException) as caught:
        run_task(operator(np="x"))
    assert caught.value.__suppress_context__
