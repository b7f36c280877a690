from __future__ import annotations

import json

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import Connection

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.hooks.databases import (
    access_of,
    client_options,
    connections_of,
    driver_jars,
    reader_options,
)


def connection(conn_type: str = "postgres", extra: object = None, **fields: object) -> Connection:
    given = {"host": "db", "schema": "shop", "login": "me", "password": "geheim", **fields}
    return Connection(conn_id="shop", conn_type=conn_type, extra=json.dumps(extra or {}), **given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            connection(extra={"sslmode": "verify-full", "cursor": "dictcursor"}),
            {
                "url": "jdbc:postgresql://db:5432/shop",
                "driver": "org.postgresql.Driver",
                "sslmode": "verify-full",
            },
        ),
        (
            connection(host="::1", port=5433, schema="a/b?"),
            {"url": "jdbc:postgresql://[::1]:5433/a%2Fb%3F", "driver": "org.postgresql.Driver"},
        ),
        (
            connection("mysql", port=3307),
            {"url": "jdbc:mysql://db:3307/shop", "driver": "com.mysql.cj.jdbc.Driver"},
        ),
        (
            connection("mysql", extra={"jdbc_driver": "org.mariadb.jdbc.Driver"}),
            {"url": "jdbc:mysql://db:3306/shop?permitMysqlScheme", "driver": "org.mariadb.jdbc.Driver"},
        ),
        (
            connection("mariadb", extra={"jdbc_properties": {"connectTimeout": 5000}}),
            {
                "url": "jdbc:mysql://db:3306/shop?permitMysqlScheme",
                "driver": "org.mariadb.jdbc.Driver",
                "connectTimeout": "5000",
            },
        ),
        (
            connection("jdbc", extra={"driver_class": "x.Driver"}, host="jdbc:x://h/db", schema=None),
            {"url": "jdbc:x://h/db", "driver": "x.Driver"},
        ),
    ],
)
def test_connections_become_options_of_the_reader(given, expected):
    assert reader_options(given) == {"user": "me", "password": "geheim", **expected}


def test_what_a_connection_leaves_out_is_left_out():
    options = reader_options(connection(login=None, password=None))
    assert set(options) == {"url", "driver"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (connection("sqlite"), "its type is 'sqlite'; expected one of postgres, mysql, mariadb, jdbc"),
        (connection(host=None), "it has no host"),
        (connection(schema=None), r"it has no database \(its field schema\)"),
        (
            connection("jdbc", host="db"),
            "its host must be the driver's URL, 'jdbc:...', found one that begins 'db'",
        ),
        (connection("jdbc", host="postgresql://me:geheim@db/x"), "found one that begins 'postgresql'"),
        (connection("jdbc", host="jdbc:x://h"), "its extra names no driver_class"),
        (
            connection(extra={"jdbc_properties": "x"}),
            "jdbc_properties in its extra must be an object",
        ),
    ],
)
def test_connections_that_cannot_work_say_why_and_show_no_password(given, message):
    with pytest.raises(InvalidJobError, match=f"'shop' cannot be read over JDBC: .*{message}") as told:
        reader_options(given)
    assert "geheim" not in str(told.value)


def test_each_connection_is_asked_for_once():
    asked = []

    def get(conn_id: str) -> Connection:
        asked.append(conn_id)
        return connection()

    source = Source.jdbc("shop", table="a")
    access = access_of(connections_of([source, Source.jdbc("shop", table="b"), Source.parquet("/a")], get))
    assert asked == ["shop"]
    assert access["shop"]["password"] == "geheim"


def test_a_connection_that_is_not_there_is_named():
    def get(conn_id: str) -> Connection:
        raise AirflowNotFoundException(conn_id)

    with pytest.raises(InvalidJobError, match="source jdbc nix: t names the connection 'nix', which is not"):
        connections_of([Source.jdbc("nix", table="t")], get)


def test_jars_that_a_connection_names():
    named = connection("jdbc", extra={"driver_path": "/a.jar, /b.jar"})
    assert driver_jars({"x": named, "y": connection()}) == ["/a.jar", "/b.jar"]
    assert driver_jars({"y": connection()}) == []


def test_pythons_drivers_open_what_javas_open() -> None:
    assert client_options(connection(extra={"sslmode": "require", "jdbc_driver": "x"})) == {
        "kind": "postgres",
        "host": "db",
        "port": 5432,
        "database": "shop",
        "user": "me",
        "password": "geheim",
        "tls": {"sslmode": "require"},
    }
    mysql = client_options(connection("mysql"))
    assert mysql is not None and mysql["port"] == 3306


@pytest.mark.parametrize(
    "given", [connection("jdbc"), connection(extra={"jdbc_properties": {"currentSchema": "sales"}})]
)
def test_what_javas_driver_alone_understands_is_left_to_it(given: Connection) -> None:
    assert client_options(given) is None
