"""A folder of Parquet files: staged beside it, exchanged or switched by `storage.swap`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.data.counting import stage
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.storage import filesystems, swap
from airflow_hydrogen.runtime.storage.swap import Replacement

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def require_writable(argument: str, sink: Sink) -> None:
    """Raise UnwritableUriError unless files can be written beside the partition."""
    filesystems.require_writable(argument, str(sink.folder))


@contextmanager
def placing(sink: Sink, run: Run | None) -> Iterator[Files]:
    """Begin a try to replace a partition's folder."""
    with swap.replacing(str(sink.folder), dataclasses.asdict(run) if run else None) as replacement:
        yield Files(replacement)


class Files:
    """The files of one try.

    Args:
        replacement: of their folder.
    """

    def __init__(self, replacement: Replacement) -> None:
        self.name = replacement.target
        self.staged = replacement.staged
        self._replacement = replacement

    def stage(self, frame: DataFrame, notes: str | None) -> tuple[int, list[str]]:
        """Write the rows to a hidden neighbour; see `Placement`."""
        return stage(frame, self.staged, notes)

    def count(self) -> int:
        """The rows in the files that were staged."""
        return count_rows(self.staged)

    def require_owner(self) -> None:
        """Raise PartitionTakenError where a newer try has begun."""
        self._replacement.require_owner()

    def commit(self, *, rows: int, model: str | None) -> None:
        """Put the files in the place of the old ones; see `Replacement.commit`."""
        self._replacement.commit(rows=rows, model=model)
