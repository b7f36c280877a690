"""How a source or a sink says where Kafka's brokers are: by their addresses, or by an Airflow connection."""

from __future__ import annotations

from airflow_hydrogen.contract.errors import InvalidJobError


def named_by(servers_or_conn_id: str) -> dict[str, str]:
    """The field that a text belongs to: addresses have a port, and so a colon, and connections have none."""
    return {"servers" if ":" in servers_or_conn_id else "conn_id": servers_or_conn_id}


def require_one(what: str, servers: str | None, conn_id: str | None) -> None:
    """Raise InvalidJobError unless one of the two is given, and not both.

    Args:
        what: "source" or "sink", for the message.
        servers: addresses.
        conn_id: a connection.
    """
    if (servers is None) == (conn_id is None):
        raise InvalidJobError(
            f"a kafka {what} needs either servers, such as 'host:9092', or an Airflow connection of type "
            f"kafka; found servers={servers!r}, conn_id={conn_id!r}"
        )
