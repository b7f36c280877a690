"""Rows -> Parquet, counted in the tasks that write them: by those who write, not by those who look."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

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
    return counted(counter)


def counted(counter: Observation) -> int:
    """What Spark has counted. It says so by an event, and drops events when it has too many of them."""
    answer: queue.Queue[int] = queue.Queue()
    threading.Thread(target=lambda: answer.put(int(counter.get["rows"])), daemon=True).start()
    try:
        return answer.get(timeout=_TIMEOUT_S)
    except queue.Empty:
        raise RowsNotCountedError(_TIMEOUT_S) from None
