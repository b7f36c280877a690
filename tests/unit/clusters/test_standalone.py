"""The /json/ page of a standalone master, as Spark 4.2.0 wrote it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.snapshot import Amounts, Node
from airflow_hydrogen.clusters.standalone import StandaloneMaster
from airflow_hydrogen.contract.errors import ClusterResponseError, ClusterUnreachableError
from tests.unit.clusters.fakes import FakeSession, document

MIB = 1 << 20
ONE, TWO = "http://m1:8080", "http://m2:8080"


def master(*urls: str) -> StandaloneMaster:
    return StandaloneMaster(ClusterEndpoint("spark://m1:7077", urls or (ONE,)))


def answers(**changes: Any) -> dict[str, Any]:
    return {**document("standalone"), **changes}


def test_living_workers_count_with_what_executors_hold_taken_off() -> None:
    snapshot = asyncio.run(master().snapshot(FakeSession({f"{ONE}/json/": answers()})))
    assert snapshot.nodes[0] == Node(
        name="worker-20261123042501-127.0.0.3-35655",
        host="127.0.0.3",
        total=Amounts(2, 1024 * MIB, {"gpu": 2}),
        free=Amounts(1, 512 * MIB, {"gpu": 1}),
    )
    assert [node.host for node in snapshot.nodes] == ["127.0.0.3", "127.0.0.2"]
    assert snapshot.total == Amounts(4, 2048 * MIB, {"gpu": 4})
    assert snapshot.free == Amounts(3, 1536 * MIB, {"gpu": 3})
    assert not snapshot.fixed


def test_worker_without_resources_has_none() -> None:
    page = answers()
    for worker in page["workers"]:
        for field in ("resources", "resourcesused", "resourcesfree"):
            del worker[field]
    snapshot = asyncio.run(master().snapshot(FakeSession({f"{ONE}/json/": page})))
    assert snapshot.free.resources == {}


def test_of_several_masters_the_one_that_is_alive_counts_and_is_asked_first_from_then_on() -> None:
    session = FakeSession({f"{ONE}/json/": answers(status="STANDBY", workers=[]), f"{TWO}/json/": answers()})
    manager = master(ONE, TWO)
    assert asyncio.run(manager.snapshot(session)).total.resources == {"gpu": 4}
    asyncio.run(manager.snapshot(session))
    assert session.requests == [f"{ONE}/json/", f"{TWO}/json/", f"{TWO}/json/"]
    session.answers = {
        f"{ONE}/json/": answers(),
        f"{TWO}/json/": ClusterUnreachableError(TWO, "ConnectError"),
    }
    assert len(asyncio.run(manager.snapshot(session)).nodes) == 2


def test_no_master_is_alive() -> None:
    session = FakeSession(
        {
            f"{ONE}/json/": answers(status="RECOVERING"),
            f"{TWO}/json/": ClusterUnreachableError(TWO, "ConnectError refused"),
        }
    )
    with pytest.raises(ClusterUnreachableError) as caught:
        asyncio.run(master(ONE, TWO).snapshot(session))
    assert str(caught.value) == (
        f"cluster manager at {ONE}, {TWO}: {ONE}: it is RECOVERING; {TWO}: ConnectError refused"
    )


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ({"status": "ALIVE"}, "a document without the field 'workers'"),
        ([], "a document of another form"),
        ({"status": "ALIVE", "workers": [{"state": "ALIVE"}]}, "without the field"),
    ],
)
def test_another_document(page: Any, complaint: str) -> None:
    with pytest.raises(ClusterResponseError, match=f"cluster manager at {ONE}/json/: .*{complaint}"):
        asyncio.run(master().snapshot(FakeSession({f"{ONE}/json/": page})))


@pytest.mark.parametrize(
    ("url", "extra", "addresses"),
    [
        ("spark://m1:7077", {}, (ONE,)),
        ("spark://m1:7077,m2:7077", {}, (ONE, TWO)),
        ("spark://m1,m2:7077", {"ui-port": 443, "ui-scheme": "https"}, ("https://m1:443", "https://m2:443")),
        ("spark://[::1]:7077", {}, ("http://[::1]:8080",)),
        ("spark://m1:7077", {"ui-url": "https://a/spark/, https://b"}, ("https://a/spark", "https://b")),
    ],
)
def test_addresses(url: str, extra: dict[str, Any], addresses: tuple[str, ...]) -> None:
    assert StandaloneMaster.addresses(url, extra, "spark_default") == addresses
