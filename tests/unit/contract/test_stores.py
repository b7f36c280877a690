from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import Entrypoint, InferenceJob, Run, Sink, Source, TrainJob, dumps, loads
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.contract.streams import StreamOptions

KEYS = S3Access(conn_id="lake", access_key="AKIA", secret_key="hush", endpoint_url="http://store:7070")


def job(**arguments: object) -> TrainJob:
    given = {"entrypoint": Entrypoint.parse("m:f"), "np": 2, "model_uri": "s3://models/m", "report_uri": "/r"}
    return TrainJob(**{**given, **arguments})


def test_spark_is_told_endpoint_and_keys():
    assert KEYS.spark_settings() == {
        "spark.hadoop.fs.s3a.endpoint": "http://store:7070",
        "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.hadoop.fs.s3a.access.key": "AKIA",
        "spark.hadoop.fs.s3a.secret.key": "hush",
        "spark.hadoop.fs.s3a.aws.credentials.provider": (
            "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider"
        ),
    }


def test_temporary_keys_have_their_token():
    settings = S3Access(
        conn_id="lake", access_key="AKIA", secret_key="hush", session_token="t", region="eu-west-1"
    ).spark_settings()
    assert settings == {
        "spark.hadoop.fs.s3a.endpoint.region": "eu-west-1",
        "spark.hadoop.fs.s3a.access.key": "AKIA",
        "spark.hadoop.fs.s3a.secret.key": "hush",
        "spark.hadoop.fs.s3a.session.token": "t",
        "spark.hadoop.fs.s3a.aws.credentials.provider": (
            "org.apache.hadoop.fs.s3a.TemporaryAWSCredentialsProvider"
        ),
    }


def test_an_environment_gets_the_keys_and_loses_what_leads_elsewhere():
    environ = {"AWS_SESSION_TOKEN": "old", "AWS_ENDPOINT_URL_S3": "http://other", "HOME": "/h"}
    KEYS.set_variables(environ)
    assert environ == {
        "HOME": "/h",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_ENDPOINT_URL": "http://store:7070",
        "AWS_ENDPOINT_URL_S3": "http://store:7070",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    S3Access(conn_id="amazon", access_key="A", secret_key="B", session_token="C").set_variables(environ)
    assert "AWS_ENDPOINT_URL" not in environ and environ["AWS_SESSION_TOKEN"] == "C"


def test_an_environment_without_keys_in_the_connection_keeps_its_own():
    environ = {"AWS_ACCESS_KEY_ID": "own", "AWS_SESSION_TOKEN": "own"}
    S3Access(conn_id="lake", endpoint_url="https://store").set_variables(environ)
    assert (environ["AWS_ACCESS_KEY_ID"], environ["AWS_SESSION_TOKEN"]) == ("own", "own")


def test_keys_travel_with_a_job_and_are_neither_shown_nor_hashed():
    plain = job()
    opened = job(s3=KEYS)
    assert loads(dumps(opened)) == opened
    assert opened.fingerprint() == plain.fingerprint()
    assert "hush" not in repr(opened) + repr(KEYS) and "AKIA" not in repr(KEYS)


def test_an_access_with_a_field_too_many_is_refused():
    with pytest.raises(InvalidJobError, match="S3Access has no role_arn"):
        S3Access.from_dict({"conn_id": "lake", "role_arn": "x"})


def test_the_buckets_that_a_job_names():
    training = job(datasets={"train": Source.parquet("s3a://lake/t"), "more": Source.orc("/local")})
    assert training.buckets == {"models": "s3://models/m", "lake": "s3a://lake/t"}
    scoring = InferenceJob(
        model_uri="/m",
        source=Source.files_stream("s3://in/x", format="json", schema="a INT"),
        sink=Sink.parquet("s3://out/x"),
        report_uri="/r",
        run=Run(dag_id="d", task_id="t", run_id="r"),
        on_bad_row="quarantine",
        stream=StreamOptions(trigger="available_now", checkpoint_uri="s3n://position/c"),
    )
    assert sorted(scoring.buckets) == ["in", "out", "position"]
