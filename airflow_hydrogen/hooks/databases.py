"""Airflow's connections to databases -> what Spark's JDBC reader needs to open them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.hooks import brokers, catalogs

POSTGRESQL_DRIVER = "org.postgresql.Driver"
MYSQL_DRIVER = "com.mysql.cj.jdbc.Driver"
MARIADB_DRIVER = "org.mariadb.jdbc.Driver"

_TYPES = "postgres, mysql, mariadb, jdbc"
_OWN_TYPES = {"kafka": brokers.CONNECTION_TYPE, "iceberg": catalogs.CONNECTION_TYPE}
_POSTGRESQL_TLS = ("sslmode", "sslrootcert", "sslcert", "sslkey")


def connections_of(places: Iterable[Source | Sink], get_connection: Callable[[str], Any]) -> dict[str, Any]:
    """The connections that sources and sinks name, each asked for once.

    Args:
        places: all of a job's.
        get_connection: Airflow's.

    Raises:
        InvalidJobError: a connection that is not there, or of a type that cannot be that of the place.
    """
    connections: dict[str, Any] = {}
    for place in places:
        if place.conn_id is None or place.conn_id in connections:
            continue
        try:
            connections[place.conn_id] = get_connection(place.conn_id)
        except AirflowNotFoundException:
            kind = "source" if isinstance(place, Source) else "sink"
            raise InvalidJobError(
                f"{kind} {place} names the connection {place.conn_id!r}, which is not there"
            ) from None
        found = connections[place.conn_id].conn_type
        own = _OWN_TYPES.get(place.kind)
        if found != own if own else found in _OWN_TYPES.values():
            raise InvalidJobError(
                f"{place} names the connection {place.conn_id!r} of type {found!r}; expected "
                + (own or f"one of {_TYPES}")
            )
    return connections


def access_of(connections: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What opens connections: connection -> options of Spark's reader, or properties of pyiceberg's catalog.

    Raises:
        InvalidJobError: one names no database, no broker and no catalog.
    """
    options: dict[str, Callable[[Any], dict[str, str]]] = {
        brokers.CONNECTION_TYPE: brokers.reader_options,
        catalogs.CONNECTION_TYPE: catalogs.properties,
    }
    return {
        conn_id: options.get(connection.conn_type, reader_options)(connection)
        for conn_id, connection in connections.items()
    }


def reader_options(connection: Any) -> dict[str, str]:
    """Options of Spark's JDBC reader, for an Airflow connection.

    Args:
        connection: of type postgres, mysql, mariadb or jdbc. Its extra may hold `jdbc_properties`, an object
            of properties of the driver, and `jdbc_driver`, the driver's class; of the type jdbc also
            `driver_class`, as Airflow's own hook reads it.

    Raises:
        InvalidJobError: it is of another type, or something is missing.
    """
    extra = dict(connection.extra_dejson or {})
    kind = connection.conn_type
    properties = extra.get("jdbc_properties") or {}
    if not isinstance(properties, Mapping):
        raise _problem(connection, f"jdbc_properties in its extra must be an object, found {properties!r}")
    driver = extra.get("jdbc_driver")
    if kind == "postgres":
        driver = driver or POSTGRESQL_DRIVER
        url = _url(connection, "postgresql", 5432)
        properties = {**{name: extra[name] for name in _POSTGRESQL_TLS if extra.get(name)}, **properties}
    elif kind in ("mysql", "mariadb"):
        driver = driver or (MYSQL_DRIVER if kind == "mysql" else MARIADB_DRIVER)
        # Spark takes the dialect from the URL: it has none for "mariadb", and reads columns as their names.
        url = _url(connection, "mysql", 3306) + ("?permitMysqlScheme" if driver == MARIADB_DRIVER else "")
    elif kind == "jdbc":
        driver, url = driver or extra.get("driver_class"), connection.host or ""
        if not url.startswith("jdbc:"):
            begins = url.partition(":")[0]  # the rest may hold a password
            raise _problem(
                connection, f"its host must be the driver's URL, 'jdbc:...', found one that begins {begins!r}"
            )
        if not driver:
            raise _problem(connection, "its extra names no driver_class, the Java class of the driver")
    else:
        raise _problem(connection, f"its type is {kind!r}; expected one of {_TYPES}")
    named = {"user": connection.login, "password": connection.password}
    return {
        **{str(name): str(value) for name, value in properties.items()},
        **{name: value for name, value in named.items() if value},
        "url": url,
        "driver": driver,
    }


def client_options(connection: Any) -> dict[str, Any] | None:
    """What opens a database for Python's own drivers as `reader_options` does for Java's.

    Returns:
        None where that cannot be said: other types of connections, and properties of Java's driver.
    """
    extra = dict(connection.extra_dejson or {})
    if connection.conn_type not in ("postgres", "mysql", "mariadb") or extra.get("jdbc_properties"):
        return None
    ports = {"postgres": 5432}
    return {
        "kind": connection.conn_type,
        "host": connection.host,
        "port": int(connection.port or ports.get(connection.conn_type, 3306)),
        "database": connection.schema,
        "user": connection.login,
        "password": connection.password,
        "tls": {name: extra[name] for name in _POSTGRESQL_TLS if extra.get(name)},
    }


def driver_jars(connections: Mapping[str, Any]) -> list[str]:
    """The jars that connections of type jdbc name themselves, as Airflow's own hook reads them."""
    paths = [
        path.strip()
        for connection in connections.values()
        for path in str(dict(connection.extra_dejson or {}).get("driver_path") or "").split(",")
    ]
    return [path for path in paths if path]


def _url(connection: Any, scheme: str, port: int) -> str:
    if not connection.host or not connection.schema:
        missing = "host" if not connection.host else "database (its field schema)"
        raise _problem(connection, f"it has no {missing}")
    host = f"[{connection.host}]" if ":" in connection.host else connection.host
    return f"jdbc:{scheme}://{host}:{connection.port or port}/{quote(connection.schema, safe='')}"


def _problem(connection: Any, what: str) -> InvalidJobError:
    return InvalidJobError(f"connection {connection.conn_id!r} cannot be read over JDBC: {what}")
