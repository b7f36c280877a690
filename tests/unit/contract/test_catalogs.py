from __future__ import annotations

import pytest

from airflow_hydrogen.contract import catalogs
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.stores import S3Access


def test_secrets_of_a_catalog_are_masked_wherever_they_stand() -> None:
    properties = {
        "uri": "postgresql://me:geheim@db/lake",
        "credential": "id:word",
        "s3.secret-access-key": "",
        "warehouse": "s3://lake",
    }
    text = "no postgresql://me:geheim@db/lake, and id:word is refused at s3://lake"
    assert catalogs.masked(text, properties) == "no postgresql://***@db/lake, and *** is refused at s3://lake"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("credential", "id:geheim"),
        ("header.Authorization", "geheim"),
        ("header.X-Api-Key", "geheim"),
        ("uri", "postgresql://:geheim@db/lake"),
        ("uri", "postgresql+psycopg2://me:geheim/er@db/lake"),
        ("uri", "postgresql://me:geheim@er@db/lake"),
        ("uri", "postgresql:///lake?host=db&user=me&password=geheim&sslmode=require"),
        ("uri", "https://catalog/v1?access_token=geheim"),
    ],
)
def test_a_secret_is_refused_in_a_dag_and_shown_nowhere(name: str, value: str) -> None:
    assert "geheim" not in catalogs.masked(f"cannot open {value}", {name: value})
    assert "geheim" not in catalogs.masked("wrong: 'geheim'", {"credential": "id:geheim"})
    with pytest.raises(InvalidJobError, match=f"has '{name}' with a secret in it") as caught:
        Sink.iceberg("db.t", catalog={"type": "rest", name: value})
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://catalog:8181",
        "http://catalog:8181/ws@1",
        "thrift://a:9083,thrift://b:9083",
        "sqlite:////a/b:c@d",
    ],
)
def test_an_address_is_no_secret(uri: str) -> None:
    assert (
        Sink.iceberg("db.t", catalog={"type": "rest", "uri": uri, "scope": "catalog"}).catalog["uri"] == uri
    )


def test_a_catalog_that_says_nothing_of_s3_gets_what_the_job_has() -> None:
    job = S3Access(conn_id="lake", access_key="A", secret_key="B", endpoint_url="http://store:7070")
    assert catalogs.opening_s3({"type": "sql"}, job) == {
        "type": "sql",
        "s3.endpoint": "http://store:7070",
        "s3.region": "us-east-1",
        "s3.access-key-id": "A",
        "s3.secret-access-key": "B",
    }
    own = {"type": "rest", "s3.endpoint": "http://other"}
    assert catalogs.opening_s3(own, job) == own
    assert catalogs.opening_s3({"type": "sql"}, None) == {"type": "sql"}
    temporary = S3Access(conn_id="x", access_key="A", secret_key="B", session_token="C", region="eu-west-1")
    assert catalogs.opening_s3({}, temporary) == {
        "s3.region": "eu-west-1",
        "s3.access-key-id": "A",
        "s3.secret-access-key": "B",
        "s3.session-token": "C",
    }
    virtual = S3Access(conn_id="x", endpoint_url="https://store", virtual_hosts=True)
    assert catalogs.opening_s3({}, virtual)["s3.force-virtual-addressing"] == "true"


def test_a_sink_has_a_catalog_and_survives_its_json() -> None:
    sinks = [
        Sink.iceberg("db.t", catalog="lake", partition={"ds": "x"}, mode="append", work_uri="/work"),
        Sink.iceberg("db.t", catalog={"uri": "http://catalog:8181"}),
    ]
    assert [Sink.from_dict(sink.to_dict()) for sink in sinks] == sinks
    assert [str(sink) for sink in sinks] == ["iceberg lake: db.t (ds=x)", "iceberg db.t"]
    assert "catalog" not in sinks[0].to_dict()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"table_name": "db.t"}, "an iceberg sink needs a catalog"),
        ({"table_name": "db.t", "catalog": {"token": "x"}}, "an iceberg sink has 'token' with a secret"),
        (
            {"table_name": "db.t", "conn_id": "lake", "mode": "merge", "keys": ["id"]},
            "mode of a iceberg sink must be one of 'replace', 'append', found 'merge'",
        ),
    ],
)
def test_sinks_that_cannot_work(document: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidJobError, match=message):
        Sink.from_dict({"kind": "iceberg", **document})
