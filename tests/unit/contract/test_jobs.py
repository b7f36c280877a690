from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.errors import ContractVersionError, InvalidJobError, KwargsError
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.jobs import Entrypoint, InferenceJob, Run, Sink, Source, TrainJob
from airflow_hydrogen.contract.values import require_json

RUN = Run(dag_id="d", task_id="t", run_id="r", map_index=2, clear_number=1)


def train_job(**changes):
    fields = {
        "entrypoint": Entrypoint.parse("flights.train:main"),
        "np": 2,
        "model_uri": "/models/m",
        "report_uri": "/tmp/report.json",
        "run": RUN,
    }
    return TrainJob(**{**fields, **changes})


def inference_job(**changes):
    fields = {
        "model_uri": "/models/m",
        "source": Source.parquet("/lake"),
        "sink": Sink.parquet("/scores", partition={"ds": "2013-01-01"}),
        "report_uri": "/tmp/report.json",
    }
    return InferenceJob(**{**fields, **changes})


@pytest.mark.parametrize(
    "job",
    [
        train_job(),
        train_job(
            datasets={
                "train": Source.sql(
                    "select * from a join b using (k)", a=Source.csv("/a", sep=";"), b=Source.json("/b")
                ),
                "validation": Source.parquet("/v", where="x > :x and ok", where_args={"x": 1.5}),
            },
            prepare="flights.features:prepare",
            prepare_kwargs={"lake": "/lake"},
            entrypoint_kwargs={"epochs": 3, "layers": [1, 2]},
        ),
        train_job(entrypoint=Entrypoint.parse("train.py"), entrypoint_args=["--epochs", "3"]),
        train_job(entrypoint=Entrypoint.pickled(b"bytes", "main")),
        inference_job(),
        inference_job(run=RUN, keep_columns=["a"], output_columns={"prediction": "p"}, predictor="a.b:c"),
    ],
)
def test_a_job_survives_its_file(job):
    assert jobs.loads(jobs.dumps(job)) == job


def test_folders_of_a_partition_keep_their_order():
    partition = {"year": "2013", "month": "01", "day": "02"}
    job = jobs.loads(jobs.dumps(inference_job(sink=Sink.parquet("/scores", partition=partition))))
    assert list(job.sink.partition) == ["year", "month", "day"]


def test_the_fingerprint_is_the_same_for_every_try_and_another_for_another_job():
    first = train_job()
    assert (
        first.fingerprint()
        == train_job(
            report_uri="/elsewhere", report_nonce="abc", gang=GangOptions(max_restarts=7)
        ).fingerprint()
    )
    assert first.fingerprint() != train_job(np=3).fingerprint()
    assert first.fingerprint() != train_job(entrypoint_kwargs={"epochs": 4}).fingerprint()


def test_code_decides_the_fingerprint_by_its_hash_alone():
    job = train_job(entrypoint=Entrypoint.pickled(b"bytes", "main"), code={"entrypoint": "ab"})
    again = train_job(entrypoint=Entrypoint.pickled(b"the same code", "main"), code={"entrypoint": "ab"})
    assert job.fingerprint() == again.fingerprint()
    changed = train_job(entrypoint=Entrypoint.pickled(b"bytes", "main"), code={"entrypoint": "cd"})
    assert job.fingerprint() != changed.fingerprint()
    assert job.fingerprint() != train_job(entrypoint=Entrypoint.pickled(b"bytes", "main")).fingerprint()


@pytest.mark.parametrize(
    ("changes", "description"),
    [
        ({}, ""),
        ({"code": {"entrypoint": "cd"}}, "code of entrypoint has changed"),
        (
            {"code": {"entrypoint": "ab", "prepare": "x"}, "prepare": "a:b"},
            "code of prepare and prepare have changed",
        ),
        (
            {"np": 3, "entrypoint_kwargs": {"a": 1}, "code": {}},
            "code of entrypoint, entrypoint_kwargs and np have changed",
        ),
        ({"datasets": {"train": Source.parquet("/other")}}, "datasets has changed"),
        ({"gang": GangOptions(max_restarts=7), "report_uri": "/elsewhere", "run": None}, ""),
    ],
)
def test_what_changed_in_a_job_is_said(changes, description):
    first = train_job(code={"entrypoint": "ab"})
    changed = dataclasses.replace(first, **changes)
    assert jobs.describe_changes(first.parts(), changed.parts()) == description
    assert (first.fingerprint() == changed.fingerprint()) == (description == "")
    assert jobs.describe_changes({}, changed.parts()) == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": object()}, r"entrypoint_kwargs\['a'\] must be JSON: <object"),
        (
            {"a": {"b": [1, {2}]}},
            r"entrypoint_kwargs\['a'\]\['b'\]\[1\] must be JSON: \{2\} is a builtins.set",
        ),
        ({1: 2}, "key 1 is a int, not a string"),
        ({"a": float("nan")}, "nan is not a JSON number"),
    ],
)
def test_kwargs_that_are_not_json_name_the_place(value, message):
    with pytest.raises(KwargsError, match=message):
        train_job(entrypoint_kwargs=value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=20,
    )
)
def test_whatever_is_json_is_accepted(value):
    require_json("x", value)
    json.dumps(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train_job(np="2"), "np must be an integer, found '2'"),
        (lambda: train_job(exports=("onnx", "tflite")), r"exports names formats, one or more of 'onnx'"),
        (lambda: train_job(exports="onnx"), r"as in exports=\('onnx',\); found 'onnx'"),
        (lambda: train_job(exports=None), r"as in exports=\('onnx',\); found None"),
        (lambda: train_job(exports=[["onnx"]]), r"as in exports=\('onnx',\); found \[\['onnx'\]\]"),
        (lambda: train_job(np=True), "np must be an integer, found True"),
        (lambda: train_job(model_uri=" "), "model_uri must be a URI or a path"),
        (lambda: train_job(prepare="no colon"), "prepare must have the form 'package.module:function'"),
        (lambda: train_job(entrypoint_args=["x"]), "entrypoint_args are the command line of a script"),
        (lambda: train_job(gang=GangOptions(min_np=3)), "min_np must be at most np=2, found 3"),
        (lambda: Entrypoint.parse("train"), "entrypoint 'train' is neither 'package.module:function' nor"),
        (lambda: Source.parquet(""), "a parquet source needs the URI"),
        (
            lambda: Source.parquet("/a", where_args={"x": 1}),
            "where_args are values of the names in where, which is not given",
        ),
        (
            lambda: Source.csv("/a", where="x = :x", where_args={":x": 1}),
            "where_args has the name ':x'; the name of :day is 'day'",
        ),
        (
            lambda: Source.json("/a", where="x = :x", where_args={"x": [1]}),
            r"where_args\['x'\] must be a string, a number, a boolean or None, found \[1\]",
        ),
        (
            lambda: Source.sql("select :x from t", query_args={"x": float("nan")}, t=Source.csv("/t")),
            r"query_args\['x'\] must be JSON: nan",
        ),
        (
            lambda: Source.from_dict({"kind": "csv", "uri": "/a", "where": "a", "where_args": "x"}),
            "where_args must be a mapping of names to values, found 'x'",
        ),
        (
            lambda: Source.from_dict({"kind": "parquet", "uri": "/a", "wher": "x"}),
            "Source has no wher; expected kind",
        ),
        (
            lambda: Sink.parquet("/a", partition={"ds": ""}),
            "sink partition 'ds' must be a string that is not empty",
        ),
        (
            lambda: train_job(model_uri="s3://bucket/production.alias"),
            "model_uri 's3://bucket/production.alias' is the name of an alias, and a model is published in a",
        ),
        (lambda: train_job(model_uri="s3://bucket/"), "model_uri 's3://bucket/' is a whole bucket"),
        (lambda: train_job(model_uri="file://lake/m"), "model_uri 'file://lake/m' is a file of host 'lake'"),
        (lambda: inference_job(model_uri="s3:bucket/m"), "model_uri 's3:bucket/m' can be read as a URI and"),
        (lambda: inference_job(sink=Sink.parquet("s3://bucket")), "sink 's3://bucket' is a whole bucket"),
        (lambda: inference_job(batch_rows=0), "batch_rows must be at least 1, found 0"),
        (lambda: inference_job(batch_rows="fast"), "batch_rows must be an integer or 'auto', found 'fast'"),
        (lambda: inference_job(batch_rows=True), "batch_rows must be an integer or 'auto', found True"),
        (
            lambda: jobs.loads('{"kind": "dance"}'),
            "job kind 'dance' is not known; expected one of train, inference",
        ),
        (lambda: inference_job(on_bad_row="skip"), "on_bad_row must be one of 'fail', 'drop', 'quarantine'"),
        (lambda: inference_job(max_bad_rows=3), "with on_bad_row='fail' the first one fails the task: set"),
        *(
            (
                lambda limit=limit: inference_job(on_bad_row="drop", max_bad_rows=limit),
                f"max_bad_rows must be a number of rows .*, found {limit!r}",
            )
            for limit in (-1, True, 0.0, 1.0, 5.0, float("nan"), "3")
        ),
        (
            lambda: inference_job(on_bad_row="drop", quarantine=Sink.parquet("/bad")),
            "quarantine says where bad rows go with on_bad_row='quarantine', found on_bad_row='drop'",
        ),
        (
            lambda: inference_job(
                on_bad_row="quarantine", quarantine=Sink.parquet("/bad", partition={"ds": "x"})
            ),
            "quarantine has partition {'ds': 'x'}, and is written in the sink's partition {'ds': '2013",
        ),
        *(
            (
                lambda sink=sink, bad=bad: inference_job(
                    sink=Sink.parquet(sink), on_bad_row="quarantine", quarantine=Sink.parquet(bad)
                ),
                "lie in each other",
            )
            for sink, bad in [
                ("/scores", "/scores/"),
                ("/scores", "/scores/bad"),
                ("/lake/scores", "/lake"),
                ("s3://lake/scores", "s3a://lake/scores/bad"),
            ]
        ),
        (
            lambda: inference_job(
                sink=Sink.parquet("s3://lake", partition={"ds": "1"}), on_bad_row="quarantine"
            ),
            "sink 's3://lake' is a whole bucket or filesystem, which has nothing beside it",
        ),
    ],
)
def test_arguments_that_cannot_work(make, message):
    with pytest.raises(InvalidJobError, match=message):
        make()


def test_a_job_of_another_version_is_refused():
    document = {**train_job().to_dict(), "contract_version": 99}
    with pytest.raises(ContractVersionError, match="contract version 99, this side speaks 3"):
        jobs.loads(json.dumps(document))


@pytest.mark.parametrize(
    "report",
    [
        reports.TrainReport(model_uri="/m", metrics={"loss": 0.5}, epochs=2, np=2, rows=10),
        reports.TrainReport(failure=reports.Failure(error_type="X", message="y", retryable=False)),
        reports.InferenceReport(output_uri="/s", rows=3),
    ],
)
def test_a_report_survives_its_file(report):
    assert reports.loads(reports.dumps(report)) == report


def test_a_failure_says_whether_to_run_again():
    assert reports.Failure.of(KwargsError("x", "y")).retryable is False
    assert reports.Failure.of(OSError("disk")).retryable is True


def test_the_nonce_travels_with_the_job_and_lies_beside_the_report() -> None:
    proven = train_job(report_nonce="abc")
    assert jobs.loads(jobs.dumps(proven)) == proven
    assert "report_nonce" not in train_job().to_dict()
    assert jobs.nonce_uri("s3://b/m.report-1.json") == "s3://b/.m.report-1.json.nonce"


@pytest.mark.parametrize(
    ("sink", "quarantine"),
    [
        (Sink.parquet("/scores"), "/scores_quarantine"),
        (Sink.parquet("s3a://lake/scores/", partition={"ds": "1"}), "s3a://lake/scores_quarantine"),
        (Sink.parquet("/lake/scores/ds=1/hour=2"), "/lake/scores_quarantine/ds=1/hour=2"),
    ],
)
def test_bad_rows_lie_beside_the_table_in_the_same_partition(sink: Sink, quarantine: str) -> None:
    found = inference_job(sink=sink, on_bad_row="quarantine").quarantine_sink
    assert (found.uri, found.partition) == (quarantine, sink.partition)


def test_bad_rows_of_a_run_that_merges_stay_when_another_one_does() -> None:
    def quarantine(run_id: str, clear_number: int = 0) -> Sink:
        run = Run(dag_id="d", task_id="t", run_id=run_id, clear_number=clear_number)
        sink = Sink.delta("/scores", mode="merge", keys=["id"], partition={"ds": "1"})
        return inference_job(sink=sink, on_bad_row="quarantine", run=run).quarantine_sink

    assert quarantine("one").folder != quarantine("two").folder
    assert quarantine("one").folder == quarantine("one", clear_number=1).folder
    assert str(quarantine("one").folder).startswith("/scores_quarantine/ds=1/hydrogen_run=")


def test_a_quarantine_has_the_partition_of_the_sink() -> None:
    sink = Sink.parquet("/scores", partition={"ds": "1"})
    for partition in ({}, {"ds": "1"}):
        bad = Sink.parquet("/scores-bad", partition=partition)
        job = inference_job(sink=sink, on_bad_row="quarantine", quarantine=bad, max_bad_rows=0)
        assert job.quarantine_sink == Sink.parquet("/scores-bad", partition={"ds": "1"})
        assert jobs.loads(jobs.dumps(job)) == job
