"""NodeList and PodList of core/v1, in the form of the API reference v1.34."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import pytest

from airflow_hydrogen.clusters import kubernetes
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.kubernetes import KubernetesApi, parse_quantity, pod_requests, takes_pods
from airflow_hydrogen.clusters.snapshot import Amounts, ClusterSnapshot
from airflow_hydrogen.contract.errors import ClusterResponseError, ClusterUnreachableError
from tests.unit.clusters.fakes import FakeSession, document

GIB = 1 << 30
URL = "https://api:6443"
NODES = f"{URL}/api/v1/nodes?limit=500"
PODS = f"{URL}/api/v1/pods?limit=500&fieldSelector=status.phase!=Succeeded,status.phase!=Failed"


def snapshot(answers: dict[str, Any], **options: Any) -> tuple[ClusterSnapshot, list[str]]:
    session = FakeSession(answers)
    manager = KubernetesApi(ClusterEndpoint(f"k8s://{URL}", (URL,), **options))
    return asyncio.run(manager.snapshot(session)), session.requests


def golden() -> dict[str, Any]:
    return {NODES: document("kubernetes_nodes"), PODS: document("kubernetes_pods")}


def test_nodes_that_take_pods_less_what_pods_on_them_asked_for() -> None:
    found, requests = snapshot(golden())
    assert [node.name for node in found.nodes] == ["gpu-a", "gpu-b"]
    assert found.nodes[0].total == Amounts(15.89, 64 * GIB, {"gpu": 4})
    assert found.nodes[0].free == Amounts(11.54, 48 * GIB, {"gpu": 1})
    assert found.nodes[1].free == found.nodes[1].total == Amounts(8, 32 * GIB, {"gpu": 2})
    assert requests == [NODES, PODS]


def test_lists_come_in_pages() -> None:
    nodes = document("kubernetes_nodes")
    first = {**nodes, "items": nodes["items"][:1], "metadata": {"continue": "abc"}}
    rest = {**nodes, "items": nodes["items"][1:], "metadata": {"continue": ""}}
    found, _ = snapshot({**golden(), NODES: first, f"{NODES}&continue=abc": rest})
    assert [node.name for node in found.nodes] == ["gpu-a", "gpu-b"]


def pages_of_nodes() -> tuple[dict[str, Any], dict[str, Any]]:
    nodes = document("kubernetes_nodes")
    first = {**nodes, "items": nodes["items"][:1], "metadata": {"continue": "abc"}}
    return first, {**nodes, "items": nodes["items"][1:], "metadata": {"continue": ""}}


class ExpiringSession(FakeSession):
    """Answers the second page of nodes with 410 Gone so many times."""

    times = 1

    async def get_json(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        answer = await super().get_json(url, params)
        if "continue=" in url and self.times:
            self.times -= 1
            raise ClusterResponseError(url, "answered with status 410", status=410)
        return answer


def test_a_list_that_expires_between_two_pages_is_read_again_from_the_first() -> None:
    first, rest = pages_of_nodes()
    session = ExpiringSession({**golden(), NODES: first, f"{NODES}&continue=abc": rest})
    found = asyncio.run(KubernetesApi(ClusterEndpoint(f"k8s://{URL}", (URL,))).snapshot(session))
    assert [node.name for node in found.nodes] == ["gpu-a", "gpu-b"]  # none of them twice
    assert session.requests == [NODES, f"{NODES}&continue=abc", NODES, f"{NODES}&continue=abc", PODS]


def test_a_list_that_always_expires_is_waited_for() -> None:
    first, rest = pages_of_nodes()
    session = ExpiringSession({**golden(), NODES: first, f"{NODES}&continue=abc": rest})
    session.times = 1_000
    with pytest.raises(ClusterUnreachableError, match="/api/v1/nodes expired 3 times while it was read"):
        asyncio.run(KubernetesApi(ClusterEndpoint(f"k8s://{URL}", (URL,))).snapshot(session))
    assert len(session.requests) == 6


def test_another_refusal_in_the_middle_of_a_list_is_final() -> None:
    refusal = ClusterResponseError(URL, "refused", status=403)
    with pytest.raises(ClusterResponseError, match="refused"):
        snapshot({**golden(), NODES: pages_of_nodes()[0], f"{NODES}&continue=abc": refusal})


def test_pages_are_folded_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 pods are most of a second of arithmetic: not on the loop of all triggers."""
    called: set[tuple[str, int]] = set()

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            called.add((function.__name__, threading.get_ident()))
            return function(*arguments, **named)

        return call

    work = ("takes_pods", "pod_requests", "parse_quantity", "_add", "_amounts", "Node")
    for name in work:
        monkeypatch.setattr(kubernetes, name, noting(getattr(kubernetes, name)))
    assert len(snapshot(golden())[0].nodes) == 2
    assert {name for name, _ in called} == set(work)
    assert threading.get_ident() not in {thread for _, thread in called}


def test_tolerated_taints_let_nodes_in() -> None:
    found, _ = snapshot(golden(), tolerated_taints=("node-role.kubernetes.io/control-plane",))
    assert "control-plane" in [node.name for node in found.nodes]


def test_a_preference_keeps_no_node_out() -> None:
    node = document("kubernetes_nodes")["items"][1]
    node["spec"] = {"taints": [{"key": "busy", "effect": "PreferNoSchedule"}]}
    assert takes_pods(node)
    node["spec"]["taints"][0]["effect"] = "NoExecute"
    assert not takes_pods(node)


def test_init_containers_count_where_they_need_more() -> None:
    def container(cpu: str, **fields: str) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **fields}

    spec = {"containers": [container("1")], "initContainers": [container("3")]}
    assert pod_requests(spec) == {"cpu": 3}
    spec["initContainers"] = [container("500m", restartPolicy="Always"), container("3")]
    assert pod_requests(spec) == {"cpu": Decimal("3.5")}
    spec["initContainers"] = [container("3"), container("5", restartPolicy="Always")]
    assert pod_requests(spec) == {"cpu": 6}


def test_requests_of_the_pod_as_a_whole_come_first() -> None:
    spec = {
        "resources": {"requests": {"cpu": "2"}},
        "containers": [{"resources": {"requests": {"cpu": "1", "memory": "1Ki"}}}],
        "overhead": {"cpu": "1"},
    }
    assert pod_requests(spec) == {"cpu": 3, "memory": 1024}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        (4, 4),
        ("1500m", Decimal("1.5")),
        ("16Gi", 16 * GIB),
        ("1.5G", 1_500_000_000),
        ("128974848", 128974848),
        ("129e6", 129_000_000),
        ("1E3", 1000),
        ("2E", 2 * 10**18),
        ("0", 0),
    ],
)
def test_quantities(text: str | int, value: object) -> None:
    assert parse_quantity(text) == value


def test_not_a_quantity() -> None:
    with pytest.raises(ValueError, match="'4 GB' is not a quantity"):
        parse_quantity("4 GB")
    nodes = document("kubernetes_nodes")
    nodes["items"][0]["status"]["allocatable"]["cpu"] = "many"
    with pytest.raises(ClusterResponseError, match="another form: 'many' is not a quantity"):
        snapshot({**golden(), NODES: nodes})


@pytest.mark.parametrize(
    ("master", "address"),
    [
        ("k8s://https://api:6443", "https://api:6443"),
        ("k8s://api:6443", "https://api:6443"),
        ("k8s://http://localhost:8001/", "http://localhost:8001"),
    ],
)
def test_addresses(master: str, address: str) -> None:
    assert KubernetesApi.addresses(master, {}, "c") == (address,)
