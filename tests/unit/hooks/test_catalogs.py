from __future__ import annotations

import json

import pytest
from airflow.sdk import Connection

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.hooks import catalogs, databases


def connection(extra: object = None, **fields: object) -> Connection:
    given = {"conn_type": "iceberg", **fields}
    return Connection(conn_id="lake", extra=json.dumps(extra or {}), **given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            connection(host="https://c/ws/v1", login="id", password="geheim", extra={"warehouse": "s3://w"}),
            {"uri": "https://c/ws/v1", "credential": "id:geheim", "warehouse": "s3://w"},
        ),
        (connection(host="https://c", password="geheim"), {"uri": "https://c", "credential": "geheim"}),
        (
            connection(extra={"type": "sql", "uri": "postgresql://me:geheim@db/lake", "echo": True, "n": 7}),
            {"type": "sql", "uri": "postgresql://me:geheim@db/lake", "echo": "true", "n": "7"},
        ),
        (connection(extra={"type": "glue", "name": "lake"}), {"type": "glue", "name": "lake"}),
    ],
)
def test_a_connection_becomes_properties_of_a_catalog(given: Connection, expected: dict[str, str]) -> None:
    assert catalogs.properties(given) == expected
    assert databases.access_of({"lake": given}) == {"lake": expected}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (connection(login="id"), "connection 'lake' cannot be used for Iceberg: it has no host"),
        (connection(host="https://c", extra={"s3": {}}), "s3 in its extra must be texts, numbers or"),
    ],
)
def test_connections_that_name_no_catalog(given: Connection, message: str) -> None:
    with pytest.raises(InvalidJobError, match=message):
        catalogs.properties(given)


def test_connections_have_the_type_of_what_names_them() -> None:
    source, sink = Source.iceberg("db.t", catalog="lake"), Sink.iceberg("db.s", catalog="lake")
    given = connection(host="https://c")
    assert databases.connections_of([source, sink], lambda _: given) == {"lake": given}
    with pytest.raises(InvalidJobError, match="of type 'postgres'; expected iceberg"):
        databases.connections_of([source], lambda _: connection(conn_type="postgres"))
    with pytest.raises(InvalidJobError, match="of type 'iceberg'; expected one of postgres"):
        databases.connections_of([Source.jdbc("lake", table="t")], lambda _: given)
