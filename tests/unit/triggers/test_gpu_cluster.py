"""The trigger, against real servers on this machine."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from typing import Any

import pytest
from airflow.sdk.bases.hook import BaseHook

from airflow_hydrogen.clusters.requirement import Requirement
from airflow_hydrogen.triggers.gpu_cluster import GPUClusterTrigger
from tests.unit.clusters.fakes import Server, document, serving


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_SPARK_DEFAULT", raising=False)


def connect(monkeypatch: pytest.MonkeyPatch, server: Server, **extra: Any) -> None:
    extra = {"ui-url": server.url, **extra}
    connection = {"conn_type": "spark", "host": "spark://m", "port": 7077, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(connection))


def trigger(interval_s: float = 0.1, conn_id: str = "spark_default", **requirement: Any) -> GPUClusterTrigger:
    return GPUClusterTrigger(conn_id, Requirement(**requirement).to_dict(), interval_s)


async def fire(waiting: GPUClusterTrigger) -> dict[str, Any]:
    events = [event.payload async for event in waiting.run()]
    assert len(events) == 1
    json.dumps(events)
    payload: dict[str, Any] = events[0]
    return payload


def test_serialize_round_trip() -> None:
    path, kwargs = trigger(np=4, gpus_per_process=1).serialize()
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))
    assert isinstance(again, GPUClusterTrigger)
    assert again.serialize() == (path, kwargs)


def test_it_fires_once_the_cluster_has_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> dict[str, Any]:
        page = document("standalone")
        async with serving({"/json/": page}) as server:
            connect(monkeypatch, server)
            task = asyncio.ensure_future(fire(trigger(resources={"gpu": 4})))
            await server.asked(3)
            assert not task.done()
            page["workers"][0]["resourcesfree"]["gpu"]["addresses"] = ["0", "1"]
            return await asyncio.wait_for(task, 10)

    event = asyncio.run(test())
    assert event["status"] == "success"
    assert event["snapshot"]["free"]["resources"] == {"gpu": 4}
    assert [host["host"] for host in event["snapshot"]["hosts"]] == ["127.0.0.3", "127.0.0.2"]


def test_two_hundred_triggers_share_one_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> tuple[int, list[dict[str, Any]]]:
        page = document("standalone")
        async with serving({"/json/": page}) as server:
            connect(monkeypatch, server)
            tasks = [asyncio.ensure_future(fire(trigger(0.5, resources={"gpu": 4}))) for _ in range(200)]
            await server.asked(2)
            page["workers"][0]["resourcesfree"]["gpu"]["addresses"] = ["0", "1"]
            events = await asyncio.wait_for(asyncio.gather(*tasks), 30)
            return len(server.requests), events

    requests, events = asyncio.run(test())
    assert requests <= 4
    assert {event["status"] for event in events} == {"success"}


def test_it_waits_for_a_master_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> dict[str, Any]:
        async with serving({"/json/": document("standalone")}) as server:
            connect(monkeypatch, server)
            await server.close()
            task = asyncio.ensure_future(fire(trigger(resources={"gpu": 3})))
            await asyncio.sleep(0.5)
            assert not task.done()
            await server.open()
            return await asyncio.wait_for(task, 10)

    assert asyncio.run(test())["status"] == "success"


def test_a_refusal_is_an_event_that_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> dict[str, Any]:
        server = Server(lambda path, headers: (401, {}, b""))
        await server.open()
        connect(monkeypatch, server, token="abc123")
        try:
            return await fire(trigger(cores=1))
        finally:
            await server.close()

    event = asyncio.run(test())
    assert event["status"] == "error"
    assert "status 401: check the connection's credentials" in event["message"]
    assert "abc123" not in event["message"]


def test_a_missing_connection_is_an_event_that_fails_the_task() -> None:
    event = asyncio.run(fire(trigger(conn_id="mine", cores=1)))
    assert event["status"] == "error"
    assert "there is no connection 'mine'" in event["message"]


def test_this_machine_never_gets_gpus() -> None:
    event = asyncio.run(fire(trigger(resources={"gpu": 1})))
    assert event["status"] == "error"
    assert "'local[*]' is this machine alone" in event["message"]
    assert asyncio.run(fire(trigger(cores=1)))["status"] == "success"


def test_nothing_blocks_the_loop(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio's debug mode names every callback that takes long; the connection comes by the async way."""

    def blocking(*args: Any) -> Any:
        raise AssertionError("get_connection blocks the loop")

    monkeypatch.setattr(BaseHook, "get_connection", blocking)

    async def test() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        async with serving({"/json/": document("standalone")}) as server:
            connect(monkeypatch, server)
            await fire(trigger(resources={"gpu": 1}))  # what is imported once
            loop.set_debug(True)
            loop.slow_callback_duration = 0.5
            return await fire(trigger(resources={"gpu": 3}))

    with caplog.at_level(logging.WARNING, "asyncio"):
        assert asyncio.run(test())["status"] == "success"
    assert [record.getMessage() for record in caplog.records if "took" in record.getMessage()] == []


def test_a_trigger_that_is_cancelled_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving({"/json/": document("standalone")}) as server:
            connect(monkeypatch, server)
            task = asyncio.ensure_future(fire(trigger(cores=100)))
            await server.asked(1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert asyncio.all_tasks() == {asyncio.current_task()} | {
                other for other in asyncio.all_tasks() if "_serve" in repr(other)
            }

    asyncio.run(test())
