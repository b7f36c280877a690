"""Which cluster manager a connection means, and what it says is free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from airflow_hydrogen.clusters.endpoint import (
    ClusterEndpoint,
    Connection,
    master_of,
    scheme_of,
    without_connection,
)
from airflow_hydrogen.clusters.kubernetes import KubernetesApi
from airflow_hydrogen.clusters.local import LocalMachine
from airflow_hydrogen.clusters.session import Session, open_session
from airflow_hydrogen.clusters.snapshot import ClusterSnapshot
from airflow_hydrogen.clusters.standalone import StandaloneMaster
from airflow_hydrogen.clusters.yarn import YarnResourceManager
from airflow_hydrogen.contract.errors import InvalidJobError


class ClusterManager(Protocol):
    """Knows the nodes of a cluster and what of them is free."""

    def __init__(self, endpoint: ClusterEndpoint) -> None: ...

    @staticmethod
    def addresses(master: str, extra: Mapping[str, Any], conn_id: str) -> tuple[str, ...]:
        """Web addresses from a connection's master and extra.

        Raises:
            InvalidJobError: the connection does not say.
        """

    async def snapshot(self, session: Session) -> ClusterSnapshot:
        """The nodes at this moment.

        Raises:
            ClusterUnreachableError: nobody answered; later somebody may.
            ClusterResponseError: an answer that no repetition makes better.
        """


MANAGERS: dict[str, type[ClusterManager]] = {
    "spark": StandaloneMaster,
    "local": LocalMachine,
    "yarn": YarnResourceManager,
    "k8s": KubernetesApi,
}
"""By the scheme of Spark's master URL. Add to it to support another cluster manager."""


def endpoint_of(conn_id: str, connection: Connection | None) -> ClusterEndpoint:
    """Where a connection's cluster manager answers; this machine where there is no connection at all.

    Raises:
        InvalidJobError: the connection does not say.
    """
    if connection is None:
        return without_connection(conn_id, os.environ)
    master = master_of(connection, conn_id)
    if master.startswith("spark://local"):
        scheme_hint = master.removeprefix("spark://")
        if scheme_hint.startswith(("local[", "local-cluster[")):
            raise InvalidJobError(
                f"connection {conn_id!r} has the master {master!r}, which is the address of a host; "
                f"for Spark on this machine write {scheme_hint!r} as its host"
            )
    manager = _manager_class(master, conn_id)
    urls = manager.addresses(master, connection.extra_dejson, conn_id)
    return ClusterEndpoint.create(master, urls, connection, conn_id)


def manager_of(endpoint: ClusterEndpoint) -> ClusterManager:
    """The cluster manager of an endpoint."""
    return _manager_class(endpoint.master, "")(endpoint)


async def take_snapshot(endpoint: ClusterEndpoint) -> ClusterSnapshot:
    """One poll with a session of its own."""
    async with open_session(endpoint) as session:
        return await manager_of(endpoint).snapshot(session)


def _manager_class(master: str, conn_id: str) -> type[ClusterManager]:
    try:
        return MANAGERS[scheme_of(master)]
    except KeyError:
        raise InvalidJobError(
            f"connection {conn_id!r} has the master {master!r}, whose resources cannot be asked for; "
            "expected 'local[*]', 'spark://host:7077', 'yarn' or 'k8s://https://host:port'"
        ) from None
