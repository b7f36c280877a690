"""What a Spark Connect server has, as far as it tells: there is no SparkContext to ask."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING

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


def cores_of_task(spark: SparkSession) -> int:
    """Cores that a task has for its computations."""
    return int(spark.conf.get("spark.task.cpus", "1") or 1)
