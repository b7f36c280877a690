"""Rows -> files, counted in the tasks that write them: by those who write, not by those who look."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import RowsNotCountedError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Observation

_TIMEOUT_S = 300


def write_files(
    frame: DataFrame, uri: str, form: str = "parquet", options: Mapping[str, str] | None = None
) -> int:
    """Write files to a new folder.

    Args:
        frame: the rows.
        uri: the folder.
        form: of the files, as Spark's writer calls it.
        options: of Spark's writer.

    Returns:
        Rows written.

    Raises:
        RowsNotCountedError: they were written, but Spark does not say how many.
    """
    from pyspark.sql import Observation, functions

    counter = Observation()
    observed = frame.observe(counter, functions.count(functions.lit(1)).alias("rows"))
    observed.write.format(form).options(**options or {}).save(uris.spark_uri(uri))
    return int(counted(counter)["rows"])


def stage(
    frame: DataFrame, uri: str, notes: str | None, form: str = "parquet", by: str | None = None
) -> tuple[int, list[str]]:
    """Write files to a new folder, of rows that carry notes or of rows that do not.

    Args:
        frame: the rows.
        uri: the folder.
        notes: see `write_with_notes`; None: there are none.
        form: of the files, as Spark's writer calls it.
        by: see `write_with_notes`; only where there are notes.

    Returns:
        Rows written, and the notes.
    """
    if notes is None:
        return write_files(frame, uri, form), []
    return write_with_notes(frame, uri, notes, form, by)


def write_with_notes(
    frame: DataFrame, uri: str, notes: str, form: str = "parquet", by: str | None = None
) -> tuple[int, list[str]]:
    """Write files to a new folder, of rows among which some carry a note to the driver and nothing else.

    Args:
        frame: the rows.
        uri: the folder.
        notes: the column of the notes, one line each, which is not written; null in rows that are.
        form: of the files, as Spark's writer calls it.
        by: a column for each value of which there is a folder; None: there are none.

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
    writer = observed.where(note.isNull()).drop(notes).write.format(form)
    (writer.partitionBy(by) if by else writer).save(uris.spark_uri(uri))
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
