"""Run a gang to its end: start it again from its checkpoint where the infrastructure failed it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from airflow_hydrogen.contract.errors import GangError
from airflow_hydrogen.runtime.gang.restarts import (
    Decision,
    GangStatus,
    GiveUp,
    Restart,
    RestartPolicy,
    Wait,
    backoff_s,
    decide,
)
from airflow_hydrogen.runtime.rank.failures import is_death_of_a_rank, is_program_error
from airflow_hydrogen.runtime.rank.task import RankTask

_POLL_S = 0.1


@dataclass
class GangResult:
    """What became of a gang.

    Attributes:
        answer: the pickled answer of rank 0.
        np: ranks of the last start.
        restarts: why it was started again, a line each.
    """

    answer: bytes
    np: int
    restarts: list[str] = field(default_factory=list)


def run_supervised(
    attempt: Callable[[RankTask, int], bytes],
    task: RankTask,
    policy: RestartPolicy,
    *,
    free_slots: Callable[[], int],
    say: Callable[[str], None],
) -> GangResult:
    """Run a gang, and again after each fault that is worth it.

    Args:
        attempt: runs it once, with so many ranks.
        task: what every rank runs.
        policy: when to start again.
        free_slots: task slots that are free now.
        say: writes a line of the driver's log.

    Raises:
        GangError: of the attempt that was the last.
    """
    np, restarts = policy.np, list[str]()
    while True:
        try:
            answer = attempt(dataclasses.replace(task, attempt=len(restarts)), np)
            return GangResult(answer, np, restarts)
        except GangError as error:
            reason = str(error).partition("\n")[0]
            say(f"failed: {reason}")
            decision = _wait_for_decision(policy, error, len(restarts), free_slots, say)
            if isinstance(decision, GiveUp):
                say(f"giving up: {decision.why}")
                raise
            np = decision.np
            restarts.append(reason)
            fewer = f", fewer than the {policy.np} it began with" if np < policy.np else ""
            say(f"restart {len(restarts)} of {policy.max_restarts} with np={np}{fewer}")


def _wait_for_decision(
    policy: RestartPolicy,
    error: GangError,
    restarts: int,
    free_slots: Callable[[], int],
    say: Callable[[str], None],
) -> Restart | GiveUp:
    failed_at = time.monotonic()
    rank_died = is_death_of_a_rank(error)
    pause_s = backoff_s(restarts, rank_died)
    said = ""
    while True:
        since_s = time.monotonic() - failed_at
        status = GangStatus(
            program_error=is_program_error(error),
            restarts=restarts,
            rank_died=rank_died,
            # Spark is not asked before it had the time to miss what is gone.
            slots=free_slots() if since_s >= pause_s else 0,
            since_s=since_s,
        )
        decision: Decision = decide(policy, status)
        if not isinstance(decision, Wait):
            return decision
        if decision.why != said:
            said = decision.why
            say(f"waiting: {said}")
        time.sleep(_POLL_S)
