"""A Parquet file with the columns that are not in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

# pyarrow is imported late, as in `files`.
if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class OpenedFile:
    """Reads a file's row groups; `absent` columns have one value in all rows.

    Args:
        file: pyarrow's.
        absent: values of partition columns, and nulls for columns that came to the table later.
    """

    def __init__(self, file: pq.ParquetFile, absent: Mapping[str, pa.Scalar]) -> None:
        self._file, self._absent = file, absent

    def iter_batches(
        self, batch_rows: int, *, row_groups: Sequence[int], columns: Sequence[str], use_threads: bool = True
    ) -> Iterator[pa.RecordBatch]:
        """Some row groups in batches of these columns, in this order."""
        import pyarrow as pa

        stored = [name for name in columns if name not in self._absent]
        for batch in self._file.iter_batches(
            batch_rows, row_groups=list(row_groups), columns=stored, use_threads=use_threads
        ):
            yield pa.RecordBatch.from_arrays(
                [
                    _constant(self._absent[name], batch.num_rows)
                    if name in self._absent
                    else batch.column(name)
                    for name in columns
                ],
                names=list(columns),
            )

    def close(self) -> None:
        """Close the file, whoever opened it."""
        self._file.close(force=True)


def _constant(value: pa.Scalar, rows: int) -> pa.Array:
    import pyarrow as pa

    return pa.repeat(value, rows) if value.is_valid else pa.nulls(rows, value.type)
