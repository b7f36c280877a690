"""DataFrame -> Sink: one partition replaced at once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import RowsLostError
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.data.counting import write_parquet
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.storage import swap

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def partition_uri(sink: Sink) -> str:
    """The folder that a run replaces: `uri/ds=2013-01-01`, or `uri` itself without a partition."""
    return uris.partition_uri(sink.uri, sink.partition)


def replace_partition(frame: DataFrame, sink: Sink, run: Run | None, model_uri: str | None = None) -> int:
    """Write a partition completely, then put it in the place of the old one.

    The rows are written to a hidden neighbour first; a failure leaves the old partition as it was, and
    other partitions are never touched. Tries share nothing, and the newest wins (`swap.replacing`).

    Args:
        frame: the rows, without the partition's columns.
        sink: where they go.
        run: the Airflow run, or None outside Airflow.
        model_uri: what made the rows, for the partition's list of files.

    Returns:
        Rows written.

    Raises:
        RowsLostError: the executors wrote other rows than the driver finds.
        RowsNotCountedError: Spark does not say how many they wrote.
        PartitionTakenError: a newer try writes the same partition.
    """
    target = partition_uri(sink)
    with swap.replacing(target, dataclasses.asdict(run) if run else None) as replacement:
        written = write_parquet(frame, replacement.staged)
        replacement.require_owner()  # a newer try removes what this one has staged
        found = count_rows(replacement.staged)
        if written != found:
            raise RowsLostError(target, written, found)
        replacement.commit(rows=written, model=model_uri)
    return written
