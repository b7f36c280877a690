"""How far a scoring is, while it runs: rows that came back from the Python workers, as Spark counts them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

EVERY_S = 10.0

_NODE = "MapInArrow"
_METRIC = "number of output rows"


@contextmanager
def progress_told(
    count: Callable[[], int],
    total: int | None,
    say: Callable[[str], None],
    every_s: float = EVERY_S,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Tell the progress now and then until the block ends, from a thread.

    A count that fails ends the telling, with a line that says why; the block goes on.

    Args:
        count: rows so far.
        total: of the rows; None where nobody knows.
        say: gets a line.
        every_s: seconds from one line to the next.
        clock: monotonic seconds.
    """
    ended = threading.Event()
    started = clock()

    def watch() -> None:
        while not ended.wait(every_s):
            try:
                rows = count()
            except Exception as error:  # py4j's and Spark's own have no common base
                if not ended.is_set():  # else the session may have gone with the block
                    say(f"Spark does not say how far the scoring is: {type(error).__name__}: {error}")
                return
            if rows:
                say(progress_line(rows, total, clock() - started))

    thread = threading.Thread(target=watch, name="scoring-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def progress_line(rows: int, total: int | None, seconds: float) -> str:
    """One line of progress. Pure.

    Args:
        rows: scored so far, at least one.
        total: rows there are; None where nobody knows.
        seconds: since the scoring began, the start of its workers included.
    """
    rows = rows if total is None else min(rows, total)  # the last batch of a task is seldom whole
    rate = rows / max(seconds, 1e-9)
    if total is None:
        return f"scored {rows:,} rows, {rate:,.0f} rows/s"
    left = (total - rows) / rate
    return f"scored {rows:,} of {total:,} rows, {rate:,.0f} rows/s, about {left:.0f} s left"


class RowCounter:
    """Counts the rows that come back from the Python workers, running tasks' among them.

    Executors report them with their heartbeats, every ten seconds unless `spark.executor.heartbeatInterval`
    says otherwise. There is no public interface to them in Python; this is what Spark's SQL page shows.

    Args:
        spark: the session; what it has run so far is not counted.

    Attributes:
        rows_each: scored rows for which one row comes back, where the workers write them themselves.
    """

    rows_each = 1

    def __init__(self, spark: SparkSession) -> None:
        jsession: Any = spark._jsparkSession
        self._store = jsession.sharedState().statusStore()
        self._known = self._last_execution()

    def __call__(self) -> int:
        """Rows so far."""
        execution = self._last_execution()
        if execution == self._known:
            return 0
        values = self._store.executionMetrics(execution)
        # From the write down to the read: a `mapInArrow` of the user's own `prepare` stands below ours.
        for node in _each(self._store.planGraph(execution).allNodes()):
            if node.name() == _NODE:
                for metric in _each(node.metrics()):
                    value = values.get(metric.accumulatorId())
                    if metric.name() == _METRIC and value.isDefined():
                        return int(value.get().replace(",", "")) * self.rows_each
                return 0
        return 0

    def _last_execution(self) -> int:
        executions = self._store.executionsList()
        return int(executions.last().executionId()) if executions.size() else -1


def _each(sequence: Any) -> Iterator[Any]:
    """The items of a Scala sequence."""
    return (sequence.apply(place) for place in range(sequence.size()))
