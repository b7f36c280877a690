"""What a Spark Connect server has, as far as it tells: there is no SparkContext to ask."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SPLITS = re.compile(r"\bsplits=(?:Some\()?(\d+)")


def task_slots(spark: SparkSession) -> int:
    """Tasks that can run at the same time: what Spark cuts rows into where nobody says.

    The plan of a range says so, and no job has to run for it.
    """
    plan = io.StringIO()
    with contextlib.redirect_stdout(plan):
        spark.range(1).explain()
    found = _SPLITS.search(plan.getvalue())
    return max(1, int(found.group(1))) if found else 1


def run_tasks(
    spark: SparkSession,
    tasks: int,
    task: Callable[[Iterable[int]], Iterable[Any] | None],
    *,
    barrier: bool = False,
) -> list[Any]:
    """Run a function in tasks of their own, as `RDD.mapPartitions` does.

    Args:
        spark: the session.
        tasks: how many.
        task: gets nothing, and gives answers that can be pickled.
        barrier: all of them run at the same time, or none.

    Returns:
        The answers.
    """
    import pyarrow as pa

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _batch in batches:  # of one number, which says no more than the task's own
            for answer in task(()) or ():
                yield pa.RecordBatch.from_arrays([pa.array([pickle.dumps(answer)], pa.binary())], ["answer"])

    numbers = spark.range(0, tasks, 1, tasks)
    rows = numbers.mapInArrow(run, "answer binary", barrier=barrier).collect()
    return [pickle.loads(row.answer) for row in rows]
