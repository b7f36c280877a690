"""Wait on the triggerer until a cluster has what is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_hydrogen.clusters.requirement import Requirement, fits
from airflow_hydrogen.clusters.snapshot import ClusterSnapshot
from airflow_hydrogen.contract.errors import HydrogenError, NeverEnoughError
from airflow_hydrogen.triggers.endpoints import endpoint_of_connection
from airflow_hydrogen.triggers.polls import DEFAULT_MAX_WAIT_S, shared_poll


class GPUClusterTrigger(BaseTrigger):
    """Fires when the cluster has what is required, or when waiting cannot help.

    The event is `{"status": "success", "snapshot": {...}}` or `{"status": "error", "message": ...}`. A
    cluster manager that does not answer is asked again, after longer and longer waits, until the task's
    timeout.

    Args:
        conn_id: the Spark connection; credentials stay there.
        requirement: `Requirement.to_dict()`.
        poke_interval_s: at least this often the cluster manager is asked, together with all other triggers.
        max_wait_s: longest wait while it does not answer.
    """

    def __init__(
        self,
        conn_id: str,
        requirement: dict[str, Any],
        poke_interval_s: float,
        max_wait_s: float = DEFAULT_MAX_WAIT_S,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.requirement = requirement
        self.poke_interval_s = poke_interval_s
        self.max_wait_s = max_wait_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "conn_id": self.conn_id,
                "requirement": self.requirement,
                "poke_interval_s": self.poke_interval_s,
                "max_wait_s": self.max_wait_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then fire once."""
        try:
            snapshot = await self._wait()
            payload = {"status": "success", "snapshot": snapshot.to_dict()}
        except HydrogenError as error:
            payload = {"status": "error", "message": str(error)}
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]

    async def _wait(self) -> ClusterSnapshot:
        requirement = Requirement.from_dict(self.requirement)
        endpoint = await endpoint_of_connection(self.conn_id)
        said = ""
        async with shared_poll(endpoint, self.poke_interval_s, self.max_wait_s) as waiter:
            while True:
                outcome = await waiter.next()
                if isinstance(outcome, HydrogenError) and outcome.retryable:
                    news = f"Waiting for the cluster manager: {outcome}"
                elif isinstance(outcome, Exception):
                    raise outcome
                elif (decision := fits(outcome, requirement)).fits:
                    return outcome
                elif outcome.fixed:
                    raise NeverEnoughError(outcome.master, str(decision))
                else:
                    news = f"Waiting for {requirement}: {decision}"
                if news != said:  # else the same line every minute, for hours
                    self.log.info("%s", news)
                    said = news
