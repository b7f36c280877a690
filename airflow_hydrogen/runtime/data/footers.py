"""What a Parquet file's footer says of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from airflow_hydrogen.runtime.data.conditions import Condition, Range

_TYPE_BYTES = {"BOOLEAN": 0.125, "INT32": 4.0, "INT64": 8.0, "INT96": 8.0, "FLOAT": 4.0, "DOUBLE": 8.0}
_OFFSET_BYTES = 4.0
_LEGACY = b"org.apache.spark.legacyDateTime"


class ColumnBytes(NamedTuple):
    """Average bytes of a column in a row: as it is stored (not compressed), and as Arrow holds it."""

    stored: float
    decoded: float


class Footer(NamedTuple):
    """What is kept of a footer.

    Attributes:
        schema: in Arrow's form, without metadata: writers leave their own notes there.
        rows: of each row group.
        sizes: uncompressed bytes of each row group, of the columns that were asked for.
        columns: bytes of each column, of all rows together.
        skipped: row groups that hold no row of the condition.
        legacy: Spark wrote dates and times by the calendar of before 1582, and alone knows how to read them.
    """

    schema: bytes
    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    columns: dict[str, ColumnBytes]
    skipped: tuple[int, ...]
    legacy: bool

    @classmethod
    def of(cls, metadata: Any, columns: Sequence[str] | None, condition: Condition | None) -> Footer:
        """Read it.

        Args:
            metadata: pyarrow's.
            columns: those whose bytes count; all where it is None.
            condition: says which row groups to skip.
        """
        wanted = None if columns is None else set(columns)
        arrow = metadata.schema.to_arrow_schema()
        names = set(arrow.names)
        tops = [_top_of(metadata.schema.column(place).path, names) for place in range(metadata.num_columns)]
        rows, sizes, skipped = [], [], []
        totals: dict[str, ColumnBytes] = {}
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            if condition is not None and not condition.may_hold(_ranges(group, tops, condition.columns)):
                skipped.append(index)
            size = 0
            for place, top in enumerate(tops):
                chunk = group.column(place)
                stored, decoded = totals.get(top, (0.0, 0.0))
                totals[top] = ColumnBytes(
                    stored + chunk.total_uncompressed_size,
                    decoded + _decoded_bytes(chunk, metadata.schema.column(place).length),
                )
                if wanted is None or top in wanted:
                    size += chunk.total_uncompressed_size
            rows.append(group.num_rows)
            sizes.append(size)
        schema = arrow.remove_metadata().serialize().to_pybytes()
        return cls(
            schema, tuple(rows), tuple(sizes), totals, tuple(skipped), _is_legacy(metadata.metadata or {})
        )


def _is_legacy(notes: Mapping[bytes, bytes]) -> bool:
    """Whether a writer before Spark 3, or one that was told to, has written a file."""
    version = notes.get(b"org.apache.spark.version", b"")
    return _LEGACY in notes or version.partition(b".")[0] in (b"1", b"2")


def _ranges(group: Any, tops: Sequence[str], columns: Set[str]) -> dict[str, Range]:
    """Bounds of columns in a row group, where the writer left them. They may lie beyond the values."""
    ranges = {}
    for place, top in enumerate(tops):
        if top in columns:
            statistics = group.column(place).statistics
            if statistics is not None and statistics.has_min_max:
                ranges[top] = Range(statistics.min_raw, statistics.max_raw)
    return ranges


def _top_of(path: str, names: Set[str]) -> str:
    """The column that a leaf belongs to: names may hold dots, as the paths of nested columns do."""
    while path not in names and "." in path:
        path = path.rpartition(".")[0]
    return path


def _decoded_bytes(chunk: Any, length: int) -> float:
    """What a column chunk takes in Arrow: encodings (dictionaries, runs, nulls) make it smaller in the file.

    Exact for numbers. Strings are known by their encoded size alone.
    """
    width = _TYPE_BYTES.get(chunk.physical_type)
    if width is not None:
        return float(chunk.num_values * width)
    if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return float(chunk.num_values * length)
    return float(chunk.total_uncompressed_size + chunk.num_values * _OFFSET_BYTES)
