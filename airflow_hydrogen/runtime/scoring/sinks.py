"""Scored rows -> their sink: all or none, and with them the partition of the bad ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import RowCountError, RowsLostError
from airflow_hydrogen.contract.jobs import InferenceJob
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT, Account
from airflow_hydrogen.runtime.scoring.quarantine import Quarantine
from airflow_hydrogen.runtime.sinks import parquet
from airflow_hydrogen.runtime.sinks.placements import Placement, placing
from airflow_hydrogen.runtime.storage import swap

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


Listed = int | Callable[[], int] | None
"""Rows of the source: their number, or what asks for it once they have been scored; None: nobody knows."""


@dataclass(frozen=True)
class Written:
    """What became of the rows of a source.

    Attributes:
        rows: scored, and written.
        dropped: bad ones that are nowhere.
        quarantined: bad ones in a partition of their own.
        bad: fault -> bad rows that have it.
    """

    rows: int
    dropped: int = 0
    quarantined: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    @property
    def rows_in(self) -> int:
        """Rows that were read."""
        return self.rows + self.dropped + self.quarantined

    def plus(self, other: Written) -> Written:
        """Both together."""
        return Written(
            self.rows + other.rows,
            self.dropped + other.dropped,
            self.quarantined + other.quarantined,
            self.bad + other.bad,
        )

    def require_sum(self, read: Listed, uri: str) -> None:
        """Raise RowCountError where other rows were read than these."""
        read = read() if callable(read) else read
        if read is not None and read != self.rows_in:
            raise RowCountError(uri, read, self.rows, self.dropped, self.quarantined)


def replace(frame: DataFrame, job: InferenceJob, listed: Listed = None) -> Written:
    """Put all scored rows in place at once.

    They are staged first; a failure leaves what was there as it was, and other partitions are never touched.
    Tries share nothing, and the newest wins.

    Args:
        frame: the rows, without the partition's columns.
        job: what is scored.
        listed: rows of the source, where somebody else has counted them.

    Raises:
        RowCountError: other rows were read than are written.
        RowsLostError: the executors wrote other rows than the driver finds.
        RowsNotCountedError: Spark does not say how many they wrote.
        PartitionTakenError: a newer try writes the same partition.
    """
    with placing(frame.sparkSession, job.sink, job.run, job.access) as scores:
        rows, _ = scores.stage(frame, None)
        _require_all(scores, rows)
        written = Written(rows)
        written.require_sum(listed, scores.name)
        scores.commit(rows=rows, model=uris.canonical(job.model_uri))
    return written


def replace_sifted(
    frame: DataFrame, job: InferenceJob, quarantine: Quarantine | None, listed: Listed
) -> Written:
    """Put the rows that were scored in place, and in the quarantine's those that were not.

    Nothing is replaced before all rows are accounted for. Then the quarantine is, and the scores after it: a
    job that dies between the two leaves the scores as they were. Nobody finds new scores whose missing rows
    are nowhere, and the retry replaces both.

    Args:
        frame: scored rows and the accounts of tasks, from one pass over the source.
        job: what is scored.
        quarantine: where tasks leave bad rows; None: they are dropped.
        listed: rows of the source, where somebody else has counted them.

    Raises:
        BadRowsError: more than the job allows.
        ModelFailedError: the model has scored no row.
        RowCountError: a row is neither scored nor set aside.
        RowsLostError, RowsNotCountedError, PartitionTakenError: see `replace`.
    """
    model = uris.canonical(job.model_uri)
    with ExitStack() as tries:
        kept = None
        if quarantine is not None:
            kept = tries.enter_context(parquet.placing(job.quarantine_sink, job.run))
            tries.callback(swap.sweep, quarantine.folder)
        scores = tries.enter_context(placing(frame.sparkSession, job.sink, job.run, job.access))
        rows, notes = scores.stage(frame, ACCOUNT)
        account = Account.total(map(Account.loads, notes))
        account.require_working_model(rows)
        account.require_few(job.max_bad_rows, scores.name)
        _require_all(scores, rows)
        if kept is None or quarantine is None:
            written = Written(rows, dropped=account.rows_bad, bad=account.bad)
        else:
            kept.require_owner()
            found = quarantine.accept(account.files, kept.staged)
            if found != account.rows_bad:
                raise RowsLostError(kept.name, account.rows_bad, found)
            written = Written(rows, quarantined=found, bad=account.bad)
        written.require_sum(account.rows_in, scores.name)
        written.require_sum(listed, scores.name)
        if kept is not None:
            kept.commit(rows=written.quarantined, model=model)
        scores.commit(rows=rows, model=model)
    return written


def _require_all(scores: Placement, written: int) -> None:
    """Raise unless the driver finds the rows that the executors have staged."""
    scores.require_owner()  # a newer try removes what this one has staged
    found = scores.count()
    if written != found:
        raise RowsLostError(scores.name, written, found)
