"""The driver's log, told in sight and with its details folded: what Airflow shows of a task.

Spark, TensorFlow and the ranks write many lines that nobody reads while all is well. They go into groups,
which Airflow's page folds; what tells how the job goes stands between the groups.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_hydrogen.contract.log_groups import BEGIN, END


class LogGroup:
    """A group that opens for details, and closes for what is to be seen.

    Args:
        title: of the group, as Airflow shows it.
        folded: print the marks. False outside Airflow, where they would be noise.
    """

    def __init__(self, title: str, folded: bool) -> None:
        self._title, self._folded = title, folded
        self._lock = threading.Lock()
        self._open = False

    def detail(self, text: str) -> None:
        """A line within the group."""
        with self._lock:
            self._begin()
            print(text, flush=True)

    def say(self, text: str) -> None:
        """A line in sight."""
        with self._lock:
            self._end()
            print(text, flush=True)

    def begin(self) -> None:
        """Open the group for what others write."""
        with self._lock:
            self._begin()

    def end(self) -> None:
        """Close the group."""
        with self._lock:
            self._end()

    def _begin(self) -> None:
        if self._folded and not self._open:
            print(f"{BEGIN}{self._title}", flush=True)
            self._open = True

    def _end(self) -> None:
        if self._open:
            print(END, flush=True)
            self._open = False


@contextmanager
def log_group(title: str, folded: bool) -> Iterator[LogGroup]:
    """Fold what is written until the block ends.

    Args:
        title, folded: as for LogGroup.
    """
    group = LogGroup(title, folded)
    group.begin()
    try:
        yield group
    finally:
        group.end()
