"""The files that cross between Airflow and Spark, byte for byte: a change here is a change of the contract.

After a deliberate change raise CONTRACT_VERSION (or the model's FORMAT_VERSION) and write the files anew:
`GOLDEN=write pytest tests/contract/test_golden.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.jobs import Entrypoint, InferenceJob, Run, Sink, Source, TrainJob, days
from airflow_hydrogen.contract.publications import PublishJob, PublishReport
from airflow_hydrogen.contract.reports import Failure, InferenceReport, TrainReport
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.contract.streams import StreamOptions
from airflow_hydrogen.runtime.models.manifest import FileEntry, Manifest

GOLDEN = Path(__file__).parent / "golden"
RUN = Run(dag_id="flights_train", task_id="train", run_id="manual__2013", map_index=-1, clear_number=0)
VERSIONS = {"python": "3.11.7", "pyspark": "4.2.0"}

JOBS = {
    "train_job": TrainJob(
        entrypoint=Entrypoint.parse("flights.train:main"),
        entrypoint_kwargs={"epochs": 3},
        np=2,
        datasets={
            "train": Source.sql(
                "select * from f join w using (origin) where w.temp > :temp",
                query_args={"temp": 32.0},
                f=Source.parquet("/lake/flights", where="ds < :day", where_args={"day": "2013-07-01"}),
                w=Source.csv("/lake/weather", sep=";"),
            )
        },
        prepare="flights.features:prepare",
        prepare_kwargs={"lake": "/lake"},
        model_uri="/models/flight_delay",
        report_uri="/tmp/report.json",
        run=RUN,
        code={"entrypoint": "ab" * 32, "prepare": "cd" * 32},
        gang=GangOptions(max_restarts=2, min_np=1, gpus_per_process=1, port_range="40000-40100"),
    ),
    "train_job_callable": TrainJob(
        entrypoint=Entrypoint(kind="callable", value="AAAA", name="main", python="3.11"),
        np=-1,
        model_uri="/models/m",
        report_uri="/tmp/report.json",
    ),
    "train_job_script": TrainJob(
        entrypoint=Entrypoint.parse("train.py"),
        entrypoint_args=["--epochs", "3"],
        np=0,
        model_uri="/models/m",
        report_uri="/tmp/report.json",
        keep_checkpoints=True,
        gang=GangOptions(fork=["tensorflow", "my_package.layers"]),
    ),
    "inference_job": InferenceJob(
        model_uri="/models/flight_delay",
        source=Source.parquet("/lake/flights/ds=2013-07-01"),
        sink=Sink.parquet("/scores", partition={"ds": "2013-07-01"}),
        report_uri="/tmp/report.json",
        keep_columns=["flight"],
        output_columns={"prediction": "delay"},
        run=RUN,
    ),
    "inference_job_quarantine": InferenceJob(
        model_uri="/models/flight_delay",
        source=Source.parquet("/lake/flights/ds=2013-07-01"),
        sink=Sink.parquet("/scores", partition={"ds": "2013-07-01"}),
        report_uri="/tmp/report.json",
        on_bad_row="quarantine",
        quarantine=Sink.parquet("/bad"),
        max_bad_rows=0.01,
    ),
    "inference_job_range": InferenceJob(
        model_uri="/models/flight_delay",
        source=Source.parquet("/lake/flights", where="ds < '2013-07-03'"),
        sink=Sink.parquet("/scores", partition_by=["ds"], partitions=days("2013-07-01", "2013-07-03")),
        report_uri="/tmp/report.json",
        on_bad_row="quarantine",
    ),
    "inference_job_gpus": InferenceJob(
        model_uri="/models/flight_delay",
        source=Source.parquet("/lake/flights/ds=2013-07-01"),
        sink=Sink.parquet("/scores"),
        report_uri="/tmp/report.json",
        gpus_per_task=0.25,
    ),
    "inference_job_stream": InferenceJob(
        model_uri="/models/flight_delay",
        source=Source.kafka("events", "flights", schema="temp DOUBLE", startingOffsets="latest"),
        sink=Sink.parquet("/scores"),
        report_uri="/tmp/report.json",
        on_bad_row="quarantine",
        stream=StreamOptions(
            trigger="30 seconds",
            checkpoint_uri="/checkpoints/flights",
            max_rows_per_trigger=100000,
            stop_after_s=3600.0,
        ),
        access={"events": {"kafka.bootstrap.servers": "broker:9092"}},
        s3=S3Access(conn_id="lake", access_key="AKIA", secret_key="hush", endpoint_url="http://store:7070"),
    ),
}

REPORTS = {
    "train_report": TrainReport(
        model_uri="/models/flight_delay",
        model_version="ef" * 32,
        metrics={"epoch": 2, "loss": 0.5},
        epochs=3,
        np=2,
        rows=1000,
        seconds={"total": 12.5},
        rows_per_second=2000.0,
        resumed_from_epoch=1,
        restarts=("rank 1 on b failed: its process was killed by signal 9 (SIGKILL)",),
        versions=VERSIONS,
    ),
    "train_report_failure": TrainReport(
        failure=Failure(error_type="RankFailedError", message="rank 1 failed", retryable=True)
    ),
    "inference_report": InferenceReport(
        output_uri="/scores/ds=2013-07-01",
        model_uri="/models/flight_delay",
        model_version="ef" * 32,
        model_alias="/models/production.alias",
        batch_rows=4096,
        rows=994,
        rows_in=1000,
        rows_quarantined=6,
        quarantine_uri="/scores_quarantine/ds=2013-07-01",
        bad_rows={"column 'temp': null": 6},
        columns={"flight": "int", "delay": "float"},
        seconds={"total": 9.0},
        rows_per_second=110.4,
        versions=VERSIONS,
    ),
    "inference_report_range": InferenceReport(
        output_uri="/scores",
        model_uri="/models/flight_delay",
        model_version="ef" * 32,
        rows=1000,
        rows_in=1000,
        partitions={"ds=2013-07-01": 1000, "ds=2013-07-02": 0},
        columns={"flight": "int", "delay": "float"},
        seconds={"total": 9.0},
        rows_per_second=111.1,
        versions=VERSIONS,
    ),
    "inference_report_stream": InferenceReport(
        output_uri="/scores",
        model_uri="/models/flight_delay",
        model_version="ef" * 32,
        rows=1000,
        rows_in=1000,
        columns={"temp": "double", "delay": "float", "model_version": "string"},
        seconds={"total": 9.0},
        rows_per_second=111.1,
        source={"source": "kafka flights at events", "offsets": {"flights": {"0": 600, "1": 400}}},
        stream={
            "batches": 2,
            "last_batch": 7,
            "stopped": "drained",
            "lag": 0,
            "models": {"ef" * 32: 1000},
        },
        versions=VERSIONS,
    ),
}

PUBLICATIONS = {
    "publish_job": PublishJob(
        model="/exports/late.onnx",
        model_uri="s3://models/late",
        columns={"x": ["temp", {"name": "pixels", "width": 3}], "carrier": "carrier"},
        outputs=["late"],
        example={"temp": 32.0, "pixels": [0.0, 0.5, 1.0], "carrier": "UA"},
        alias="s3://models/production.alias",
        metrics={"auc": 0.91},
        run=RUN,
        report_uri="/tmp/report.json",
        s3=S3Access(conn_id="lake", access_key="AKIA", secret_key="hush", endpoint_url="http://store:7070"),
    ),
    "publish_report": PublishReport(
        model_uri="s3://models/late",
        model_version="ef" * 32,
        alias="s3://models/production.alias",
        framework="onnx",
        inputs={"x": {"columns": ["temp", "pixels"], "dtype": "float32", "shape": [4]}},
        outputs={"late": {"dtype": "float32", "shape": [1]}},
        metrics={"auc": 0.91},
        seconds={"total": 2.5},
    ),
    "publish_report_failure": PublishReport(
        failure=Failure(error_type="UnpublishableModelError", message="no", retryable=False)
    ),
}

MANIFEST = Manifest(
    framework="keras",
    entry="model.keras",
    signature=Signature(
        inputs=(
            InputSpec("x", (ColumnSpec("a", "int64"), ColumnSpec("pixels", "float32", 3)), "float32", (4,)),
            InputSpec("carrier", (ColumnSpec("carrier", "string"),), "string", (1,)),
        ),
        outputs=(OutputSpec("prediction", "float32", (1,)),),
    ),
    files=(FileEntry("model.keras", "ab" * 32, 1234),),
    modules=("flights.layers",),
    metrics={"loss": 0.5},
    entrypoint="flights.train:main",
    np=2,
    job="cd" * 32,
    data={"train": {"rows": 1000, "fingerprint": "ef" * 32}},
    versions=VERSIONS,
    run={"dag_id": "flights_train"},
    created="2013-07-01T00:00:00+00:00",
)


def _golden(name: str, text: str) -> str:
    path = GOLDEN / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text + "\n")
    return path.read_text().rstrip("\n")


@pytest.mark.parametrize("name", JOBS)
def test_job_files(name):
    text = jobs.dumps(JOBS[name])
    assert text == _golden(name, text)
    assert jobs.loads(text) == JOBS[name]


@pytest.mark.parametrize("name", REPORTS)
def test_report_files(name):
    text = reports.dumps(REPORTS[name])
    assert text == _golden(name, text)
    assert reports.loads(text) == REPORTS[name]


@pytest.mark.parametrize("name", PUBLICATIONS)
def test_files_of_publications(name):
    text = PUBLICATIONS[name].dumps()
    assert text == _golden(name, text)
    assert type(PUBLICATIONS[name]).loads(text) == PUBLICATIONS[name]


def test_the_manifest():
    text = MANIFEST.dumps()
    assert text == _golden("manifest", text)
    assert Manifest.loads("/models/m", text) == MANIFEST


def test_every_golden_file_belongs_to_a_test():
    assert {path.stem for path in GOLDEN.glob("*.json")} == {*JOBS, *REPORTS, *PUBLICATIONS, "manifest"}
