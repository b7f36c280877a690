"""Scored rows -> their sink: all or none, and with them the partition of the bad ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import RowCountError, RowsLostError
from airflow_hydrogen.contract.jobs import InferenceJob
from airflow_hydrogen.runtime.data import sources
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT, Account
from airflow_hydrogen.runtime.sinks import parquet
from airflow_hydrogen.runtime.sinks.placements import Placement, placing
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles
from airflow_hydrogen.runtime.storage import filesystems, swap

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from airflow_hydrogen.runtime.scoring.planning import Scoring
    from airflow_hydrogen.runtime.scoring.watching import RowCounter


@dataclass(frozen=True)
class Written:
    """What became of the rows of a source.

    Attributes:
        rows: scored, and written.
        dropped: bad ones that are nowhere.
        quarantined: bad ones in a partition of their own.
        bad: fault -> bad rows that have it.
        notes: what the log has to say of the tasks.
        batch_rows: as an account has them.
        partitions: folder of a partition below the table's -> rows of it, where many are replaced.
    """

    rows: int
    dropped: int = 0
    quarantined: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()
    batch_rows: Counter[int] = field(default_factory=Counter)
    partitions: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows_in(self) -> int:
        """Rows that were read."""
        return self.rows + self.dropped + self.quarantined

    def rows_of_call(self, job: InferenceJob) -> int | None:
        """Rows of one call of the model: what the job says, or what workers have found for the most rows."""
        if job.batch_rows != "auto":
            return job.batch_rows
        return self.batch_rows.most_common(1)[0][0] if self.batch_rows else None

    def plus(self, other: Written) -> Written:
        """Both together."""
        return Written(
            self.rows + other.rows,
            self.dropped + other.dropped,
            self.quarantined + other.quarantined,
            self.bad + other.bad,
            tuple(dict.fromkeys([*self.notes, *other.notes])),
            self.batch_rows + other.batch_rows,
        )

    def require_sum(self, read: int | None, uri: str) -> None:
        """Raise RowCountError where other rows were read than these."""
        if read is not None and read != self.rows_in:
            raise RowCountError(uri, read, self.rows, self.dropped, self.quarantined)


def place(
    spark: SparkSession,
    scoring: Scoring,
    job: InferenceJob,
    counter: RowCounter | None = None,
    require_turn: Callable[[], None] = lambda: None,
) -> Written:
    """Score, and put the rows in place: those that were scored in the sink, the bad ones in the quarantine.

    Nothing is replaced before all rows are accounted for. Then the quarantine is, and the scores after it: a
    job that dies between the two leaves the scores as they were. Nobody finds new scores whose missing rows
    are nowhere, and the retry replaces both. Tries share nothing, and the newest wins. Many partitions are
    replaced one by one, each at once, those of the quarantine first.

    Args:
        spark: the session.
        scoring: what tasks do.
        job: what is scored.
        counter: is told what Spark's rows stand for.
        require_turn: called when all is staged; raises where somebody else is to place it, or has done so.

    Raises:
        BadRowsError: more than the job allows.
        ModelFailedError: the model has scored no row.
        RowCountError: a row is neither scored nor set aside.
        RowsLostError: the executors wrote other rows than the driver finds.
        RowsNotCountedError: Spark does not say how many it wrote.
        SourceError, DatasetChangedError: the source has changed since it was opened.
        PartitionTakenError: a newer try writes the same partition.
    """
    model = uris.canonical(job.model_uri)
    with ExitStack() as tries:
        kept = bad_output = None
        if scoring.bad_rows is not None:
            kept = tries.enter_context(parquet.placing(job.quarantine_sink, job.run))
            folder = _folder_of(kept.by_tasks.place, tries)
            bad_output = kept.by_tasks.fitted(TaskFiles("quarantine", folder, scoring.bad_rows))
        scores = tries.enter_context(
            placing(spark, job.sink, job.run, job.access, scoring.types, scoring.schema, job.batch)
        )
        target, output = scores.by_tasks, None
        if target is not None and scoring.is_written_by_workers(target.staged):
            output = target.fitted(scoring.files(_folder_of(target.place, tries)))
            if counter is not None:
                counter.rows_each = scoring.scorer.rows_told
        with sources.explained(job.source):
            account = _computed(scoring.frame(output, bad_output), scores, output)
            scoring.require_same_files()
        account.require_working_model()
        account.require_few(job.max_bad_rows, scores.name)
        scores.require_owner()  # a newer try removes what this one has staged
        require_turn()
        _require_each(scores.found(output, account.files), account.rows, account.partitions)
        written = Written(
            account.rows,
            dropped=account.rows_bad,
            bad=account.bad,
            notes=tuple(account.notes),
            batch_rows=account.batch_rows,
            partitions={
                uris.partition_folders(partition): account.partitions[number]
                for number, partition in enumerate(job.sink.partitions)
            },
        )
        if kept is not None and bad_output is not None:
            kept.require_owner()
            kept_rows = kept.found(bad_output, account.bad_files)
            _require_each(kept_rows, account.rows_bad, account.bad_partitions)
            written = replace(written, dropped=0, quarantined=account.rows_bad)
        written.require_sum(account.rows_in, scores.name)
        written.require_sum(scoring.rows, scores.name)
        if kept is not None:
            kept.commit(rows=written.quarantined, model=model)
        scores.commit(rows=written.rows, model=model)
    return written


def _computed(frame: DataFrame, scores: Placement, output: TaskFiles | None) -> Account:
    """Score, and see what became of the rows, by the accounts of those tries of tasks that Spark accepted."""
    if output is None:
        rows, notes = scores.stage(frame, ACCOUNT)
    else:
        notes = [note for (note,) in frame.where(f"{ACCOUNT} is not null").collect()]
    account = Account.total(map(Account.loads, notes))
    if output is None:
        _require_all(scores.name, account.rows, rows)
    return account


def _folder_of(target: str, tries: ExitStack) -> str:
    """A folder for the files of tasks beside a target, swept when its try ends.

    It is made here alone: a task that nobody waits for any more finds none, and leaves nothing behind.
    """
    folder = swap.staging_uri(target, swap.new_token())
    tries.callback(swap.sweep, folder)
    filesystems.make_folder(folder)
    return folder


def _require_each(found: Mapping[str, int], rows: int, partitions: Counter[int]) -> None:
    """Raise unless all rows are there that the tasks have written, of each partition where these are many."""
    for number, (target, there) in enumerate(found.items()):
        _require_all(target, partitions[number] if partitions else rows, there)


def _require_all(target: str, written: int, found: int) -> None:
    """Raise unless all rows are there that the tasks have written."""
    if written != found:
        raise RowsLostError(target, written, found)
