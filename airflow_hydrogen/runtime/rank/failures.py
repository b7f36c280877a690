"""Why a rank or a gang failed, as plain values that travel as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from airflow_hydrogen.contract.errors import GangError, PeerUnreachableError, RankFailedError, StallError

FailureKind = Literal["main", "process", "peer", "network", "stall"]


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

    def to_error(self) -> RankFailedError:
        """The exception that the driver raises for it."""
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


def is_program_error(error: GangError) -> bool:
    """Tell whether `main` itself raised, so that a restart would meet the same error again."""
    return isinstance(error, RankFailedError) and error.error_type is not None
