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
    """

    host: str
    beat: Beat
    heard_at: float
    moved_at: float

    def after(self, beat: Beat, now: float) -> RankState:
        """The state once another beat has come."""
        moved_at = now if beat.marks > self.beat.marks else self.moved_at
        return RankState(self.host, beat, now, moved_at)


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


def find_stall(ranks: Mapping[int, RankState], now: float, timeout_s: float) -> Stall | None:
    """Look for a rank that does not answer, then for a gang in which nothing moves.

    A process that is frozen sends no beats. A rank that skipped a collective does, but it stands elsewhere
    than the others, which wait for it. As long as no rank has left a mark, nothing is known about progress:
    a `main` may prepare for as long as it wants.

    Args:
        ranks: those that have been heard, by rank.
        now: on the clock of the states, in seconds.
        timeout_s: how long a rank may not answer, and the gang not move, in seconds.
    """
    for rank, state in sorted(ranks.items()):
        silent_s = now - state.heard_at
        if silent_s >= timeout_s:
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
    rank = odd_one_out({rank: state.beat for rank, state in ranks.items()})
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


def odd_one_out(beats: Mapping[int, Beat]) -> int:
    """The rank that most likely holds up the others.

    Those that wait for it stand at the same activity, and came there after it stopped: of the ranks at the
    rarest activity it is the one that has not moved for longest.

    Args:
        beats: the last beat of each rank, at least one.
    """
    common = Counter(beat.activity for beat in beats.values())
    return min(beats, key=lambda rank: (common[beats[rank].activity], -beats[rank].idle_s, rank))
