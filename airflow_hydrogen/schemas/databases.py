"""Columns of a database's table or query, by Python's own drivers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.schemas import types
from airflow_hydrogen.schemas.types import Columns
from airflow_hydrogen.schemas.unsure import UnsureError

_CONNECT_TIMEOUT_S = 5
# They change which table a name is, or what is asked.
_OF_SESSIONS = {"preparequery", "sessioninitstatement"}
_POSTGRESQL = {
    16: "boolean",
    20: "bigint",
    21: "smallint",
    23: "int",
    25: "string",
    700: "float",
    701: "double",
    1042: "string",
    1043: "string",
    1082: "date",
}
_NUMERIC = 1700
# Of MySQL's types, those of which a driver's settings make nothing else.
_MYSQL = {5: "double", 10: "date"}


def columns_of(source: Source, client: Mapping[str, Any] | None) -> Columns:
    """The columns that the database says a source has; it sends no row.

    Args:
        source: of kind jdbc.
        client: what opens the connection; None where that is Java's driver's alone.

    Raises:
        UnsureError: there is no driver here, or options that only Spark's reader understands.
        Exception: the driver's own, where the database does not answer.
    """
    options = {name.lower() for name in source.options}
    if client is None or options & _OF_SESSIONS:
        raise UnsureError("how it is opened, its Java driver alone knows")
    connect = _postgresql if client["kind"] == "postgres" else _mysql
    with contextlib.closing(connect(client)) as connection, contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(f"select * from {source.relation} where 1=0")
        spell = _of_postgresql if client["kind"] == "postgres" else _of_mysql
        columns = [(column[0], spell(column)) for column in cursor.description]
    if "customschema" in options:
        columns = [(name, None) for name, _ in columns]
    return types.require_distinct(columns)


def _postgresql(client: Mapping[str, Any]) -> Any:
    driver = _installed("psycopg2", "psycopg")
    return driver.connect(
        host=client["host"],
        port=client["port"],
        dbname=client["database"],
        user=client["user"],
        password=client["password"],
        connect_timeout=_CONNECT_TIMEOUT_S,
        **client["tls"],
    )


def _mysql(client: Mapping[str, Any]) -> Any:
    driver = _installed("MySQLdb", "pymysql")
    return driver.connect(
        host=client["host"],
        port=client["port"],
        database=client["database"],
        user=client["user"] or "",
        password=client["password"] or "",
        connect_timeout=_CONNECT_TIMEOUT_S,
    )


def _installed(*names: str) -> Any:
    for name in names:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise UnsureError(f"neither {' nor '.join(names)} is installed here")


def _of_postgresql(column: Any) -> str | None:
    if column[1] != _NUMERIC:
        return _POSTGRESQL.get(column[1])
    precision, scale = column[4], column[5]
    unbounded = precision is None or precision > 38
    return "decimal(38,18)" if unbounded else f"decimal({precision},{scale or 0})"


def _of_mysql(column: Any) -> str | None:
    return _MYSQL.get(column[1])
