"""Rows -> Parquet, counted in the tasks that write them: by those who write, not by those who look."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import RowsNotCountedError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Observation

_TIMEOUT_S = 300


def write_parquet(frame: DataFrame, uri: str, **options: object) -> int:
    """Write Parquet to a new folder.

    Args:
        frame: the rows.
        uri: the folder.
        options: of Spark's writer.

    Returns:
        Rows written.

    Raises:
        RowsNotCountedError: they were written, but Spark does not say how many.
    """
    from pyspark.sql import Observation, functions

    counter = Observation()
    observed = frame.observe(counter, functions.count(functions.lit(1)).alias("rows"))
    observed.write.options(**options).parquet(uris.spark_uri(uri))  # type: ignore[arg-type]
    return int(counted(counter)["rows"])


def write_with_notes(frame: DataFrame, uri: str, notes: str) -> tuple[int, list[str]]:
    """Write Parquet to a new folder, of rows among which some carry a note to the driver and nothing else.

    Args:
        frame: the rows.
        uri: the folder.
        notes: the column of the notes, one line each, which is not written; null in rows that are.

    Returns:
        Rows written, and the notes. Of a task that ran more than once, those of the try that Spark accepted.

    Raises:
        RowsNotCountedError: they were written, but Spark does not say how many.
    """
    from pyspark.sql import Observation, functions

    counter = Observation()
    note = functions.col(notes)
    observed = frame.observe(
        counter,
        functions.count_if(note.isNull()).alias("rows"),
        functions.concat_ws("\n", functions.collect_list(note)).alias("notes"),
    )
    observed.where(note.isNull()).drop(notes).write.parquet(uris.spark_uri(uri))
    found = counted(counter)
    return int(found["rows"]), found["notes"].splitlines()


def counted(counter: Observation) -> dict[str, Any]:
    """What Spark has counted. It says so by an event, and drops events when it has too many of them."""
    answer: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=lambda: answer.put(counter.get), daemon=True).start()
    try:
        return answer.get(timeout=_TIMEOUT_S)
    except queue.Empty:
        raise RowsNotCountedError(_TIMEOUT_S) from None
