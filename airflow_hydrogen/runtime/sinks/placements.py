"""One try to put rows where a sink says, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.contract.streams import Batch
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.sinks import delta, hive, iceberg, jdbc, kafka, parquet
from airflow_hydrogen.runtime.sinks.tables import Types
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles, TaskTarget

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType


class Placement(Protocol):
    """Rows on their way: staged where no reader looks, then committed, all of them or none.

    Attributes:
        name: of what is replaced, for messages.
    """

    name: str

    @property
    def by_tasks(self) -> TaskTarget | None:
        """Where tasks may write the rows themselves; None where these have to go through Spark."""
        ...

    def stage(self, frame: DataFrame, notes: str | None) -> tuple[int, list[str]]:
        """Let Spark compute the rows and put them where no reader finds them.

        Args:
            frame: the rows, without the partition's columns; of many partitions with `PARTITION`.
            notes: a column in which tasks leave notes to the driver, and which is not written: rows that
                carry one hold nothing else. None: there is none.

        Returns:
            Rows staged, as the tasks have counted them, and the notes: of a task that ran more than once,
            those of the try that Spark accepted.
        """
        ...

    def found(self, files: TaskFiles | None, names: Sequence[str]) -> dict[str, int]:
        """Bring what tasks have written to where it is staged, and count what is staged.

        Args:
            files: where tasks have written; None: Spark has written the rows.
            names: their files, of those tries that Spark has accepted.

        Returns:
            Name of what is replaced -> the rows that the driver finds staged of it: one, or one for each of
            many partitions, in the order of the sink's.
        """
        ...

    def require_owner(self) -> None:
        """Raise PartitionTakenError where a newer try has taken the place over."""
        ...

    def commit(self, *, rows: int, model: str | None) -> None:
        """Put what is staged in place.

        Args:
            rows: how many there are, for what is written of the partition.
            model: what made them, likewise.
        """
        ...


def require_writable(sink: Sink, access: Access) -> None:
    """Find out that a sink cannot be written before any work is done.

    Raises:
        HydrogenError: with what to change.
    """
    if sink.kind == "jdbc":
        jdbc.require_writable(sink, access)
    elif sink.kind == "iceberg":
        iceberg.require_writable(sink, access)
    elif sink.kind == "delta":
        delta.require_writable(sink)
    elif sink.kind == "parquet":
        parquet.require_writable("sink", sink)


def require_fits(
    spark: SparkSession, sink: Sink, access: Access, types: Types, frame: DataFrame, notes: str
) -> None:
    """Find out that a table does not hold rows before they are computed, where the sink is one.

    Args:
        spark: the session.
        sink: where they are to go.
        access: what opens the sink's connection.
        types: of the partition's columns, where the source has them.
        frame: the rows, and notes.
        notes: see `Placement.stage`.

    Raises:
        HydrogenError: with all that does not fit.
    """
    if sink.kind == "delta":
        delta.require_fits(spark, sink, types, frame, notes)
    elif sink.kind == "jdbc":
        jdbc.require_fits(sink, access, types, frame, notes)


def batches(spark: SparkSession, sink: Sink) -> dict[str, int] | None:
    """The streams that have written a sink: id -> newest batch; None where it does not say."""
    return delta.batches(spark, sink) if sink.kind == "delta" else None


def placing(
    spark: SparkSession,
    sink: Sink,
    run: Run | None,
    access: Access,
    types: Types | None = None,
    schema: StructType | None = None,
    batch: Batch | None = None,
) -> AbstractContextManager[Placement]:
    """Begin a try: the block stages and commits; what it leaves uncommitted is swept.

    Args:
        spark: the session.
        sink: where rows go.
        run: the Airflow run, or None outside Airflow.
        access: what opens the sink's connection.
        types: of the partition's columns, where the source has them.
        schema: of the rows, without the partition's columns; None: Spark writes them, and never tasks.
        batch: of a stream, or None.

    Raises:
        InvalidJobError: rows are to be appended, and nobody says by which run.
        PartitionTakenError: a newer try has begun meanwhile.
    """
    if sink.mode == "append":
        raise InvalidJobError(
            "mode='append' needs a run, by which its rows are known again: outside Airflow give the job one"
        )
    if sink.kind == "jdbc":
        return jdbc.placing(sink, run, access, types or {}, batch)
    if sink.kind == "iceberg":
        assert schema is not None, "its files are made for its columns"
        return iceberg.placing(sink, run, access, types or {}, schema)
    if sink.kind == "delta":
        return delta.placing(spark, sink, run, types or {}, batch, schema)
    if sink.kind == "hive":
        return hive.placing(spark, sink, run)
    if sink.kind == "kafka":
        return kafka.placing(spark, sink, run, access)
    return parquet.placing(sink, run)
