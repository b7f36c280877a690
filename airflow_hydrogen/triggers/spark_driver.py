"""Wait on the triggerer until a driver on a standalone cluster has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_hydrogen.clusters.drivers import Driver, StandaloneDrivers, end_driver, find_driver, look
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.session import Session
from airflow_hydrogen.contract.errors import ClusterUnreachableError, HydrogenError
from airflow_hydrogen.triggers.endpoints import endpoint_of_connection
from airflow_hydrogen.triggers.polls import DEFAULT_MAX_WAIT_S, Waiter, shared_answers

Drivers = dict[str, Driver]


class SparkDriverTrigger(BaseTrigger):
    """Fires when a driver has ended, however it did, or when waiting cannot help.

    The event has `driver_id`, `report_uri` and `status`: "ended", with `explanation` and `log_url`;
    "error" where the master refuses to say, with a `message`; "timeout", when the driver was
    ended at its time. A master that does not answer is asked again, after longer and longer waits. Ending the
    task in Airflow's UI ends the driver.

    A trigger that comes to run after its time, because no triggerer ran before, looks once all the same: that
    a driver has ended counts more than when.

    Args:
        conn_id: the Spark connection; credentials stay there.
        driver_id: `driver-20260101120000-0000`.
        report_uri: passed on to the event: where the driver writes its report.
        poll_interval_s: at least this often the master is asked, together with all other triggers.
        end_at: seconds since 1970 after which the driver is ended; None: never.
        max_wait_s: longest wait while it does not answer.
    """

    def __init__(
        self,
        conn_id: str,
        driver_id: str,
        report_uri: str,
        poll_interval_s: float,
        end_at: float | None = None,
        max_wait_s: float = DEFAULT_MAX_WAIT_S,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.driver_id = driver_id
        self.report_uri = report_uri
        self.poll_interval_s = poll_interval_s
        self.end_at = end_at
        self.max_wait_s = max_wait_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "conn_id": self.conn_id,
                "driver_id": self.driver_id,
                "report_uri": self.report_uri,
                "poll_interval_s": self.poll_interval_s,
                "end_at": self.end_at,
                "max_wait_s": self.max_wait_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then fire once."""
        payload: dict[str, str | None] = {"driver_id": self.driver_id, "report_uri": self.report_uri}
        try:
            driver = await self._wait_until_its_time()
            if driver is None:
                await self.on_kill()
                payload |= {"status": "timeout"}
            else:
                payload |= {
                    "status": "ended",
                    "explanation": driver.explanation,
                    "log_url": driver.log_url,
                }
        except HydrogenError as error:
            payload |= {"status": "error", "message": str(error)}
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]

    async def _wait_until_its_time(self) -> Driver | None:
        """The driver that has ended; None where its time is over and it has not, as far as can be seen."""
        try:
            return await asyncio.wait_for(self._wait(), self._seconds_left())
        except asyncio.TimeoutError:  # the built-in one since Python 3.11
            pass
        try:
            driver = await look(await endpoint_of_connection(self.conn_id), self.driver_id)
        except ClusterUnreachableError as error:
            self.log.warning("The driver's time is over, and its master does not answer: %s", error)
            return None
        return None if driver.active else driver

    async def _wait(self) -> Driver:
        endpoint = await endpoint_of_connection(self.conn_id)
        async with shared_answers(endpoint, ask_drivers, self.poll_interval_s, self.max_wait_s) as waiter:
            return await follow(waiter, self.driver_id, until=lambda driver: not driver.active, say=self._say)

    def _seconds_left(self) -> float | None:
        return None if self.end_at is None else max(0.0, self.end_at - time.time())

    def _say(self, news: str) -> None:
        self.log.info("%s", news)

    async def on_kill(self) -> None:
        """End the driver: somebody marked or cleared the task while it waited here."""
        self.log.info("Ending driver %s", self.driver_id)
        try:
            await end_driver(await endpoint_of_connection(self.conn_id), self.driver_id)
        except HydrogenError as error:
            self.log.error("Driver %s was not ended: %s", self.driver_id, error)


def ask_drivers(endpoint: ClusterEndpoint) -> Callable[[Session], Awaitable[Drivers]]:
    """The question what drivers a master knows."""
    return StandaloneDrivers(endpoint).snapshot


async def follow(
    waiter: Waiter[Drivers],
    driver_id: str,
    *,
    until: Callable[[Driver], bool],
    say: Callable[[str], None],
) -> Driver:
    """Look at a driver until it is as wanted.

    Args:
        waiter: who takes part in the poll of its master.
        driver_id: the driver's.
        until: tells that it is as wanted. A driver that has ended changes no more.
        say: called with what is new.

    Raises:
        HydrogenError: the master refuses to say; one that does not answer is waited for.
    """
    said = ""
    while True:
        outcome = await waiter.next()
        if isinstance(outcome, HydrogenError) and outcome.retryable:
            news = f"Waiting for the master: {outcome}"
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            driver = find_driver(outcome, driver_id)
            if until(driver):
                return driver
            news = f"{driver.explanation}" + (f"; its log: {driver.log_url}" if driver.log_url else "")
        if news != said:  # else the same line every minute, for hours
            say(news)
            said = news


async def wait_for_driver(
    endpoint: ClusterEndpoint,
    driver_id: str,
    poll_interval_s: float,
    *,
    until: Callable[[Driver], bool],
    say: Callable[[str], None],
) -> Driver:
    """Wait in this process, as the trigger does on the triggerer.

    Raises:
        HydrogenError: the master refuses to say.
    """
    async with shared_answers(endpoint, ask_drivers, poll_interval_s) as waiter:
        return await follow(waiter, driver_id, until=until, say=say)
