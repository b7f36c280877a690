"""From a connection to a cluster manager."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.kubernetes import KubernetesApi
from airflow_hydrogen.clusters.local import LocalMachine
from airflow_hydrogen.clusters.managers import endpoint_of, manager_of
from airflow_hydrogen.clusters.standalone import StandaloneMaster
from airflow_hydrogen.clusters.yarn import YarnResourceManager
from airflow_hydrogen.contract.errors import InvalidJobError


def connection(**fields: Any) -> Connection:
    extra = fields.pop("extra", None)
    made = Connection(conn_id="c", **{"conn_type": "spark", **fields})
    if extra is not None:
        import json

        made.extra = json.dumps(extra)
    return made


@pytest.mark.parametrize(
    ("fields", "master", "urls", "kind"),
    [
        ({"host": "spark://m", "port": 7077}, "spark://m:7077", ("http://m:8080",), StandaloneMaster),
        ({"host": "m", "port": 7077}, "spark://m:7077", ("http://m:8080",), StandaloneMaster),
        ({"host": "local[2]"}, "local[2]", (), LocalMachine),
        (
            {"host": "yarn", "extra": {"yarn_resourcemanager_webapp_address": "rm:8088"}},
            "yarn",
            ("http://rm:8088",),
            YarnResourceManager,
        ),
        (
            {"host": "k8s://https://api", "port": 6443},
            "k8s://https://api:6443",
            ("https://api:6443",),
            KubernetesApi,
        ),
    ],
)
def test_the_connection_says_which(
    fields: dict[str, Any], master: str, urls: tuple[str, ...], kind: type
) -> None:
    endpoint = endpoint_of("c", connection(**fields))
    assert (endpoint.master, endpoint.urls) == (master, urls)
    assert type(manager_of(endpoint)) is kind


def test_master_is_the_one_that_the_providers_hook_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook

    for uri in ("spark://m:7077", "spark://local%5B2%5D", "spark://spark%3A%2F%2Fm:7077", "spark://yarn"):
        monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", uri)
        made = Connection.get("spark_default")
        made.extra = '{"yarn_resourcemanager_webapp_address": "rm:8088"}'
        assert endpoint_of("spark_default", made).master == HydrogenSparkSubmitHook().master


def test_no_connection_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_SPARK_DEFAULT", raising=False)
    assert endpoint_of("spark_default", None) == ClusterEndpoint("local[*]")
    with pytest.raises(InvalidJobError, match="there is no connection 'mine'; create it, or"):
        endpoint_of("mine", None)
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark://local[2]")
    with pytest.raises(InvalidJobError, match="_SPARK_DEFAULT is set but cannot be read as a connection"):
        endpoint_of("spark_default", None)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (
            {"host": "mesos://m:5050"},
            r"master 'mesos://m:5050', whose resources cannot be asked for; expected",
        ),
        ({"host": None}, "'c' has no host"),
        ({"host": "spark://local[2]"}, r"write 'local\[2\]' as its host"),
        ({"host": "spark://m", "extra": {"ui-url": "http://u:secret@m"}}, "credentials stand in an address"),
        ({"host": "spark://m", "login": "u", "extra": {"token": "t"}}, "login and password and token; leave"),
        (
            {"host": "spark://m", "extra": {"proxy": "u:secret@proxy:3128"}},
            "proxy must be an address that beg",
        ),
        ({"host": "spark://m", "extra": {"verify": "maybe"}}, "verify must be true or false, found 'maybe'"),
    ],
)
def test_connections_that_cannot_be_used(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidJobError, match=complaint) as caught:
        endpoint_of("c", connection(**fields))
    assert "secret" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    made = connection(host="spark://m", login="user", password="hunter2")
    endpoint = endpoint_of("c", made)
    assert endpoint.password == "hunter2"
    assert "hunter2" not in repr(endpoint) and "user" in repr(endpoint)
    token = endpoint_of("c", connection(host="spark://m", extra={"token": "abc123"}))
    assert token.token == "abc123" and "abc123" not in repr(token)
    proxy = endpoint_of("c", connection(host="spark://m", extra={"proxy": "http://u:abc123@proxy:3128"}))
    assert proxy.proxy == "http://u:abc123@proxy:3128" and "abc123" not in repr(proxy)
