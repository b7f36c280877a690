"""DataFrame -> Sink: one partition replaced at once, and with it the partition of its bad rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import RowCountError, RowsLostError
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink
from airflow_hydrogen.runtime.data.counting import write_parquet, write_with_notes
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT, Account
from airflow_hydrogen.runtime.scoring.quarantine import Quarantine
from airflow_hydrogen.runtime.storage import swap

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def partition_uri(sink: Sink) -> str:
    """The folder that a run replaces: `uri/ds=2013-01-01`, or `uri` itself without a partition."""
    return uris.partition_uri(sink.uri, sink.partition)


def replace_partition(
    frame: DataFrame,
    sink: Sink,
    run: Run | None,
    model_uri: str | None = None,
    listed: int | None = None,
) -> int:
    """Write a partition completely, then put it in the place of the old one.

    The rows are written to a hidden neighbour first; a failure leaves the old partition as it was, and
    other partitions are never touched. Tries share nothing, and the newest wins (`swap.replacing`).

    Args:
        frame: the rows, without the partition's columns.
        sink: where they go.
        run: the Airflow run, or None outside Airflow.
        model_uri: what made the rows, for the partition's list of files.
        listed: rows of the source, where they were counted before; None: nobody knows.

    Returns:
        Rows written.

    Raises:
        RowCountError: other rows were read than are written.
        RowsLostError: the executors wrote other rows than the driver finds.
        RowsNotCountedError: Spark does not say how many they wrote.
        PartitionTakenError: a newer try writes the same partition.
    """
    target = partition_uri(sink)
    with swap.replacing(target, _run_of(run)) as replacement:
        written = write_parquet(frame, replacement.staged)
        _require_all(replacement, written)
        Written(written).require_sum(listed, target)
        replacement.commit(rows=written, model=model_uri)
    return written


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

    def require_sum(self, read: int | None, uri: str) -> None:
        """Raise RowCountError where other rows were read than these."""
        if read is not None and read != self.rows_in:
            raise RowCountError(uri, read, self.rows, self.dropped, self.quarantined)


def replace_sifted(
    frame: DataFrame, job: InferenceJob, quarantine: Quarantine | None, listed: int | None
) -> Written:
    """Replace a partition with the rows that were scored, and the quarantine's with those that were not.

    Nothing is replaced before all rows are accounted for. Then the quarantine is, and the scores after it: a
    job that dies between the two leaves the scores as they were. Nobody finds new scores whose missing rows
    are nowhere, and the retry replaces both.

    Args:
        frame: scored rows and the accounts of tasks, from one pass over the source.
        job: what is scored.
        quarantine: where tasks leave bad rows; None: they are dropped.
        listed: rows of the source, where they were counted before; None: nobody knows.

    Raises:
        BadRowsError: more than the job allows.
        ModelFailedError: the model has scored no row.
        RowCountError: a row is neither scored nor set aside.
        RowsLostError, RowsNotCountedError, PartitionTakenError: see `replace_partition`.
    """
    target, run, model = partition_uri(job.sink), _run_of(job.run), uris.canonical(job.model_uri)
    with ExitStack() as tries:
        kept = None
        if quarantine is not None:
            kept = tries.enter_context(swap.replacing(partition_uri(job.quarantine_sink), run))
            tries.callback(swap.sweep, quarantine.folder)
        scores = tries.enter_context(swap.replacing(target, run))
        rows, notes = write_with_notes(frame, scores.staged, ACCOUNT)
        account = Account.total(map(Account.loads, notes))
        account.require_working_model(rows)
        account.require_few(job.max_bad_rows, target)
        _require_all(scores, rows)
        if kept is None or quarantine is None:
            written = Written(rows, dropped=account.rows_bad, bad=account.bad)
        else:
            kept.require_owner()
            found = quarantine.accept(account.files, kept.staged)
            if found != account.rows_bad:
                raise RowsLostError(kept.target, account.rows_bad, found)
            written = Written(rows, quarantined=found, bad=account.bad)
        written.require_sum(account.rows_in, target)
        written.require_sum(listed, target)
        if kept is not None:
            kept.commit(rows=written.quarantined, model=model)
        scores.commit(rows=rows, model=model)
    return written


def _require_all(replacement: swap.Replacement, written: int) -> None:
    """Raise unless the driver finds the rows that the executors have staged."""
    replacement.require_owner()  # a newer try removes what this one has staged
    found = count_rows(replacement.staged)
    if written != found:
        raise RowsLostError(replacement.target, written, found)


def _run_of(run: Run | None) -> dict[str, object] | None:
    return dataclasses.asdict(run) if run else None
