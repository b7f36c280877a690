"""Airflow's connections to Iceberg's catalogs -> the properties by which pyiceberg opens these.

The form of such a connection is that of Airflow's own Iceberg provider, which need not be there.
"""

from __future__ import annotations

from typing import Any

from airflow_hydrogen.contract.errors import InvalidJobError

CONNECTION_TYPE = "iceberg"


def properties(connection: Any) -> dict[str, str]:
    """Properties of pyiceberg's catalog, for an Airflow connection of type `iceberg`.

    Args:
        connection: its host is the address of a REST catalog, login and password are the client's id and
            secret, and its extra holds further properties, such as `warehouse`. An extra with `type` and
            `uri` names a catalog of another kind; `name`, what pyiceberg calls it, is otherwise the
            connection's.

    Raises:
        InvalidJobError: nothing says where the catalog is.
    """
    extra = {str(name): value for name, value in dict(connection.extra_dejson or {}).items()}
    if wrong := sorted(name for name, value in extra.items() if isinstance(value, (dict, list))):
        raise _problem(connection, f"{', '.join(wrong)} in its extra must be texts, numbers or booleans")
    found = {name: _text(value) for name, value in extra.items() if value is not None}
    if connection.host:
        found.setdefault("uri", connection.host)
    if not any(name in found for name in ("uri", "type", "py-catalog-impl")):
        raise _problem(connection, "it has no host, such as 'https://catalog.example.com/ws/v1'")
    if connection.login or connection.password:
        parts = [part for part in (connection.login, connection.password) if part]
        found.setdefault("credential", ":".join(parts))
    return found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _problem(connection: Any, what: str) -> InvalidJobError:
    return InvalidJobError(f"connection {connection.conn_id!r} cannot be used for Iceberg: {what}")
