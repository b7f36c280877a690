"""A folder of Parquet files, or many: staged beside it, exchanged or switched by `storage.swap`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.sinks import partitioned
from airflow_hydrogen.runtime.sinks.partitioned import PartitionedFiles
from airflow_hydrogen.runtime.sinks.staged import StagedFiles, replacing
from airflow_hydrogen.runtime.sinks.task_files import TaskTarget
from airflow_hydrogen.runtime.storage import filesystems
from airflow_hydrogen.runtime.storage.swap import Replacement


def require_writable(argument: str, sink: Sink) -> None:
    """Raise UnwritableUriError unless files can be written beside the partition, or the first of many."""
    filesystems.require_writable(argument, sink.folders[0] if sink.partition_by else str(sink.folder))


def placing(sink: Sink, run: Run | None) -> AbstractContextManager[Files | PartitionedFiles]:
    """Begin a try to replace a partition's folder, or those of many."""
    return partitioned.placing(sink, run) if sink.partition_by else _placing(sink, run)


@contextmanager
def _placing(sink: Sink, run: Run | None) -> Iterator[Files]:
    with replacing(str(sink.folder), run) as replacement:
        yield Files(replacement)


class Files(StagedFiles):
    """The files of one try.

    Args:
        replacement: of their folder.
    """

    def __init__(self, replacement: Replacement) -> None:
        super().__init__(replacement.target, replacement)
        self.by_tasks: TaskTarget = TaskTarget(replacement.staged, replacement.target)

    def commit(self, *, rows: int, model: str | None) -> None:
        """Put the files in the place of the old ones; see `Replacement.commit`."""
        self._replacement.commit(rows=rows, model=model)
