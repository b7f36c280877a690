"""The values of messages -> columns, in Python workers.

**JSON**: a batch at once, and odd messages one by one. Spark decodes it row by row and outside of its
generated code, which costs five times what reading the messages does. Of messages that are spelled alike the
columns are found without a parser (`flat_json`). pyarrow parses a batch of others at once, but it says of a
batch alone that something is wrong, and not everything that is wrong: of two objects in one value it makes
two rows, and on a `null` between objects it crashes. So it gets only messages of which none of this can be
true, and the others, or all of a batch that it refuses, are read by Python's own parser. All three take the
same for JSON: RFC 8259 in UTF-8, and the numbers NaN, Infinity and -Infinity.

**Parquet**: each value is a file, of any number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from airflow_hydrogen.runtime.data import flat_json

FAULT = "_hydrogen_fault"
"""The column that says why a row could not be decoded; null in every row that could."""
RAW = "raw_value"
"""The column of what could not be decoded, as it came; null in every other row."""
VALUE = "value"
"""The column of what is to be decoded."""

NO_VALUE = "the message has no value"

# Begins and ends as an object does. After a closing brace there is none but what may follow it inside of an
# object: so a value that pyarrow takes for whole ones is one, and holds nothing else between objects.
_OBJECT = r"(?s)\A[ \t\r\n]*\{.*\}[ \t\r\n]*\z"
_BEHIND = r"\}[ \t\r\n]*[^ \t\r\n,\]}]"
# Numbers for the one parser in other spellings than for the other.
_ODD_NUMBERS = (b"Inf", b"NaN")
_ODD = "|".join([_BEHIND, *(word.decode() for word in _ODD_NUMBERS)])
_DEEPEST = 500  # nested brackets of a value that pyarrow gets: it recurses, and would run out of stack
_LARGEST = 2**30  # bytes of a batch that pyarrow gets
_JOINED = 2**26  # bytes of rows of files, from which on they are given away
_NOT_FINITE = ("NaN", "Infinity", "+Infinity", "-Infinity", "INF", "+INF", "-INF")
_LONGEST_INTEGER = 20


def wrong(payload: str) -> str:
    """What is said of a value that is something else than its schema says."""
    return f"the value is not {payload.upper().replace('-', ' ')} of the schema"


@dataclass(frozen=True)
class JsonValues:
    """Decodes values that are JSON objects.

    A field that is missing is null, one that the schema does not name is left out, and of one that stands
    twice the last counts. A string takes whatever stands there, as text; other types take their own alone.

    Attributes:
        schema: names and types: booleans, integers, floating numbers, strings, and lists of them.
    """

    schema: pa.Schema

    def rows(self, batches: Iterable[pa.RecordBatch], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Decode the messages of a task.

        Args:
            batches: with the column `VALUE`, and others that pass through.
            names: of the columns that are wanted: of the schema, of the batches, `RAW` and `FAULT`.

        Yields:
            As many rows for each batch, in their order.
        """
        for batch in batches:
            values = batch.column(VALUE)
            columns, broken = self.decode(values)
            yield _rows(batch, values, columns, broken, "json", names)

    def decode(self, values: pa.Array) -> tuple[dict[str, pa.Array], np.ndarray]:
        """Decode some values.

        Args:
            values: of shape (rows,), binary; nulls are no JSON.

        Returns:
            name -> column, of shape (rows,), null where a value is broken; and a mask of those, (rows,).
        """
        if values.nbytes <= _LARGEST and (columns := flat_json.columns(values, self.schema)) is not None:
            return columns, np.zeros(len(values), bool)
        alike = _are_alike(values)
        parsed = self._parse(values if alike.all() else values.filter(pa.array(alike)))
        if parsed is None:
            parsed, alike = self.schema.empty_table(), np.zeros(len(values), bool)
        odd = [self._row(value) for value in values.filter(pa.array(~alike)).to_pylist()]
        broken = np.zeros(len(values), bool)
        broken[~alike] = [row is None for row in odd]
        columns = {name: parsed.column(name).combine_chunks() for name in self.schema.names}
        if not odd:
            return columns, broken
        places = pa.array(np.argsort(np.concatenate([np.flatnonzero(alike), np.flatnonzero(~alike)])))
        for number, item in enumerate(self.schema):
            others = pa.array([row and row[number] for row in odd], item.type)
            columns[item.name] = pa.concat_arrays([columns[item.name], others]).take(places)
        return columns, broken

    def _parse(self, values: pa.Array) -> pa.Table | None:
        """The columns of values that are alike; None where one of them is not what the schema says."""
        if not len(values):
            return self.schema.empty_table()
        whole = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
        try:
            text = pc.binary_join(whole.cast(pa.list_(pa.string())), "\n")[0].as_buffer()
            table = pj.read_json(
                pa.BufferReader(text),
                pj.ReadOptions(use_threads=False, block_size=text.size + 1),
                pj.ParseOptions(explicit_schema=self.schema, unexpected_field_behavior="ignore"),
            )
            table = table.cast(self.schema)
            table.validate(full=True)  # escapes can make text that is no UTF-8
        except (pa.ArrowException, UnicodeDecodeError):
            return None
        return table if table.num_rows == len(values) else None

    def _row(self, value: bytes | None) -> list[Any] | None:
        """One value's fields; None where it is not what the schema says."""
        if value is None:
            return None
        try:
            numbers: Any = _Number
            document = json.loads(
                value.decode(), parse_int=numbers, parse_float=numbers, parse_constant=numbers
            )
            if not isinstance(document, dict):
                return None
            return [_converted(document.get(item.name), item.type) for item in self.schema]
        except (ValueError, RecursionError):  # the first is that of JSON, of UTF-8 and of types
            return None


@dataclass(frozen=True)
class ParquetValues:
    """Decodes values that are Parquet files.

    A column that is missing is null, and one that the schema does not name is left out. Of a file that is
    none, or whose columns cannot be cast without a loss, one row is made, which is broken.

    Attributes:
        schema: names and types.
    """

    schema: pa.Schema

    def rows(self, batches: Iterable[pa.RecordBatch], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Decode the messages of a task, as `JsonValues.rows` does, into as many rows as their files have.

        Yields:
            The rows of as many messages at once as are together of some size.
        """
        for batch in batches:
            files: list[pa.Table | None] = []
            start = size = 0
            for place, value in enumerate(batch.column(VALUE)):
                files.append(self._file(value.as_py()))
                size += files[-1].nbytes if files[-1] is not None else 0
                if size >= _JOINED or place == batch.num_rows - 1:
                    yield self._joined(batch.slice(start, len(files)), files, names)
                    files, start, size = [], place + 1, 0

    def _joined(
        self, batch: pa.RecordBatch, files: Sequence[pa.Table | None], names: Sequence[str]
    ) -> pa.RecordBatch:
        """The rows of some messages, each with its file, or None where that is broken."""
        nothing = pa.table([pa.nulls(1, item.type) for item in self.schema], schema=self.schema)
        tables = [nothing if table is None else table for table in files]
        counts = [table.num_rows for table in tables]
        whole = pa.concat_tables(tables)
        columns = {name: whole.column(name).combine_chunks() for name in self.schema.names}
        broken = np.repeat([table is None for table in files], counts)
        places = np.repeat(np.arange(len(files)), counts)
        # A file stands beside the row that says what is wrong with it, and not beside each of its rows.
        values = batch.column(VALUE).take(pa.array(places, mask=~broken))
        origins = batch.select([name for name in batch.schema.names if name != VALUE])
        return _rows(origins.take(pa.array(places)), values, columns, broken, "parquet", names)

    def _file(self, value: bytes | None) -> pa.Table | None:
        if value is None:
            return None
        try:
            with pq.ParquetFile(pa.BufferReader(value)) as file:
                there = [name for name in self.schema.names if name in file.schema_arrow.names]
                table = file.read(columns=there, use_threads=False)
            columns = [
                table.column(item.name).cast(item.type)
                if item.name in there
                else pa.nulls(table.num_rows, item.type)
                for item in self.schema
            ]
            found = pa.table(columns, schema=self.schema)
            found.validate(full=True)  # Parquet does not look whether its texts are UTF-8
            return found
        # The second is what Parquet raises on broken pages, the others on names: that are no UTF-8, or twice.
        except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError):
            return None


Values = JsonValues | ParquetValues


def _rows(
    batch: pa.RecordBatch,
    values: pa.Array,
    columns: Mapping[str, pa.Array],
    broken: np.ndarray,
    payload: str,
    names: Sequence[str],
) -> pa.RecordBatch:
    """What came of a batch of messages, with a row in it for each of theirs; values are of those broken."""
    raw, faults = pa.nulls(len(broken), values.type), pa.nulls(len(broken), pa.string())
    if broken.any():
        why = pc.if_else(pc.is_null(values), NO_VALUE, wrong(payload))
        faults = pc.if_else(pa.array(broken), why, faults)
        raw = pc.if_else(pa.array(broken), values, raw)
    found = {RAW: raw, FAULT: faults, **columns}
    arrays = [found[name] if name in found else batch.column(name) for name in names]
    return pa.RecordBatch.from_arrays(arrays, names=list(names))


def _are_alike(values: pa.Array) -> np.ndarray:
    """Which values pyarrow may get: a mask of shape (rows,)."""
    if values.nbytes > _LARGEST:
        return np.zeros(len(values), bool)
    if _are_plain(values):
        mask = np.ones(len(values), bool)
    else:
        alike = pc.and_not(pc.match_substring_regex(values, _OBJECT), pc.match_substring_regex(values, _ODD))
        mask = pc.fill_null(alike, False).to_numpy(zero_copy_only=False).copy()
    long = np.flatnonzero(pc.greater_equal(pc.binary_length(values), 2 * _DEEPEST).fill_null(False))
    if long.size:
        taken = values.take(pa.array(long))
        brackets = pc.add(pc.count_substring(taken, "["), pc.count_substring(taken, "{"))
        mask[long] &= pc.less(brackets, _DEEPEST).fill_null(False).to_numpy(zero_copy_only=False)
    return np.asarray(mask)


def _are_plain(values: pa.Array) -> bool:
    """Whether all are alike, as can be seen at a glance: `{...}` without another brace or odd numbers.

    Regular expressions, which see it of others too, take a third of the time that parsing takes.
    """
    if values.null_count or not len(values):
        return False
    _, offsets, data = values.buffers()
    width = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    bounds = np.frombuffer(offsets, width)[values.offset : values.offset + len(values) + 1]
    if bounds[0] == bounds[-1]:
        return False
    text = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
    starts, ends = bounds[:-1] - bounds[0], bounds[1:] - bounds[0] - 1
    return (
        np.array_equal(np.flatnonzero(text == ord("}")), ends)
        and bool((text[starts] == ord("{")).all())
        and not any(_has(text, word) for word in _ODD_NUMBERS)
    )


def _has(text: np.ndarray, word: bytes) -> bool:
    """Whether bytes of shape (n,) have a word among them."""
    found = np.flatnonzero(text[: max(0, len(text) - len(word) + 1)] == word[0])
    for place, letter in enumerate(word[1:], start=1):
        found = found[text[found + place] == letter]
    return bool(found.size)


class _Number(str):
    """A number, as it is spelled."""

    __slots__ = ()


def _converted(value: Any, type_: pa.DataType) -> Any:
    """A value of a document as one of a type; ValueError where it is another one's."""
    if value is None:
        return None
    if pa.types.is_list(type_) and isinstance(value, list):
        return [_converted(item, type_.value_type) for item in value]
    if pa.types.is_string(type_):
        return _text(value)
    if pa.types.is_boolean(type_) and isinstance(value, bool):
        return value
    if pa.types.is_floating(type_) and (isinstance(value, _Number) or value in _NOT_FINITE):
        return float(value)
    if pa.types.is_integer(type_) and isinstance(value, _Number):
        return _integer(value, type_.bit_width)
    raise ValueError(f"{value!r} is no {type_}")


def _integer(text: str, bits: int) -> int:
    if not text.removeprefix("-").isdigit() or len(text) > _LONGEST_INTEGER:
        raise ValueError(f"{text[:_LONGEST_INTEGER]} is no integer")
    number = int(text)
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise ValueError(f"{number} has no place in {bits} bits")
    return number


def _text(value: Any) -> str:
    text = str(value) if isinstance(value, str) else _dumped(value)
    text.encode()  # a surrogate alone is no text
    return text


def _dumped(value: Any) -> str:
    """JSON without blanks, with numbers as they were spelled."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_dumped(name)}:{_dumped(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_dumped, value)) + "]"
    return str(value) if isinstance(value, _Number) else json.dumps(value, ensure_ascii=False)
