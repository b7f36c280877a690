from __future__ import annotations

import json

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import Connection

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.hooks.stores import client_options, require_no_other, s3_access


def connection(conn_type: str = "aws", extra: object = None, **fields: object) -> Connection:
    given = {"login": "AKIA", "password": "hush", **fields}
    return Connection(conn_id="lake", conn_type=conn_type, extra=json.dumps(extra or {}), **given)


def access(**fields: object) -> S3Access:
    return S3Access(conn_id="lake", **{"access_key": "AKIA", "secret_key": "hush", **fields})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (connection(), access()),
        (
            connection(
                extra={
                    "endpoint_url": "http://store:7070/",
                    "region_name": "eu-west-1",
                    "aws_session_token": "t",
                    "verify": True,
                    "config_kwargs": {"retries": {"mode": "standard"}},
                }
            ),
            access(endpoint_url="http://store:7070", region="eu-west-1", session_token="t"),
        ),
        (
            connection(
                login=None,
                password=None,
                extra={
                    "aws_access_key_id": "AKIA",
                    "aws_secret_access_key": "hush",
                    "endpoint_url": "https://all.example.com",
                    "service_config": {"s3": {"endpoint_url": "https://s3.example.com"}},
                    "config_kwargs": {"s3": {"addressing_style": "virtual"}},
                },
            ),
            access(endpoint_url="https://s3.example.com", virtual_hosts=True),
        ),
        (
            connection(login=None, password=None, extra={"endpoint_url": "https://s"}),
            S3Access(conn_id="lake", endpoint_url="https://s"),
        ),
        (
            Connection(conn_id="lake", uri="aws://AKIA:hush@/?endpoint_url=http%3A%2F%2Fs%3A1"),
            access(endpoint_url="http://s:1"),
        ),
    ],
)
def test_a_connection_says_what_opens_s3(given: Connection, expected: S3Access):
    assert s3_access("lake", lambda conn_id: given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (connection("s3"), "it is of type 's3', expected 'aws'"),
        (connection("postgres", host="db"), "it is of type 'postgres', expected 'aws'"),
        (connection(extra={"role_arn": "arn:x"}), "its extra has role_arn, which .* Take keys of the role"),
        (connection(extra={"session_kwargs": {"profile_name": "p"}}), "its extra has session_kwargs, which"),
        (connection(extra={"verify": False}), "its extra has verify, which"),
        (connection(extra={"verify": "/ca.pem"}), "its extra has verify, which"),
        (
            connection(extra={"config_kwargs": {"signature_version": "unsigned"}}),
            r"its extra has config_kwargs\['signature_version'\], which",
        ),
        (connection(host="store"), "it has a host, which says nothing: name the endpoint as endpoint_url"),
        (connection(password=None), "it has a login and no password"),
        (connection(login=None), "it has a password and no login"),
        (connection(login="AKIA\n"), "its login has a blank, the end of a line or"),
        (connection(password=" hush"), "its password has a blank, the end of a line or"),
        (connection(extra={"aws_session_token": "hush\n"}), "its aws_session_token has a blank, the end"),
        (connection(login="AKIA\u2019"), "its login has .* or a letter beyond ASCII in it"),
        (
            connection(login=None, password=None, extra={"aws_session_token": "t"}),
            "its extra has an aws_session_token, and it has no keys",
        ),
        (
            connection(extra={"endpoint_url": "store:7070"}),
            "endpoint_url in its extra must be 'http://host:port' or 'https://host', found 'store:7070'",
        ),
        (
            connection(extra={"endpoint_url": "http://me:hush@store"}),
            "endpoint_url in its extra must be .*, found 'store'",
        ),
        (connection(extra={"endpoint_url": "http://store/s3"}), "endpoint_url in its extra must be"),
        (
            connection(extra={"config_kwargs": {"s3": {"addressing_style": "dns"}}}),
            "must be one of 'auto', 'path', 'virtual', found 'dns'",
        ),
        (connection(extra={"config_kwargs": "x"}), "config_kwargs in its extra must be an object, found 'x'"),
    ],
)
def test_a_connection_that_cannot_be_used(given: Connection, message: str):
    with pytest.raises(InvalidJobError, match=message) as raised:
        s3_access("lake", lambda conn_id: given)
    assert str(raised.value).startswith("connection 'lake' cannot be used as aws_conn_id: ")
    assert "hush" not in str(raised.value)


def test_a_connection_that_is_not_there():
    def get_connection(conn_id: str) -> Connection:
        raise AirflowNotFoundException(conn_id)

    with pytest.raises(InvalidJobError, match="aws_conn_id names the connection 'lake', which is not there"):
        s3_access("lake", get_connection)
    with pytest.raises(InvalidJobError, match="aws_conn_id is empty"):
        s3_access(" ", get_connection)


def test_settings_of_the_task_may_not_say_otherwise():
    here = access(endpoint_url="http://store:7070")
    same = {"spark.hadoop.fs.s3a.path.style.access": "true", "spark.hadoop.fs.s3a.threads.max": "9"}
    require_no_other(here, same, same)
    other = {"spark.hadoop.fs.s3a.secret.key": "else", "spark.hadoop.fs.s3a.endpoint": "http://x"}
    with pytest.raises(
        InvalidJobError, match=r"conf has spark\.hadoop\.fs\.s3a\.endpoint, .*secret\.key"
    ) as told:
        require_no_other(here, other, other)
    assert "else" not in str(told.value)
    # A file's settings are for all jobs: this one's connection takes their place.
    require_no_other(here, {}, other)


def test_an_endpoint_of_spark_alone_is_told():
    settings = {"spark.hadoop.fs.s3a.endpoint": "http://minio:9000"}
    with pytest.raises(InvalidJobError, match="give it that one as endpoint_url"):
        require_no_other(access(), {}, settings)
    require_no_other(access(), {}, {"spark.hadoop.fs.s3a.endpoint": "s3.eu-west-1.amazonaws.com"})


def test_the_client_for_reports_is_told_the_same():
    assert client_options(access(endpoint_url="http://s:1", session_token="t")) == {
        "key": "AKIA",
        "secret": "hush",
        "token": "t",
        "endpoint_url": "http://s:1",
        "client_kwargs": {"region_name": "us-east-1"},
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
    assert client_options(S3Access(conn_id="lake")) == {}
