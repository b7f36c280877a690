"""The Cluster Nodes API, in the form of Hadoop 3.4."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.snapshot import Amounts, Node
from airflow_hydrogen.clusters.yarn import YarnResourceManager
from airflow_hydrogen.contract.errors import ClusterResponseError, InvalidJobError
from tests.unit.clusters.fakes import FakeSession, document

MIB = 1 << 20
URL = "http://rm:8088"
NODES = f"{URL}/ws/v1/cluster/nodes"


def nodes_of(answer: Any) -> tuple[Node, ...]:
    manager = YarnResourceManager(ClusterEndpoint("yarn", (URL,)))
    return asyncio.run(manager.snapshot(FakeSession({NODES: answer}))).nodes


def test_running_nodes_count_and_yarn_io_gpu_is_a_gpu() -> None:
    assert nodes_of(document("yarn_nodes")) == (
        Node("h1:8041", "h1", Amounts(12, 65536 * MIB, {"gpu": 4}), Amounts(9, 55296 * MIB, {"gpu": 1})),
        Node("h2:8041", "h2", Amounts(8, 8192 * MIB), Amounts(8, 8192 * MIB)),
    )


@pytest.mark.parametrize("nodes", [None, {}, {"node": []}])
def test_a_cluster_without_nodes(nodes: Any) -> None:
    assert nodes_of({"nodes": nodes}) == ()


def test_a_list_of_one_may_be_its_element() -> None:
    only = document("yarn_nodes")["nodes"]["node"][1]
    assert [node.host for node in nodes_of({"nodes": {"node": only}})] == ["h2"]


def test_a_node_that_shrank_has_nothing_free() -> None:
    node = {**document("yarn_nodes")["nodes"]["node"][1], "availableVirtualCores": -2, "usedVirtualCores": 8}
    assert [(node.total.cores, node.free.cores) for node in nodes_of({"nodes": {"node": [node]}})] == [(6, 0)]


def test_another_document() -> None:
    with pytest.raises(ClusterResponseError, match="without the field 'nodes'"):
        nodes_of({"clusterInfo": {}})


def test_addresses() -> None:
    extra = {"yarn_resourcemanager_webapp_address": "rm1:8088, https://rm2:8090/"}
    assert YarnResourceManager.addresses("yarn", extra, "c") == ("http://rm1:8088", "https://rm2:8090")
    with pytest.raises(InvalidJobError, match=r"'c' does not say where the ResourceManager is; set 'yarn_re"):
        YarnResourceManager.addresses("yarn", {}, "c")
