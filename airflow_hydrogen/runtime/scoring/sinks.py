"""DataFrame -> Sink: one partition replaced at once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.data.sources import count_rows
from airflow_hydrogen.runtime.storage import filesystems, swap

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def partition_uri(sink: Sink) -> str:
    """The folder that a run replaces: `uri/ds=2013-01-01`, or `uri` itself without a partition."""
    return uris.partition_uri(sink.uri, sink.partition)


def replace_partition(frame: DataFrame, sink: Sink, run: Run | None) -> int:
    """Write a partition completely, then put it in the place of the old one.

    The rows are written to a hidden neighbour first; a failure leaves the old partition as it was, and
    other partitions are never touched. The neighbour's name belongs to the run: a retry clears what a
    killed try left there.

    Args:
        frame: the rows, without the partition's columns.
        sink: where they go.
        run: the Airflow run, or None outside Airflow.

    Returns:
        Rows written.
    """
    target = partition_uri(sink)
    owner = hashlib.sha256(repr(run).encode()).hexdigest()[:12]
    staged = uris.sibling(target, f"staging-{owner}")
    try:
        frame.write.mode("overwrite").parquet(uris.spark_uri(staged))
        rows = count_rows(staged)
        swap.replace_tree(staged, target)
    except BaseException:
        filesystems.remove(staged)
        raise
    return rows
