"""What sinks have in common that stage rows as files: a hidden folder, of the newest try alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.runtime.data.counting import stage
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles, TaskTarget
from airflow_hydrogen.runtime.storage import swap
from airflow_hydrogen.runtime.storage.swap import Replacement

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def replacing(place: str, run: Run | None, name: str | None = None) -> AbstractContextManager[Replacement]:
    """Begin a try of a run; see `swap.replacing`.

    Args:
        place: what it puts its files beside.
        run: the Airflow run, or None.
        name: how messages call what is replaced, where that is not the place.
    """
    return swap.replacing(place, run_of(run), name)


def run_of(run: Run | None) -> dict[str, Any] | None:
    """A run as messages and lists of files name it."""
    return dataclasses.asdict(run) if run else None


class StagedFiles:
    """The files of one try; see `Placement`.

    Args:
        name: of what is replaced, for messages.
        replacement: of the place that they are staged beside.
    """

    by_tasks: TaskTarget | None = None

    def __init__(self, name: str, replacement: Replacement) -> None:
        self.name = name
        self._replacement = replacement

    def stage(self, frame: DataFrame, notes: str | None) -> tuple[int, list[str]]:
        """Let Spark write the rows to a hidden folder."""
        return stage(frame, self._replacement.staged, notes)

    def count(self) -> int:
        """The rows in the files that were staged."""
        return count_rows(self._replacement.staged)

    def found(self, files: TaskFiles | None, names: Sequence[str]) -> dict[str, int]:
        """Bring what tasks have written to where it is staged, and count its rows; see `Placement`."""
        if files is None:
            return {self.name: self.count()}
        assert self.by_tasks is not None, "tasks have nowhere to write"
        return {self.name: files.accept(names, self.by_tasks.staged)}

    def require_owner(self) -> None:
        """Raise PartitionTakenError where a newer try has begun."""
        self._replacement.require_owner()
