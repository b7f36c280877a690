from __future__ import annotations

import asyncio

import pytest

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.local import LocalMachine, _cores
from airflow_hydrogen.contract.errors import InvalidJobError
from tests.unit.clusters.fakes import FakeSession


@pytest.mark.parametrize(
    ("master", "cores", "nodes"),
    [
        ("local", 1, 1),
        ("local[4]", 4, 1),
        ("local[2,3]", 2, 1),
        ("local[*]", _cores(), 1),
        ("local-cluster[2, 3, 1024]", 6, 2),
    ],
)
def test_this_machine_has_as_many_cores_as_the_master_says_and_no_gpus(
    master: str, cores: int, nodes: int
) -> None:
    snapshot = asyncio.run(LocalMachine(ClusterEndpoint(master)).snapshot(FakeSession({})))
    assert (snapshot.free.cores, len(snapshot.nodes)) == (cores, nodes)
    assert snapshot.free == snapshot.total
    assert snapshot.free.resources == {}
    assert snapshot.free.memory_bytes > 1 << 20
    assert snapshot.fixed


def test_a_master_that_spark_would_not_understand() -> None:
    with pytest.raises(InvalidJobError, match=r"master 'local\[x\]' is not understood; expected 'local'"):
        asyncio.run(LocalMachine(ClusterEndpoint("local[x]")).snapshot(FakeSession({})))
