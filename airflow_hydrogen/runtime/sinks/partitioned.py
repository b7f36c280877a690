"""Many folders of Parquet files: all of them staged first, then one after the other put in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import HydrogenError, PartlyReplacedError
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.data.counting import stage
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.sinks.divided_files import PARTITION, partition_of
from airflow_hydrogen.runtime.sinks.staged import run_of
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles, TaskTarget, new_name
from airflow_hydrogen.runtime.storage import filesystems, swap
from airflow_hydrogen.runtime.storage.swap import Replacement

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@contextmanager
def placing(sink: Sink, run: Run | None) -> Iterator[PartitionedFiles]:
    """Begin a try to replace the folders of all partitions that a sink declares."""
    with swap.replacing_all(sink.folders, run_of(run)) as replacements:
        files = PartitionedFiles(str(sink.folder), replacements)
        try:
            yield files
        finally:
            files.sweep()


class PartitionedFiles:
    """The files of one try; see `Placement`.

    Args:
        name: of the table, for messages.
        replacements: of the partitions' folders.
    """

    def __init__(self, name: str, replacements: Sequence[Replacement]) -> None:
        self.name = name
        first = replacements[0]
        self.by_tasks = TaskTarget(first.staged, first.target, divided=True)
        self._replacements = replacements
        self._rows: list[int] = []
        self._by_spark = swap.staging_uri(first.target, swap.new_token())
        self._none: DataFrame | None = None

    def stage(self, frame: DataFrame, notes: str | None) -> tuple[int, list[str]]:
        """Let Spark write the rows of all partitions to a hidden folder, by the column `PARTITION`."""
        self._none = frame.where("false").drop(PARTITION, *([notes] if notes else []))
        return stage(frame, self._by_spark, notes, by=PARTITION)

    def found(self, files: TaskFiles | None, names: Sequence[str]) -> dict[str, int]:
        """Bring what tasks or Spark have written to where it is staged, and count the rows of each partition.

        A partition without rows gets a file without rows: whoever reads it finds its columns.
        """
        if files is not None:
            files.bring(names, self._place)
        else:
            written = [name for name, _size in filesystems.list_files(self._by_spark) if "/" in name]
            filesystems.transfer_all({uris.join(self._by_spark, name): self._place(name) for name in written})
        self._rows = filesystems.many(lambda one: count_rows(one.staged), self._replacements)
        if empty := [one for one, rows in zip(self._replacements, self._rows, strict=True) if not rows]:
            content = self._without_rows() if files is None else files.without_rows()
            filesystems.many(
                lambda one: filesystems.write_bytes(uris.join(one.staged, new_name()), content), empty
            )
        return {one.name: rows for one, rows in zip(self._replacements, self._rows, strict=True)}

    def require_owner(self) -> None:
        """Raise PartitionTakenError where a newer try has begun to replace one of the partitions."""
        filesystems.many(Replacement.require_owner, self._replacements)

    def commit(self, *, rows: int, model: str | None) -> None:
        """Put the files of each partition in the place of its old ones; see `Replacement.commit`.

        Raises:
            PartlyReplacedError: it failed when some were in place. Before that it raises what happened.
        """
        self.require_owner()
        replaced: list[str] = []

        def put_in_place(number: int) -> None:
            self._replacements[number].commit(rows=self._rows[number], model=model)
            replaced.append(uris.parse(self._replacements[number].target).path.removeprefix(self._path))

        try:
            filesystems.many(put_in_place, range(len(self._replacements)))
        except Exception as error:
            if not replaced:
                raise
            replaced.sort()
            print(f"these partitions hold the new rows: {', '.join(replaced)}", flush=True)
            said = swap.taken_meanwhile(self._replacements, error) or error
            retryable = said.retryable if isinstance(said, HydrogenError) else True
            raise PartlyReplacedError(
                self.name, replaced, len(self._replacements), str(said) or repr(said), retryable=retryable
            ) from error

    def sweep(self) -> None:
        """Remove what Spark has written and is not staged."""
        if self._none is not None:
            swap.sweep(self._by_spark)

    @property
    def _path(self) -> str:
        return uris.parse(self.name).path + "/"

    def _place(self, name: str) -> str:
        number, base = partition_of(name)
        return uris.join(self._replacements[number].staged, base)

    def _without_rows(self) -> bytes:
        """A file as Spark writes it where there are no rows."""
        assert self._none is not None, "nothing was staged"
        folder = uris.join(self._by_spark, "_none")
        self._none.write.parquet(uris.spark_uri(folder))
        [name] = [name for name, _size in filesystems.list_files(folder) if name.endswith(".parquet")]
        return filesystems.read_bytes(uris.join(folder, name))
