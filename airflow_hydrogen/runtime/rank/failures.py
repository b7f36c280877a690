"""Why a rank or a gang failed, as plain values that travel as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from airflow_hydrogen.contract.errors import (
    GangError,
    GangLostError,
    PeerUnreachableError,
    RankFailedError,
    StallError,
)

FailureKind = Literal["main", "process", "peer", "network", "stall"]

# What a rank reads whose peer is gone, whichever framework wraps it. Small tensors are still being agreed on
# when the peer goes, and Horovod says that it shuts down; large ones are being sent, and Gloo's own error
# comes through, which names the line of Gloo's source. All of Gloo's errors but the last do.
_LOST_PEER = re.compile(
    r"Horovod has been shut down|/gloo/[\w/]+\.(?:cc|h):\d+\]|Application timeout caused pair closure"
)
# HorovodInternalError is also raised where the ranks ask for different things, which they would again.
_DISAGREEMENT = re.compile(r"Mismatched |not supported|rank-zero tensor|HOROVOD_FUSION_THRESHOLD")


@dataclass(frozen=True)
class RankFailure:
    """Why a rank ended without a result.

    Attributes:
        kind: what failed. "main": it raised, and would again. "process": the rank's process died. "peer":
            Horovod told this rank that another one is gone; the cause lies there. "network": this rank does
            not reach another. "stall": the watchdog ended it.
        summary: in a line.
        error_type: qualified name of the exception in `main`.
        remote_traceback: its traceback.
        log_tail: the rank's last lines.
    """

    rank: int
    host: str
    kind: FailureKind
    summary: str
    error_type: str | None = None
    remote_traceback: str | None = None
    log_tail: tuple[str, ...] = ()

    @property
    def is_cause(self) -> bool:
        """Not the consequence of another rank's failure."""
        return self.kind != "peer"

    def to_error(self, silent: str = "") -> GangError:
        """The exception that the driver raises for it.

        Args:
            silent: the ranks that are not heard any more, for the message.
        """
        if not self.is_cause:
            gone = f"; not heard any more: {silent}" if silent else ""
            return GangLostError(
                f"rank {self.rank} on {self.host} lost its peers, and none of them said why{gone}: "
                f"{self.summary}"
            )
        kind = {"stall": StallError, "network": PeerUnreachableError}.get(self.kind, RankFailedError)
        return kind(
            self.rank,
            self.host,
            self.summary,
            error_type=self.error_type,
            remote_traceback=self.remote_traceback,
            log_tail=self.log_tail,
        )


def first_cause(failures: Sequence[RankFailure]) -> RankFailure | None:
    """The failure that came first and is not another's consequence; else the first; None of none."""
    return next((failure for failure in failures if failure.is_cause), failures[0] if failures else None)


def lost_peer(error: BaseException) -> str | None:
    """The line of an exception in `main` that says that another rank is gone; None where it says nothing so.

    Judged by what Horovod and Gloo write, since every framework wraps it in an error of its own: TensorFlow's
    UnknownError, Keras's error of a whole graph, HorovodInternalError under PyTorch. An error that was raised
    because of such a one, or while it was handled, is a consequence as well. Where ranks ask for different
    things, it is the program that is wrong.
    """
    return next(filter(None, map(_lost_peer, _chain(error))), None)


def _lost_peer(error: BaseException) -> str | None:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = next((line.strip() for line in lines if _LOST_PEER.search(line)), None)
    if type(error).__name__ == "HorovodInternalError" and _DISAGREEMENT.search(str(error)) is None:
        return said or lines[0]
    return said


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that it was raised from or while they were handled."""
    seen = set[int]()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def is_death_of_a_rank(error: GangError) -> bool:
    """Tell whether the process of a rank ended, as its task said, which itself lived on as all others did."""
    return type(error) is RankFailedError and error.error_type is None and error.tasks_ended


def is_program_error(error: GangError) -> bool:
    """Tell whether `main` itself raised, so that a restart would meet the same error again."""
    return isinstance(error, RankFailedError) and error.error_type is not None
