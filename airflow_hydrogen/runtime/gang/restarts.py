"""What to do when a gang has failed: start it again, wait, or give up. Pure.

The shape follows Ray Train's failure policy: a frozen status in, a decision out, and a loop elsewhere that
acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """What the user asked for.

    Attributes:
        np: ranks of the gang.
        max_restarts: restarts in all.
        min_np: the fewest ranks to go on with; None: no fewer than `np`.
        start_timeout_s: how long to wait for slots, in seconds.
    """

    np: int
    max_restarts: int
    min_np: int | None
    start_timeout_s: float

    @property
    def fewest(self) -> int:
        """Ranks that must fit."""
        return self.np if self.min_np is None else min(self.min_np, self.np)


@dataclass(frozen=True, kw_only=True)
class GangStatus:
    """A gang that has failed.

    Attributes:
        program_error: `main` raised: the same would happen again.
        restarts: how often the gang was started again before.
        rank_died: it was the process of a rank alone that ended, and Spark has lost nothing.
        slots: task slots that are free now.
        since_s: seconds since it failed.
    """

    program_error: bool
    restarts: int
    rank_died: bool
    slots: int
    since_s: float


@dataclass(frozen=True)
class Restart:
    """Start the gang again, with so many ranks."""

    np: int


@dataclass(frozen=True)
class Wait:
    """Look again later.

    Attributes:
        why: for the log.
    """

    why: str


@dataclass(frozen=True)
class GiveUp:
    """The failure is final.

    Attributes:
        why: for the log.
    """

    why: str


Decision = Restart | Wait | GiveUp


def backoff_s(restarts: int, rank_died: bool) -> float:
    """How long to wait before the next restart: 1 s, and twice as long each time, up to a minute.

    A rank that dies for the first time is no reason to wait. Where an executor or a host is gone, Spark needs
    its time to miss the slots.

    Args:
        restarts: how many there were.
        rank_died: nothing else is known to be gone.
    """
    if rank_died and restarts == 0:
        return 0.0
    return min(MAX_BACKOFF_S, BACKOFF_S * float(2 ** min(restarts, 10)))


def decide(policy: RestartPolicy, status: GangStatus) -> Decision:
    """What to do about a failed gang.

    A program error is final: a restart would raise it again. Any other fault is worth `max_restarts`
    restarts, each after its back-off and once there are slots for all ranks, or for `min_np`.
    """
    if status.program_error:
        return GiveUp("main raised an error, which a restart would meet again")
    if status.restarts >= policy.max_restarts:
        return GiveUp(f"no restart is left of max_restarts={policy.max_restarts}")
    pause_s = backoff_s(status.restarts, status.rank_died)
    if status.since_s < pause_s:
        return Wait(f"back-off of {pause_s:g} s")
    if status.slots >= policy.fewest:
        return Restart(min(policy.np, status.slots))
    if status.since_s - pause_s < policy.start_timeout_s:
        return Wait(f"{status.slots} of {policy.fewest} task slots are free")
    return GiveUp(
        f"{status.slots} task slots are free, {policy.fewest} are needed, after "
        f"{policy.start_timeout_s:g} s (start_timeout_s)"
    )
