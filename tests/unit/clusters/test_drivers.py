"""The drivers of a standalone master: what its page says, and how one is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from airflow_hydrogen.clusters.drivers import Driver, StandaloneDrivers, find_driver, log_tail
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.contract.errors import ClusterResponseError, ClusterUnreachableError
from tests.unit.clusters.fakes import FakeSession, Server, document

URL = "http://m:8080"
PAGE = f"{URL}/json/"


class FormSession(FakeSession):
    """Takes forms, and answers them with an error if there is one."""

    error: Exception | None = None

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__(answers)
        self.forms: list[tuple[str, Mapping[str, str]]] = []

    async def post_form(self, url: str, fields: Mapping[str, str]) -> None:
        self.forms.append((url, fields))
        if self.error is not None:
            raise self.error


def drivers(page: Any) -> dict[str, Driver]:
    master = StandaloneDrivers(ClusterEndpoint("spark://m:7077", (URL,)))
    return asyncio.run(master.snapshot(FakeSession({PAGE: page})))


def test_page_of_spark_4_2() -> None:
    found = drivers(document("standalone_drivers"))
    assert {driver.driver_id[-4:]: (driver.state, driver.active) for driver in found.values()} == {
        "0000": ("FINISHED", False),
        "0001": ("RUNNING", True),
        "0002": ("RUNNING", True),
    }
    running = found["driver-20261123071635-0002"]
    assert running.log_url is not None
    assert running.log_url.startswith("http://127.0.0.3:")
    assert running.log_url.endswith("/logPage/?driverId=driver-20261123071635-0002&logType=stdout")
    assert found["driver-20261123071526-0000"].log_url  # its worker is still there
    assert found["driver-20261123071526-0000"].finished


def test_a_driver_without_a_worker_waits() -> None:
    page = document("standalone_drivers")
    entry = {**page["activedrivers"][0], "state": "SUBMITTED", "worker": "None"}
    (driver,) = drivers({**page, "activedrivers": [entry], "completeddrivers": []}).values()
    assert driver.waits
    assert driver.log_url is None


def test_a_driver_that_the_master_does_not_know_is_gone() -> None:
    gone = find_driver({}, "driver-1")
    assert (gone.state, gone.active, gone.finished) == ("GONE", False, False)
    assert "the master does not know it" in gone.explanation


def test_a_page_of_another_form_is_an_error_that_names_the_field() -> None:
    with pytest.raises(ClusterResponseError, match="without the field 'activedrivers'"):
        drivers({"status": "ALIVE", "workers": []})


def test_the_active_master_is_asked_to_end_a_driver() -> None:
    other = "http://other:8080"
    session = FormSession({PAGE: {"status": "STANDBY"}, f"{other}/json/": {"status": "ALIVE"}})
    master = StandaloneDrivers(ClusterEndpoint("spark://m:7077,other:7077", (URL, other)))
    asyncio.run(master.kill(session, "driver-1"))
    assert session.forms == [(f"{other}/driver/kill/", {"id": "driver-1", "terminate": "true"})]


def test_a_master_that_ends_nothing_says_which_setting_forbids_it() -> None:
    session = FormSession({PAGE: {"status": "ALIVE"}})
    session.error = ClusterResponseError(f"{URL}/driver/kill/", "answered with status 404")
    master = StandaloneDrivers(ClusterEndpoint("spark://m:7077", (URL,)))
    with pytest.raises(ClusterResponseError, match=r"status 404; .*spark.ui.killEnabled is true"):
        asyncio.run(master.kill(session, "driver-1"))


def test_a_master_that_is_down_ends_nothing() -> None:
    session = FormSession({PAGE: ClusterUnreachableError(PAGE, "ConnectError")})
    master = StandaloneDrivers(ClusterEndpoint("spark://m:7077", (URL,)))
    with pytest.raises(ClusterUnreachableError):
        asyncio.run(master.kill(session, "driver-1"))
    assert session.forms == []


def test_the_last_lines_of_a_log_come_from_the_worker() -> None:
    text = "==== Bytes 0-9 of 9 of /work/stdout ====\n" + "\n".join(f"line {n}" for n in range(60))
    text += "\n::endgroup::"  # Airflow would take it for its own

    async def test() -> tuple[str, str, str]:
        server = Server(lambda path, headers: (200, {}, text.encode()))
        await server.open()
        url = f"{server.url}/logPage/?driverId=driver-1&logType=stdout"
        found = await log_tail(url)
        server.respond = lambda path, headers: (404, {}, b"")
        refused = await log_tail(url)
        await server.close()
        assert server.requests[0][0] == "/log/?driverId=driver-1&logType=stdout&byteLength=8000"
        return found, refused, await log_tail(url)

    found, refused, silent = asyncio.run(test())
    assert found.splitlines() == [f"line {n}" for n in range(20, 60)]
    assert refused.endswith("cannot be read: status 404)")
    assert silent.endswith("cannot be read: ConnectError)")
