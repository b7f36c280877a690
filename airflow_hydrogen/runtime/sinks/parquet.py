"""A folder of Parquet files: staged beside it, exchanged or switched by `storage.swap`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.sinks.staged import StagedFiles, replacing
from airflow_hydrogen.runtime.sinks.task_files import TaskTarget
from airflow_hydrogen.runtime.storage import filesystems
from airflow_hydrogen.runtime.storage.swap import Replacement


def require_writable(argument: str, sink: Sink) -> None:
    """Raise UnwritableUriError unless files can be written beside the partition."""
    filesystems.require_writable(argument, str(sink.folder))


@contextmanager
def placing(sink: Sink, run: Run | None) -> Iterator[Files]:
    """Begin a try to replace a partition's folder."""
    with replacing(str(sink.folder), run) as replacement:
        yield Files(replacement)


class Files(StagedFiles):
    """The files of one try.

    Args:
        replacement: of their folder.
    """

    def __init__(self, replacement: Replacement) -> None:
        super().__init__(replacement.target, replacement)
        self.by_tasks = TaskTarget(replacement.staged, replacement.target)

    def commit(self, *, rows: int, model: str | None) -> None:
        """Put the files in the place of the old ones; see `Replacement.commit`."""
        self._replacement.commit(rows=rows, model=model)
