"""Rows that cannot be scored, in files of their own: written by the tasks, accepted by the driver.

Every try of a task leaves its rows in a file of its own, in a hidden folder beside the partition. The driver
takes those files that the accounts of accepted tries name, and no others.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import UnwritableUriError
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.storage import filesystems

REASON = "reason"

# Rows come one by one or a few at a time; a row group should be worth its footer.
_ROW_GROUP_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Quarantine:
    """Where tasks leave bad rows; a value, so that it travels to them.

    Attributes:
        folder: of this job alone.
        schema: columns of the source that are kept or that the model reads, and the reason.
    """

    folder: str
    schema: pa.Schema

    def accept(self, names: Iterable[str], staged: str) -> int:
        """Bring the files of accepted tries to where they are staged.

        Args:
            names: the files.
            staged: the folder; it gets a file without rows where there are none, so that whoever reads the
                table finds its columns.

        Returns:
            Rows in those files that are there.
        """
        there = {name for name, _size in filesystems.list_files(self.folder)}
        accepted = [name for name in names if name in there]
        for name in accepted:
            filesystems.transfer(uris.join(self.folder, name), uris.join(staged, name))
        if not accepted:
            nothing = pa.BufferOutputStream()
            pq.write_table(self.schema.empty_table(), nothing)
            filesystems.write_bytes(uris.join(staged, _new_name()), nothing.getvalue().to_pybytes())
        return count_rows(staged)


class BadRowsFile:
    """The file of one try of a task; there is none where no row comes.

    Args:
        quarantine: where it goes.
    """

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0
        self._stream: Any = None
        self._writer: pq.ParquetWriter | None = None
        self.name: str | None = None

    def __enter__(self) -> BadRowsFile:
        return self

    def add(self, rows: pa.RecordBatch, reasons: Sequence[str]) -> None:
        """Write some rows, sooner or later.

        Args:
            rows: with the columns of the schema, and others; not a slice of something larger.
            reasons: one for each.

        Raises:
            UnwritableUriError: this host cannot write there.
        """
        *columns, reason = self._quarantine.schema
        arrays = [rows.column(field.name).cast(field.type) for field in columns]
        batch = pa.RecordBatch.from_arrays(
            [*arrays, pa.array(reasons, reason.type)], schema=self._quarantine.schema
        )
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._stream.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self.name = _new_name()
            uri = uris.join(self._quarantine.folder, self.name)
            try:
                self._stream = filesystems.open_output(uri)
            except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among these
                raise UnwritableUriError("quarantine", uri, str(error) or repr(error)) from error
            self._writer = pq.ParquetWriter(self._stream, self._quarantine.schema)
        self._writer.write_table(pa.Table.from_batches(self._waiting))
        self._waiting, self._bytes = [], 0


def _new_name() -> str:
    return f"part-{uuid.uuid4().hex}.parquet"
