"""Hadoop YARN: the ResourceManager's REST API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_hydrogen.clusters.documents import reading
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint, split_list
from airflow_hydrogen.clusters.session import Session, ask_in_turn
from airflow_hydrogen.clusters.snapshot import Amounts, ClusterSnapshot, Node, canonical_resource
from airflow_hydrogen.contract.errors import InvalidJobError

ADDRESS = "yarn_resourcemanager_webapp_address"
"""The extra with which the Spark provider finds the ResourceManager too."""

_MIB = 1 << 20
_BUILT_IN = {"memory-mb", "vcores"}


class YarnResourceManager:
    """Follows "Cluster Nodes API" of Hadoop 3.4's ResourceManager REST API's.

    Where resource types are configured, each node's `usedResource` and `availableResource` list them as
    `resourceInformations`, GPUs as `yarn.io/gpu`. Limits of queues and node labels are not looked at.
    """

    def __init__(self, endpoint: ClusterEndpoint) -> None:
        self._endpoint = endpoint
        self._urls = list(endpoint.urls)

    @staticmethod
    def addresses(master: str, extra: Mapping[str, Any], conn_id: str) -> tuple[str, ...]:
        """The ResourceManagers of the connection's extra; several, with commas, for high availability.

        Raises:
            InvalidJobError: the connection does not say.
        """
        addresses = split_list(str(extra.get(ADDRESS) or ""))
        if not addresses:
            raise InvalidJobError(
                f"connection {conn_id!r} does not say where the ResourceManager is; set {ADDRESS!r} in its "
                "extra, such as 'http://rm:8088', several with commas"
            )
        return tuple(
            (address if "://" in address else f"http://{address}").rstrip("/") for address in addresses
        )

    async def snapshot(self, session: Session) -> ClusterSnapshot:
        """One request, to the ResourceManager that was active last; a standby redirects."""
        path = "/ws/v1/cluster/nodes"
        document = await ask_in_turn(session, self._urls, path, lambda _document: None)
        with reading(self._urls[0] + path):
            # A cluster without nodes: null.
            nodes = _list((document["nodes"] or {}).get("node"))
            running = [_node(node) for node in nodes if node["state"] == "RUNNING"]
        return ClusterSnapshot(self._endpoint.master, tuple(running))


def _node(node: Mapping[str, Any]) -> Node:
    free = Amounts(
        node["availableVirtualCores"],
        node["availMemoryMB"] * _MIB,
        _resources(node.get("availableResource")),
    )
    used = Amounts(
        node["usedVirtualCores"], node["usedMemoryMB"] * _MIB, _resources(node.get("usedResource"))
    )
    # A node whose resources were lowered reports less than nothing as available.
    nothing = Amounts()
    return Node(
        name=node["id"],
        host=node["nodeHostName"],
        total=Amounts.sum((free, used)),
        free=free.minus(nothing),
    )


def _resources(resource: Mapping[str, Any] | None) -> dict[str, int]:
    listed = _list(((resource or {}).get("resourceInformations") or {}).get("resourceInformation"))
    return {
        canonical_resource(entry["name"]): int(entry["value"])
        for entry in listed
        if entry["name"] not in _BUILT_IN
    }


def _list(value: Any) -> list[Any]:
    # Some versions write a list of one as its only element.
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
