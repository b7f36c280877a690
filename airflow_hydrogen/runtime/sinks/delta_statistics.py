"""What a Delta table's log says of a file's columns, by which queries skip it: from the file's own footer.

Bounds that are not certain are left out, and a query then reads the file. As Delta writes them they are those
of the table's first 32 columns, texts are cut, and times are in milliseconds.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.runtime.sinks.task_files import RANGES

_COLUMNS = 32
_LONGEST_TEXT = 32
_LAST_ASCII = "\x7f"
_LAST_CHARACTER = "\U0010ffff"


def statistics(footer: pq.FileMetaData, schema: pa.Schema, *, tight: bool) -> str:
    """The statistics of a file, in JSON.

    Args:
        footer: of the file.
        schema: its columns, in the table's order.
        tight: the table may have deletion vectors, and asks whether bounds are of all rows in the file.
    """
    places = {
        footer.schema.column(number).path: number
        for number in range(footer.num_columns)
        if _is_flat(footer.schema.column(number))
    }
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    ranges = json.loads((footer.metadata or {}).get(RANGES.encode(), b"{}"))
    for item in list(schema)[:_COLUMNS]:
        if item.name not in places:
            continue  # of lists and structs the footer counts what is inside
        if pa.types.is_floating(item.type):
            low, high, count = ranges.get(item.name, (None, None, None))
        else:
            chunks = _chunks(footer, places[item.name])
            low, high = _bounds(footer, chunks, item)
            count = _nulls(chunks)
        if count is not None:
            nulls[item.name] = count
        if low is not None:
            least[item.name] = low
        if high is not None:
            greatest[item.name] = high
    found: dict[str, Any] = {"numRecords": footer.num_rows}
    found |= {"minValues": least, "maxValues": greatest, "nullCount": nulls}
    if tight:
        found["tightBounds"] = True
    return json.dumps(found, allow_nan=False)


def _is_flat(column: pq.ColumnSchema) -> bool:
    return bool(column.max_definition_level == 1 and column.max_repetition_level == 0)


def _chunks(footer: pq.FileMetaData, place: int) -> list[Any]:
    groups = (footer.row_group(number) for number in range(footer.num_row_groups))
    return [group.column(place).statistics for group in groups]


def _nulls(chunks: list[Any]) -> int | None:
    if all(chunk is not None and chunk.has_null_count for chunk in chunks):
        return sum(int(chunk.null_count) for chunk in chunks)
    return None


def _bounds(footer: pq.FileMetaData, chunks: list[Any], column: pa.Field) -> tuple[Any, Any]:
    """The least and the greatest value as the log spells them; None for what is not certain."""
    spell = _speller(column.type)
    if spell is None:
        return None, None
    lows, highs = [], []
    for number, chunk in enumerate(chunks):
        if chunk is None:
            return None, None
        if chunk.has_null_count and chunk.null_count == footer.row_group(number).num_rows:
            continue
        if not chunk.has_min_max:
            return None, None
        try:
            lows.append(chunk.min)
            highs.append(chunk.max)
        except (OverflowError, ValueError):  # a day that Python's calendar has not
            return None, None
    if not lows:
        return None, None
    return spell(min(lows), upper=False), spell(max(highs), upper=True)


def _speller(type_: pa.DataType) -> Any:
    """How the bounds of a type are spelled; None where the log has none of it, or it is not certain how."""
    if pa.types.is_integer(type_):
        return _number
    if pa.types.is_string(type_):
        return _text
    if pa.types.is_date(type_):
        return _day
    if pa.types.is_timestamp(type_) and type_.tz:
        return _moment
    return None


def _number(value: int, *, upper: bool) -> int:
    return value


def _day(value: datetime.date, *, upper: bool) -> str:
    return value.isoformat()


def _moment(value: datetime.datetime, *, upper: bool) -> str:
    """Readers know that milliseconds are cut."""
    utc = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='milliseconds')}Z"


def _text(value: str, *, upper: bool) -> str | None:
    """The beginning of a text, and where it is an upper bound something behind it that nothing exceeds."""
    if len(value) <= _LONGEST_TEXT or not upper:
        return value[:_LONGEST_TEXT]
    following = value[_LONGEST_TEXT]
    if following == _LAST_CHARACTER:
        return None
    return value[:_LONGEST_TEXT] + (_LAST_ASCII if following < _LAST_ASCII else _LAST_CHARACTER)
