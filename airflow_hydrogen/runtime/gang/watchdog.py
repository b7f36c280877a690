"""Find a gang that makes no progress, and the rank that holds it up. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_hydrogen.runtime.progress import Beat


@dataclass(frozen=True)
class RankState:
    """What the driver knows of a rank.

    Attributes:
        host: where it runs.
        beat: the last that was received.
        heard_at: when, on the driver's clock, in seconds.
        moved_at: when a beat had more marks than the one before, on the driver's clock.
        speaks: its process has sent a beat. Before that it is only starting.
    """

    host: str
    beat: Beat
    heard_at: float
    moved_at: float
    speaks: bool = False

    @property
    def stopped_at(self) -> float:
        """When it left its last mark, on the driver's clock."""
        return self.heard_at - self.beat.idle_s

    def after(self, beat: Beat, now: float) -> RankState:
        """The state once another beat has come."""
        moved_at = now if beat.marks > self.beat.marks else self.moved_at
        return RankState(self.host, beat, now, moved_at, speaks=True)


@dataclass(frozen=True)
class Stall:
    """A gang that makes no progress.

    Attributes:
        rank: the one that holds it up.
        host: where that rank runs.
        summary: why it is taken for that one.
    """

    rank: int
    host: str
    summary: str


def find_stall(
    ranks: Mapping[int, RankState], now: float, timeout_s: float, start_timeout_s: float
) -> Stall | None:
    """Look for a rank that does not answer, then for a gang in which nothing moves.

    A process that is frozen sends no beats. A rank that skipped a collective does, but it stands elsewhere
    than the others, which wait for it. As long as no rank has left a mark, nothing is known about progress:
    a `main` may prepare for as long as it wants.

    Args:
        ranks: those that have been heard, by rank.
        now: on the clock of the states, in seconds.
        timeout_s: how long a rank may not answer, and the gang not move, in seconds.
        start_timeout_s: how long a rank may take to its first answer, where that is more.
    """
    for rank, state in sorted(ranks.items()):
        silent_s = now - state.heard_at
        if silent_s >= (timeout_s if state.speaks else max(timeout_s, start_timeout_s)):
            return Stall(
                rank,
                state.host,
                f"its process has not answered for {silent_s:.0f} s (stall_timeout_s={timeout_s:g}): it is "
                f"frozen, or its host is gone; it was last at {state.beat.activity!r}",
            )
    if not any(state.beat.marks for state in ranks.values()):
        return None
    still_s = now - max(state.moved_at for state in ranks.values())
    if still_s < timeout_s:
        return None
    rank = odd_one_out(ranks)
    state = ranks[rank]
    others = {other.beat.activity for number, other in ranks.items() if number != rank}
    waiting = f", the others at {', '.join(map(repr, sorted(others)))}" if others else ""
    where = "".join(f"\n  {line}" for line in state.beat.stack)
    return Stall(
        rank,
        state.host,
        f"the gang has made no progress for {still_s:.0f} s (stall_timeout_s={timeout_s:g}): this rank is at "
        f"{state.beat.activity!r}{waiting}" + (f"; it stands in{where}" if where else ""),
    )


def odd_one_out(ranks: Mapping[int, RankState]) -> int:
    """The rank that most likely holds up the others.

    Those that wait in a call of Horovod wait for it. Inside a graph nobody knows who waits: there the others
    stand at the same step, and came to it after the one stopped.

    Args:
        ranks: at least one.
    """
    common = Counter(state.beat.activity for state in ranks.values())

    def likely(rank: int) -> tuple[bool, int, float, int]:
        beat = ranks[rank].beat
        return beat.waiting, common[beat.activity], ranks[rank].stopped_at, rank

    return min(ranks, key=likely)
