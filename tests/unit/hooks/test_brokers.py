from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.sdk import Connection

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.hooks.brokers import reader_options
from airflow_hydrogen.hooks.databases import access_of, connections_of


def connection(conn_type: str = "kafka", **extra: object) -> Connection:
    return Connection(conn_id="events", conn_type=conn_type, extra=json.dumps(extra))


def test_servers_alone():
    given = connection(**{"bootstrap.servers": "a:1,b:2", "group.id": "mine", "auto.offset.reset": "latest"})
    assert reader_options(given) == {"kafka.bootstrap.servers": "a:1,b:2"}


@pytest.mark.parametrize(
    ("mechanism", "module"),
    [("PLAIN", "plain.PlainLoginModule"), ("scram-sha-512", "scram.ScramLoginModule")],
)
def test_a_login_by_password(mechanism, module):
    extra = {
        "bootstrap.servers": "a:1",
        "security.protocol": "sasl_ssl",
        "sasl.mechanisms": mechanism,
        "sasl.username": "me",
        "sasl.password": 'ge"h\\eim',
    }
    assert reader_options(connection(**extra)) == {
        "kafka.bootstrap.servers": "a:1",
        "kafka.security.protocol": "SASL_SSL",
        "kafka.sasl.mechanism": mechanism.upper(),
        "kafka.sasl.jaas.config": (
            f'org.apache.kafka.common.security.{module} required username="me" password="ge\\"h\\\\eim";'
        ),
    }


def test_certificates_are_read_where_airflow_is(tmp_path: Path):
    (tmp_path / "ca.pem").write_text("THE CA")
    extra = {
        "bootstrap.servers": "a:1",
        "security.protocol": "ssl",
        "ssl.ca.location": str(tmp_path / "ca.pem"),
        "ssl.certificate.pem": "THE CERTIFICATE",
        "ssl.key.pem": "THE KEY",
        "ssl.key.password": "geheim",
        "ssl.endpoint.identification.algorithm": "none",
    }
    assert reader_options(connection(**extra)) == {
        "kafka.bootstrap.servers": "a:1",
        "kafka.security.protocol": "SSL",
        "kafka.ssl.truststore.type": "PEM",
        "kafka.ssl.truststore.certificates": "THE CA",
        "kafka.ssl.keystore.type": "PEM",
        "kafka.ssl.keystore.certificate.chain": "THE CERTIFICATE",
        "kafka.ssl.keystore.key": "THE KEY",
        "kafka.ssl.key.password": "geheim",
        "kafka.ssl.endpoint.identification.algorithm": "",
    }


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({}, "has no bootstrap.servers"),
        ({"sasl.username": "me"}, "sasl.mechanism is ''; expected one of PLAIN"),
        ({"sasl.mechanism": "GSSAPI"}, "sasl.mechanism is 'GSSAPI'"),
        ({"sasl.mechanism": "PLAIN", "sasl.username": "me"}, "needs sasl.username and sasl.password"),
        ({"enable.ssl.certificate.verification": "false"}, "Spark's client has no setting for"),
        ({"ssl.ca.location": "/no/such/file"}, "ssl.ca.location '/no/such/file' cannot be read"),
    ],
)
def test_connections_that_cannot_be_used(extra, match):
    servers = {"bootstrap.servers": "a:1"} if extra else {}
    with pytest.raises(InvalidJobError, match=match):
        reader_options(connection(**servers, **extra))


def test_a_topic_is_asked_for_at_a_broker_and_a_table_at_a_database():
    source = Source.kafka("events", "t", schema="a INT")
    given = connections_of([source], lambda _name: connection(**{"bootstrap.servers": "a:1"}))
    assert access_of(given) == {"events": {"kafka.bootstrap.servers": "a:1"}}
    with pytest.raises(InvalidJobError, match="of type 'postgres'; expected kafka"):
        connections_of([source], lambda _name: connection("postgres"))
    with pytest.raises(InvalidJobError, match="of type 'kafka'; expected one of postgres"):
        connections_of([Source.jdbc("events", table="t")], lambda _name: connection())
