"""What the driver knows of a running gang: who has started, who makes progress, what has failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.runtime.gang.logs import GangLog
from airflow_hydrogen.runtime.gang.watchdog import RankState, find_stall
from airflow_hydrogen.runtime.progress import INIT, Beat
from airflow_hydrogen.runtime.rank.failures import RankFailure, first_cause

_CHECK_S = 0.25
_CAUSE_WAIT_S = 3.0  # for the cause behind a consequence, and for tasks to end by themselves
_SILENT_S = 10.0


class GangMonitor:
    """Receives what the ranks say, ends the gang when one fails, and names the cause.

    Args:
        size: ranks.
        options: of the gang.
        log: where lines and reports go.
        on_failure: called once, from any thread, when the ranks have to end.
        on_overdue: called once when they had time to end, or when not all of them have started in time.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        size: int,
        options: GangOptions,
        log: GangLog,
        *,
        on_failure: Callable[[], None],
        on_overdue: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size, self._options, self._log = size, options, log
        self._on_failure, self._on_overdue = on_failure, on_overdue
        self._clock = clock
        self._changed = threading.Condition()
        self._ranks: dict[int, RankState] = {}
        self._returned: set[int] = set()
        self._failures: list[RankFailure] = []
        self._failed_at: float | None = None
        self._began = clock()
        self._missing: str | None = None
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._run, name="gang-watch", daemon=True)

    def __enter__(self) -> GangMonitor:
        self._watch.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._closed.set()
        self._watch.join()

    # --- what the ranks say --------------------------------------------------------------------------

    def started(self, rank: int, host: str) -> None:
        """A rank's task has begun."""
        now = self._clock()
        with self._changed:
            self._ranks[rank] = RankState(host, Beat(), now, now)
            self._returned.discard(rank)  # where Spark runs a stage again

    def line(self, rank: int, text: str) -> None:
        """A line of a rank's output."""
        self._log.line(rank, text)

    def report(self, rank: int, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        """A rank's `report`; rank 0's is shown, the others say the same."""
        if rank == 0:
            self._log.report(metrics, seconds_left)

    def beat(self, rank: int, beat: Beat) -> None:
        """A rank's sign of life."""
        with self._changed:
            if rank in self._ranks:
                self._ranks[rank] = self._ranks[rank].after(beat, self._clock())

    def returned(self, rank: int) -> None:
        """`main` has returned on a rank: it is not waited for any more."""
        with self._changed:
            self._returned.add(rank)

    def failed(self, failure: RankFailure) -> None:
        """A rank has failed: the gang ends."""
        with self._changed:
            self._failures.append(self._explained(failure))
            first = self._failed_at is None
            if first:
                self._failed_at = self._clock()
            self._changed.notify_all()
        if first:
            self._on_failure()

    # --- what became of it ---------------------------------------------------------------------------

    @property
    def missing(self) -> str | None:
        """Says that not all ranks started in time; None where they did."""
        return self._missing

    def cause(self) -> RankFailure | None:
        """The failure to blame, waited for if only its consequences have come so far."""
        deadline = self._clock() + _CAUSE_WAIT_S
        with self._changed:
            while not any(failure.is_cause for failure in self._failures):
                left = deadline - self._clock()
                if left <= 0 or not self._changed.wait(left):
                    break
            return first_cause(self._failures)

    def silent(self) -> str:
        """The ranks that have not been heard for a while, for messages; empty where all have."""
        now = self._clock()
        with self._changed:
            failed = {failure.rank for failure in self._failures}
            found = [
                f"rank {rank} on {state.host} ({now - state.heard_at:.0f} s)"
                for rank, state in sorted(self._ranks.items())
                if now - state.heard_at >= _SILENT_S and rank not in failed | self._returned
            ]
        return ", ".join(found)

    # --- watching ------------------------------------------------------------------------------------

    def _run(self) -> None:
        overdue = False
        while not self._closed.wait(_CHECK_S):
            self._check_progress()
            if not overdue and self._is_overdue():
                overdue = True
                self._on_overdue()

    def _check_progress(self) -> None:
        timeout_s = self._options.stall_timeout_s
        with self._changed:
            watched = {rank: state for rank, state in self._ranks.items() if rank not in self._returned}
            # Until all are there those that are wait for the others, and that has a limit of its own.
            ready = len(self._ranks) == self._size and self._failed_at is None
        if timeout_s is None or not ready or not watched:
            return
        if stall := find_stall(watched, self._clock(), timeout_s, self._options.start_timeout_s):
            self.failed(RankFailure(stall.rank, stall.host, "stall", stall.summary))

    def _is_overdue(self) -> bool:
        now = self._clock()
        with self._changed:
            if self._failed_at is not None:
                return now - self._failed_at >= _CAUSE_WAIT_S
            if len(self._ranks) == self._size or now - self._began < self._options.start_timeout_s:
                return False
            self._missing = (
                f"{len(self._ranks)} of {self._size} ranks started within "
                f"{self._options.start_timeout_s:g} s (start_timeout_s): the others' task slots are taken, "
                "or their executors do not start"
            )
            return True

    def _explained(self, failure: RankFailure) -> RankFailure:
        """Say who was missing where a process was aborted by Gloo, which says nothing itself."""
        state = self._ranks.get(failure.rank)
        if failure.kind != "process" or state is None or not state.beat.activity.startswith(INIT):
            return failure
        absent = [
            f"rank {rank} on {other.host} (at {other.beat.activity!r})"
            for rank, other in sorted(self._ranks.items())
            if not other.beat.activity.startswith(INIT)
        ]
        who = f"these have not come to it: {', '.join(absent)}" if absent else "all ranks have come to it"
        return replace(failure, summary=f"{failure.summary} in {INIT}, where it waited for its peers; {who}")
