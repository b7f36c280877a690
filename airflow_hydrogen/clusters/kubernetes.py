"""Kubernetes: what nodes can give, less what the pods on them have asked for."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any, TypeVar

import httpx

from airflow_hydrogen.clusters.documents import reading
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.session import Session, ask_in_turn
from airflow_hydrogen.clusters.snapshot import Amounts, ClusterSnapshot, Node, canonical_resource
from airflow_hydrogen.contract.errors import ClusterResponseError, ClusterUnreachableError

Folded = TypeVar("Folded")

PAGE_ITEMS = 500
_LIST_ATTEMPTS = 3
_QUANTITY = re.compile(r"([+-]?[0-9.]+)(?:[eE]([+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")
_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{suffix: Decimal(1000) ** (power + 1) for power, suffix in enumerate("kMGTPE")},
    **{f"{suffix}i": Decimal(1024) ** (power + 1) for power, suffix in enumerate("KMGTPE")},
}
# Countable in a way that no requirement of ours is.
_IGNORED = ("hugepages-", "attachable-volumes-", "ephemeral-storage", "pods", "storage")
_ENDED = "status.phase!=Succeeded,status.phase!=Failed"

Quantities = dict[str, Decimal]


class KubernetesApi:
    """Follows the Kubernetes API reference v1.34: NodeList and PodList of core/v1.

    Two lists a poll, in pages of 500. The account needs `list` on nodes and pods of all namespaces. A node
    counts if it is ready and takes new pods: a taint NoSchedule or NoExecute keeps it out, unless its key is
    the name of one of the node's resources (as `nvidia.com/gpu`, whose pods tolerate it by the admission
    controller ExtendedResourceToleration) or the connection's extra `tolerated-taints` names it.
    """

    def __init__(self, endpoint: ClusterEndpoint) -> None:
        self._endpoint = endpoint
        self._urls = list(endpoint.urls)

    @staticmethod
    def addresses(master: str, extra: Mapping[str, Any], conn_id: str) -> tuple[str, ...]:
        """The API server of the master URL; HTTPS where it names no scheme, as for Spark."""
        address = master.removeprefix("k8s://").rstrip("/")
        return (address if "://" in address else f"https://{address}",)

    async def snapshot(self, session: Session) -> ClusterSnapshot:
        """Nodes first, so that a node that left between the two requests is not counted twice."""
        nodes = await self._list(session, "/api/v1/nodes", "", self._nodes)
        pods = await self._list(session, "/api/v1/pods", f"&fieldSelector={_ENDED}", _requested_by_node)
        return await asyncio.to_thread(self._combine, nodes, pods)

    async def _list(
        self, session: Session, path: str, selector: str, fold: Callable[[Any], Folded]
    ) -> list[Folded]:
        """What is made of each page of a list.

        `fold` runs on a thread, a page at a time: 10,000 pods would hold the loop up for most of a second.

        Raises:
            ClusterUnreachableError: the list changed faster than it could be read.
        """
        for _ in range(_LIST_ATTEMPTS):
            try:
                return await self._pages(session, path, selector, fold)
            except ClusterResponseError as error:
                # The next page's token expires when the server forgets the state that the first one was of.
                if error.status != httpx.codes.GONE:
                    raise
                gone = error
        raise ClusterUnreachableError(
            gone.url, f"{gone.problem}: the list of {path} expired {_LIST_ATTEMPTS} times while it was read"
        )

    async def _pages(
        self, session: Session, path: str, selector: str, fold: Callable[[Any], Folded]
    ) -> list[Folded]:
        def read(document: Any) -> tuple[Folded, str]:
            with reading(self._urls[0] + path):
                return fold(document["items"] or []), document["metadata"].get("continue") or ""

        folded: list[Folded] = []
        token = ""
        while True:
            # `continue` is an opaque token of URL-safe base64.
            page = f"{path}?limit={PAGE_ITEMS}{selector}" + (f"&continue={token}" if token else "")
            document = await ask_in_turn(session, self._urls, page, lambda _document: None)
            part, token = await asyncio.to_thread(read, document)
            folded.append(part)
            if not token:
                return folded

    def _nodes(self, items: Iterable[Mapping[str, Any]]) -> dict[str, Quantities]:
        """What the nodes of a page that take pods can give, by name."""
        return {
            node["metadata"]["name"]: _quantities(node["status"]["allocatable"])
            for node in items
            if takes_pods(node, self._endpoint.tolerated_taints)
        }

    def _combine(
        self, nodes: Iterable[Mapping[str, Quantities]], pods: Iterable[Mapping[str, Quantities]]
    ) -> ClusterSnapshot:
        requested: dict[str, Quantities] = {}
        for page in pods:
            for name, quantities in page.items():
                requested[name] = _add(requested.get(name, {}), quantities)
        found = [
            _node(name, allocatable, requested.get(name, {}))
            for page in nodes
            for name, allocatable in page.items()
        ]
        return ClusterSnapshot(self._endpoint.master, tuple(found))


def takes_pods(node: Mapping[str, Any], tolerated: Iterable[str] = ()) -> bool:
    """Tell whether a node is ready and takes pods of the application."""
    spec, status = node.get("spec") or {}, node["status"]
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in status.get("conditions") or ()
    )
    accepted = {*tolerated, *(status.get("allocatable") or {})}
    refusing = [
        taint
        for taint in spec.get("taints") or ()
        if taint["effect"] in ("NoSchedule", "NoExecute") and taint["key"] not in accepted
    ]
    return ready and not spec.get("unschedulable") and not refusing


def pod_requests(spec: Mapping[str, Any]) -> Quantities:
    """What the scheduler sets aside for a pod.

    The larger of what its containers need together and what an init container needs with the sidecars that
    started before it; plus the overhead of its runtime class. Requests of the pod as a whole come first.
    """
    containers = _add(*(_requests(container) for container in spec.get("containers") or ()))
    sidecars: Quantities = {}
    largest: Quantities = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            sidecars = _add(sidecars, _requests(container))
            largest = _maximum(largest, sidecars)
        else:
            largest = _maximum(largest, _add(sidecars, _requests(container)))
    needed = _maximum(_add(containers, sidecars), largest)
    return _add({**needed, **_requests(spec)}, _quantities(spec.get("overhead")))


def parse_quantity(text: str | int | float) -> Decimal:
    """A number of Kubernetes: `500m`, `16Gi`, `1e3`, `4`.

    Raises:
        ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number, exponent, suffix = match.groups()
    if exponent:
        return Decimal(number).scaleb(int(exponent))
    return Decimal(number) * _SUFFIXES.get(suffix, Decimal(1))


def _node(name: str, allocatable: Quantities, requested: Quantities) -> Node:
    total = _amounts(allocatable)
    return Node(name=name, host=name, total=total, free=total.minus(_amounts(requested)))


def _requested_by_node(pods: Iterable[Mapping[str, Any]]) -> dict[str, Quantities]:
    by_node: dict[str, Quantities] = defaultdict(dict)
    for pod in pods:
        # A server that ignores the field selector is no reason to count pods that have ended.
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if (name := pod["spec"].get("nodeName")) and not ended:
            by_node[name] = _add(by_node[name], pod_requests(pod["spec"]))
    return by_node


def _requests(container: Mapping[str, Any]) -> Quantities:
    resources = container.get("resources") or {}
    # A limit without a request is a request.
    return {**_quantities(resources.get("limits")), **_quantities(resources.get("requests"))}


def _quantities(named: Mapping[str, Any] | None) -> Quantities:
    return {name: parse_quantity(value) for name, value in (named or {}).items()}


def _amounts(quantities: Quantities) -> Amounts:
    resources: dict[str, int] = defaultdict(int)
    for name, quantity in quantities.items():
        if name not in ("cpu", "memory") and not name.startswith(_IGNORED):
            resources[canonical_resource(name)] += int(quantity)
    cores = (quantities.get("cpu", Decimal(0)) * 1000).to_integral_value(ROUND_CEILING) / 1000
    return Amounts(
        float(cores) if cores % 1 else int(cores), int(quantities.get("memory", 0)), dict(resources)
    )


def _add(*many: Quantities) -> Quantities:
    total: Quantities = {}
    for quantities in many:
        for name, quantity in quantities.items():
            total[name] = total.get(name, Decimal(0)) + quantity
    return total


def _maximum(left: Quantities, right: Quantities) -> Quantities:
    zero = Decimal(0)
    return {name: max(left.get(name, zero), right.get(name, zero)) for name in {**left, **right}}
