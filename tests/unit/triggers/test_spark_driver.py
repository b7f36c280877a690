"""The trigger that waits for a driver, against real servers on this machine."""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from typing import Any

import pytest
from airflow.sdk.bases.hook import BaseHook

from airflow_hydrogen.triggers import polls
from airflow_hydrogen.triggers.spark_driver import SparkDriverTrigger
from tests.unit.clusters.fakes import Server, document, serving

DRIVER = "driver-20261123071500-0000"
REPORT = "s3://models/m.report-0123.json"


def connect(monkeypatch: pytest.MonkeyPatch, *servers: Server, **extra: Any) -> None:
    extra = {"ui-url": ",".join(server.url for server in servers), **extra}
    connection = {"conn_type": "spark", "host": "spark://m", "port": 7077, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(connection))


def page(state: str = "RUNNING", *, active: bool = True, driver_id: str = DRIVER) -> dict[str, Any]:
    """The page of a master with one driver."""
    found: dict[str, Any] = document("standalone_drivers")
    entry = {**found["activedrivers"][0], "id": driver_id, "state": state}
    found["activedrivers"], found["completeddrivers"] = ([entry], []) if active else ([], [entry])
    return found


def change(shown: dict[str, Any], state: str, *, active: bool = False) -> None:
    shown.update(page(state, active=active))


def trigger(interval_s: float = 0.1, **arguments: Any) -> SparkDriverTrigger:
    return SparkDriverTrigger(
        **{
            "conn_id": "spark_default",
            "driver_id": DRIVER,
            "report_uri": REPORT,
            "poll_interval_s": interval_s,
            **arguments,
        }
    )


async def fire(waiting: SparkDriverTrigger) -> dict[str, Any]:
    events = [event.payload async for event in waiting.run()]
    assert len(events) == 1
    payload: dict[str, Any] = json.loads(json.dumps(events[0]))
    assert payload["driver_id"] == waiting.driver_id
    assert payload["report_uri"] == REPORT
    return payload


def test_serialize_round_trip() -> None:
    path, kwargs = trigger(end_at=12.5, max_wait_s=60.0).serialize()
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))
    assert isinstance(again, SparkDriverTrigger)
    assert again.serialize() == (path, kwargs)


@pytest.mark.parametrize(
    ("state", "explanation"),
    [
        ("FINISHED", f"driver {DRIVER} is FINISHED"),
        ("FAILED", f"driver {DRIVER} is FAILED: its process ended with another exit code than 0"),
        ("KILLED", f"driver {DRIVER} is KILLED: somebody ended it"),
        ("ERROR", f"driver {DRIVER} is ERROR: the worker could not start it"),
        ("RELAUNCHING", f"driver {DRIVER} is RELAUNCHING: its worker was lost"),
    ],
)
def test_it_fires_once_the_driver_has_ended(
    monkeypatch: pytest.MonkeyPatch, state: str, explanation: str
) -> None:
    monkeypatch.setattr(polls, "MIN_INTERVAL_S", 0.01)

    async def test() -> dict[str, Any]:
        shown = page("SUBMITTED")
        async with serving({"/json/": shown}) as server:
            connect(monkeypatch, server)
            task = asyncio.ensure_future(fire(trigger(0.01)))
            for times, running in ((2, "RUNNING"), (4, "UNKNOWN"), (6, "RELAUNCHING")):
                await server.asked(times)
                assert not task.done()
                change(shown, running, active=True)
            await server.asked(8)
            assert not task.done()
            change(shown, state)
            return await asyncio.wait_for(task, 60)

    event = asyncio.run(test())
    assert event["status"] == "ended"
    assert event["explanation"].startswith(explanation)


def test_a_driver_that_the_master_forgot_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> dict[str, Any]:
        async with serving({"/json/": page(driver_id="driver-of-others")}) as server:
            connect(monkeypatch, server)
            return await fire(trigger())

    event = asyncio.run(test())
    assert event["status"] == "ended"
    assert event["explanation"].startswith(f"driver {DRIVER} is GONE: the master does not know it")


def test_a_master_that_is_down_or_recovers_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> dict[str, Any]:
        shown = page()
        async with serving({"/json/": shown}) as server:
            connect(monkeypatch, server)
            task = asyncio.ensure_future(fire(trigger()))
            await server.asked(1)
            await server.close()
            await asyncio.sleep(0.3)
            # It has not yet heard of its drivers: they are not gone.
            shown |= {"status": "RECOVERING", "activedrivers": []}
            await server.open()
            await server.asked(3)
            assert not task.done()
            change(shown, "FINISHED")
            return await asyncio.wait_for(task, 60)

    assert asyncio.run(test())["status"] == "ended"


def test_of_two_masters_the_active_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> dict[str, Any]:
        standby = {**page(), "status": "STANDBY", "activedrivers": []}
        async with (
            serving({"/json/": standby}) as first,
            serving({"/json/": page("FINISHED", active=False)}) as second,
        ):
            connect(monkeypatch, first, second)
            return await fire(trigger())

    assert asyncio.run(test())["explanation"].endswith("FINISHED")


def test_a_refusal_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> dict[str, Any]:
        server = Server(lambda path, headers: (403, {}, b""))
        await server.open()
        connect(monkeypatch, server, token="abc123")
        try:
            return await fire(trigger())
        finally:
            await server.close()

    event = asyncio.run(test())
    assert event["status"] == "error"
    assert "check the connection's credentials" in event["message"]
    assert "abc123" not in event["message"]


def test_a_driver_is_ended_at_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> tuple[dict[str, Any], list[str]]:
        async with serving({"/json/": page(), "/driver/kill/": {}}) as server:
            connect(monkeypatch, server)
            event = await fire(trigger(end_at=time.time() + 0.3))
            return event, [path for path, _ in server.requests if path == "/driver/kill/"]

    event, kills = asyncio.run(test())
    assert event["status"] == "timeout"
    assert kills == ["/driver/kill/"]


def test_a_driver_that_ended_while_no_triggerer_ran_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> tuple[dict[str, Any], list[str]]:
        async with serving({"/json/": page("FINISHED", active=False), "/driver/kill/": {}}) as server:
            connect(monkeypatch, server)
            event = await fire(trigger(end_at=time.time() - 3600))
            return event, [path for path, _ in server.requests if path == "/driver/kill/"]

    event, kills = asyncio.run(test())
    assert event["status"] == "ended"
    assert event["explanation"].startswith(f"driver {DRIVER} is FINISHED")
    assert kills == []


def test_a_driver_that_still_runs_after_its_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> tuple[dict[str, Any], list[str]]:
        async with serving({"/json/": page(), "/driver/kill/": {}}) as server:
            connect(monkeypatch, server)
            event = await fire(trigger(end_at=time.time() - 3600))
            return event, [path for path, _ in server.requests if path == "/driver/kill/"]

    event, kills = asyncio.run(test())
    assert (event["status"], kills) == ("timeout", ["/driver/kill/"])


def test_its_time_is_over_even_if_the_master_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> dict[str, Any]:
        async with serving({}) as server:
            connect(monkeypatch, server)
        return await fire(trigger(end_at=time.time() - 3600))

    assert asyncio.run(test())["status"] == "timeout"
    assert "its master does not answer" in capsys.readouterr().out


def test_marking_the_task_ends_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> list[tuple[str, dict[str, str]]]:
        answers = {"/json/": (200, {}, json.dumps(page()).encode()), "/driver/kill/": (302, {}, b"")}
        server = Server(lambda path, headers: answers[path])
        await server.open()
        connect(monkeypatch, server, token="abc123")
        try:
            await trigger().on_kill()
        finally:
            await server.close()
        return server.requests

    requests = asyncio.run(test())
    assert [path for path, _ in requests] == ["/json/", "/driver/kill/"]
    assert requests[1][1]["authorization"] == "Bearer abc123"
    assert requests[1][1]["content-type"] == "application/x-www-form-urlencoded"


def test_a_driver_that_cannot_be_ended_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async with serving({"/json/": page()}) as server:  # no page to end drivers
            connect(monkeypatch, server)
            await trigger().on_kill()

    asyncio.run(test())
    log = capsys.readouterr().out
    assert f"Driver {DRIVER} was not ended" in log
    assert "spark.ui.killEnabled" in log


def test_fifty_triggers_share_one_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> tuple[int, list[dict[str, Any]]]:
        shown = page()
        entries = [{**shown["activedrivers"][0], "id": f"driver-{number}"} for number in range(50)]
        shown["activedrivers"] = entries
        async with serving({"/json/": shown}) as server:
            connect(monkeypatch, server)
            tasks = [
                asyncio.ensure_future(fire(trigger(0.5, driver_id=f"driver-{number}")))
                for number in range(50)
            ]
            await server.asked(2)
            shown.update(
                activedrivers=[], completeddrivers=[{**entry, "state": "FINISHED"} for entry in entries]
            )
            events = await asyncio.wait_for(asyncio.gather(*tasks), 60)
            return len(server.requests), events

    requests, events = asyncio.run(test())
    assert requests <= 4
    assert {event["status"] for event in events} == {"ended"}


def test_the_connection_comes_by_the_async_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocking(*args: Any) -> Any:
        raise AssertionError("get_connection blocks the loop")

    monkeypatch.setattr(BaseHook, "get_connection", blocking)

    async def test() -> dict[str, Any]:
        async with serving({"/json/": page("FINISHED", active=False)}) as server:
            connect(monkeypatch, server)
            return await fire(trigger())

    assert asyncio.run(test())["status"] == "ended"
