"""Which attempts of tasks count: rows carry the number of theirs, and the driver learns whose Spark accepts.

Spark runs a task again that failed after its rows had been written, and may run it twice at the same time. Of
the files of such tasks it keeps one try's; rows in a database stay, whoever wrote them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd
from pyspark import SparkContext, TaskContext
from pyspark.accumulators import Accumulator, AccumulatorParam
from pyspark.sql import DataFrame, functions
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import LongType

ATTEMPT = "hydrogen_attempt"
"""The column of the number, which no two attempts of an application share."""


class Attempts:
    """What accepted attempts have told.

    Args:
        context: of the application.
    """

    def __init__(self, context: SparkContext) -> None:
        self._told: Accumulator[Counter[int]] = context.accumulator(Counter(), _Sum())

    def numbered(self, frame: DataFrame) -> DataFrame:
        """Rows with `ATTEMPT`, to be written in the job that computes them and in no later one."""
        told = self._told

        def number(partition: pd.Series) -> pd.Series:
            context = TaskContext.get()
            assert context is not None
            attempt = context.taskAttemptId()
            told.add(Counter({attempt: len(partition)}))
            return pd.Series(attempt, index=partition.index, dtype="int64")

        number.__annotations__ = {"partition": pd.Series, "return": pd.Series}
        column = pandas_udf(number, LongType())  # type: ignore[call-overload]
        return frame.withColumn(ATTEMPT, column(functions.spark_partition_id()))

    @property
    def rows(self) -> Mapping[int, int]:
        """Accepted attempt -> rows, once the job has ended."""
        return dict(self._told.value)


class _Sum(AccumulatorParam["Counter[int]"]):
    """Counts of tasks. Spark adds those of an attempt once it has accepted it, and of one for each task."""

    def zero(self, value: Counter[int]) -> Counter[int]:
        return Counter()

    def addInPlace(self, value1: Counter[int], value2: Counter[int]) -> Counter[int]:
        return value1 + value2


def condition(column: str, attempts: Mapping[int, int]) -> str:
    """An SQL condition for the rows of attempts; their numbers follow one another, but for a few.

    Args:
        column: of the number, quoted.
        attempts: accepted ones.
    """
    ranges: list[tuple[int, int]] = []
    for attempt in sorted(attempts):
        if ranges and ranges[-1][1] == attempt - 1:
            ranges[-1] = (ranges[-1][0], attempt)
        else:
            ranges.append((attempt, attempt))
    return "(" + (" or ".join(f"{column} between {a} and {b}" for a, b in ranges) or "1 = 0") + ")"
