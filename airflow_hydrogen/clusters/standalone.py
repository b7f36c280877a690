"""Spark's standalone master: the /json/ page of its web interface."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_hydrogen.clusters.documents import reading
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint, split_list
from airflow_hydrogen.clusters.session import Session, ask_in_turn
from airflow_hydrogen.clusters.snapshot import Amounts, ClusterSnapshot, Node

DEFAULT_UI_PORT = 8080
_MIB = 1 << 20


class StandaloneMaster:
    """Follows the page that Spark 4.2 writes; of several masters the one that says ALIVE counts."""

    def __init__(self, endpoint: ClusterEndpoint) -> None:
        self._endpoint = endpoint
        self._urls = list(endpoint.urls)

    @staticmethod
    def addresses(master: str, extra: Mapping[str, Any], conn_id: str) -> tuple[str, ...]:
        """Web interfaces: the extra `ui-url`, or the masters' hosts with `ui-scheme` and `ui-port`."""
        if urls := extra.get("ui-url"):
            return tuple(url.rstrip("/") for url in split_list(str(urls)))
        scheme, port = extra.get("ui-scheme") or "http", extra.get("ui-port") or DEFAULT_UI_PORT
        hosts = split_list(master.removeprefix("spark://"))
        return tuple(f"{scheme}://{re.sub(r':[0-9]+$', '', host)}:{port}" for host in hosts)

    async def snapshot(self, session: Session) -> ClusterSnapshot:
        """One request, to the master that was active last."""
        document = await ask_in_turn(session, self._urls, "/json/", standby_state)
        with reading(self._urls[0] + "/json/"):
            nodes = [_node(worker) for worker in document["workers"] if worker["state"] == "ALIVE"]
        return ClusterSnapshot(self._endpoint.master, tuple(nodes))


def standby_state(document: Any) -> str | None:
    """The state of a master that is not the active one; None for the one that is."""
    # A master that recovers does not know yet what its workers are doing.
    status = document.get("status") if isinstance(document, Mapping) else None
    return None if status in ("ALIVE", None) else str(status)


def _node(worker: Mapping[str, Any]) -> Node:
    return Node(
        name=worker["id"],
        host=worker["host"],
        total=Amounts(worker["cores"], worker["memory"] * _MIB, _counts(worker.get("resources"))),
        free=Amounts(worker["coresfree"], worker["memoryfree"] * _MIB, _counts(worker.get("resourcesfree"))),
    )


def _counts(resources: Mapping[str, Any] | None) -> dict[str, int]:
    return {name: len(resource["addresses"]) for name, resource in (resources or {}).items()}
