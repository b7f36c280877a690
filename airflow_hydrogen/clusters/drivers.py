"""Drivers on a standalone cluster: what the master's web interface says of them, and how to end one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from airflow_hydrogen.clusters.documents import reading
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.session import Session, ask_in_turn, open_session
from airflow_hydrogen.clusters.standalone import standby_state
from airflow_hydrogen.contract import log_groups
from airflow_hydrogen.contract.errors import ClusterResponseError

_DONE = "FINISHED"
_LOG_BYTES = 8_000
_LOG_LINES = 40
_LOG_TIMEOUT_S = 5.0
_WHY = {
    "FAILED": "its process ended with another exit code than 0; its log is on the worker that ran it",
    "ERROR": "the worker could not start it; the worker's log says why",
    "KILLED": "somebody ended it",
    "RELAUNCHING": "its worker was lost; what Spark starts in its place under another id gets no job",
    "GONE": "the master does not know it: it forgot its drivers when it was started again",
}


@dataclass(frozen=True)
class Driver:
    """A driver as the master sees it.

    Attributes:
        driver_id: `driver-20260101120000-0000`.
        state: the master's word: SUBMITTED, RUNNING, UNKNOWN (the master recovers), FINISHED, FAILED, KILLED,
            ERROR, RELAUNCHING; or GONE where it does not know the driver.
        active: the master has it among those that wait or run. RELAUNCHING is none of these: a driver whose
            worker was lost gets a successor with another id.
        log_url: where the worker shows its log, while that worker is known.
    """

    driver_id: str
    state: str
    active: bool
    log_url: str | None = None

    @property
    def waits(self) -> bool:
        """No worker has room for it yet, so that it has fetched nothing."""
        return self.active and self.state == "SUBMITTED"

    @property
    def finished(self) -> bool:
        """It ended with exit code 0."""
        return not self.active and self.state == _DONE

    @property
    def explanation(self) -> str:
        """What its state means, for a message."""
        why = _WHY.get(self.state)
        return f"driver {self.driver_id} is {self.state}" + (f": {why}" if why else "")


class StandaloneDrivers:
    """Follows the page that Spark 4.2 writes; of several masters the one that says ALIVE counts.

    The master's REST gateway tells the same, but Spark 4 no longer starts it by itself.
    """

    def __init__(self, endpoint: ClusterEndpoint) -> None:
        self._urls = list(endpoint.urls)

    async def snapshot(self, session: Session) -> dict[str, Driver]:
        """All drivers that the master remembers, by id: one request, to the master that was active last."""
        document = await ask_in_turn(session, self._urls, "/json/", standby_state)
        with reading(self._urls[0] + "/json/"):
            workers = {worker["id"]: worker["webuiaddress"] for worker in document["workers"]}
            drivers = [
                _driver(entry, workers, active=active)
                for active, name in ((True, "activedrivers"), (False, "completeddrivers"))
                for entry in document[name]
            ]
        return {driver.driver_id: driver for driver in drivers}

    async def kill(self, session: Session, driver_id: str) -> None:
        """Ask the active master to end a driver.

        The answer does not say whether there was one to end.

        Raises:
            ClusterUnreachableError: no master answered.
            ClusterResponseError: the master takes no such request.
        """
        # Only the active master acts: find it.
        await ask_in_turn(session, self._urls, "/json/", standby_state)
        url = f"{self._urls[0]}/driver/kill/"
        try:
            await session.post_form(url, {"id": driver_id, "terminate": "true"})
        except ClusterResponseError as error:
            raise ClusterResponseError(
                url,
                f"{error.problem}; the master ends drivers only while its own spark.ui.killEnabled is true, "
                "which is the default",
            ) from None


def find_driver(drivers: Mapping[str, Driver], driver_id: str) -> Driver:
    """A driver of a snapshot, GONE where the master does not know it."""
    return drivers.get(driver_id) or Driver(driver_id, "GONE", active=False)


async def end_driver(endpoint: ClusterEndpoint, driver_id: str) -> None:
    """End a driver, and do not wait for its end.

    Raises:
        ClusterError: the master does not answer, or takes no such request.
    """
    async with open_session(endpoint) as session:
        await StandaloneDrivers(endpoint).kill(session, driver_id)


async def look(endpoint: ClusterEndpoint, driver_id: str) -> Driver:
    """A driver at this moment.

    Raises:
        ClusterError: the master does not say.
    """
    async with open_session(endpoint) as session:
        return find_driver(await StandaloneDrivers(endpoint).snapshot(session), driver_id)


async def log_tail(log_url: str) -> str:
    """The last lines of a driver's log, from its worker, or why there are none.

    The connection's credentials are for the master and are not shown to the worker.
    """
    url = log_url.replace("/logPage/", "/log/") + f"&byteLength={_LOG_BYTES}"
    try:
        async with httpx.AsyncClient(timeout=_LOG_TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"(the log at {log_url} cannot be read: {type(error).__name__})"
    if answer.status_code != httpx.codes.OK:
        return f"(the log at {log_url} cannot be read: status {answer.status_code})"
    # Its first line says which bytes follow.
    lines = answer.text.partition("\n")[2].splitlines()
    return "\n".join([line for line in lines if not log_groups.is_mark(line)][-_LOG_LINES:])


def _driver(entry: Mapping[str, Any], workers: Mapping[str, str], *, active: bool) -> Driver:
    driver_id = entry["id"]
    address = workers.get(entry.get("worker") or "")
    return Driver(
        driver_id=driver_id,
        state=entry["state"],
        active=active,
        log_url=f"{address}/logPage/?driverId={driver_id}&logType=stdout" if address else None,
    )
