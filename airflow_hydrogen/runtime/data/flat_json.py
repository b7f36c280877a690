"""Columns of JSON objects that are spelled alike, without a parser.

Most topics hold messages of one producer: flat objects, the same fields in the same order with the same
blanks between them. Then all that differs from one message to the next are the values, which stand between
known texts. They are found by their commas and become columns in half of the time of a parser, which looks
at every name in every message.

Each byte of a batch is proved to be what it is taken for, or nothing is taken: whatever comes of it, a parser
would have said the same of these messages.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BLANKS = rb"[ \t\r\n]*"
_FIELD = re.compile(
    rb'(?P<before>[{,]%b"(?P<name>[^"\\\x00-\x1f]*)"%b:%b)(?P<value>"[^"\\]*"|[-0-9tfn][^ \t\r\n,}]*)'
    % (_BLANKS, _BLANKS, _BLANKS)
)
_END = re.compile(rb"%b\}%b" % (_BLANKS, _BLANKS))
_COMMA, _QUOTE, _BACKSLASH, _MINUS, _DOT, _ZERO, _N = b',"\\-.0n'
_BLANK, _DELETE = 0x20, 0x7F  # the first and the last character of ASCII that may stand in a string
_ALL_BEHIND = 2**31 - 1
_MAY_FOLLOW_ZERO = np.isin(np.arange(256), list(b".eE"))
_WORDS = pa.array(["true", "false"])

_Read = Callable[[pa.Array, pa.DataType], pa.Array | None]


@dataclass(frozen=True)
class _Field:
    """A field of each message.

    Attributes:
        name: of the field.
        before: what stands between the value before it and its own.
        read: makes a column of the texts of its values; gives None where one is not what it reads.
        type: of the column.
    """

    name: str
    before: bytes
    read: _Read
    type: pa.DataType


def columns(values: pa.Array, schema: pa.Schema) -> dict[str, pa.Array] | None:
    """The columns of messages that are spelled alike.

    Args:
        values: of shape (rows,), binary, together less than 2 GB.
        schema: names and types of the columns.

    Returns:
        name -> column, of shape (rows,); None where not all messages are flat objects that are spelled as
        the first one is, or where one of them is not what the schema says.
    """
    types = {item.name: item.type for item in schema}
    if values.null_count or not len(values) or (spelling := _spelling(values[0].as_py(), types)) is None:
        return None
    fields, end = spelling
    around = [*(field.before for field in fields), end]
    if (cells := _cells(values, around)) is None or not cells.are_between(around):
        return None
    alike: dict[tuple[_Read, pa.DataType], list[int]] = defaultdict(list)
    for number, field in enumerate(fields):
        alike[field.read, field.type].append(number)
    rows, found = len(values), {}
    for (read, type_), numbers in alike.items():
        if (column := read(cells.values(numbers), type_)) is None:
            return None
        for place, number in enumerate(numbers):
            found[fields[number].name] = column.slice(place * rows, rows)
    return {name: found[name] if name in found else pa.nulls(rows, types[name]) for name in types}


# --- where values are --------------------------------------------------------------------------------------


def _spelling(message: bytes, types: Mapping[str, pa.DataType]) -> tuple[list[_Field], bytes] | None:
    """The fields of a message and what is behind the last; None where it is not flat, or not of the types."""
    fields: dict[str, _Field] = {}
    place = 0
    while (match := _FIELD.match(message, place)) and match["before"].startswith(b"," if fields else b"{"):
        try:
            name = match["name"].decode()
        except UnicodeDecodeError:
            return None
        if name in fields or (way := _way(match["value"][0], types.get(name))) is None:
            return None
        fields[name] = _Field(name, match["before"], *way)
        place = match.end()
    end = _END.fullmatch(message, place)
    return ([*fields.values()], end[0]) if fields and end else None


@dataclass(frozen=True)
class _Cells:
    """What messages consist of: values, and the texts around them.

    Attributes:
        text: of all messages, one behind the other.
        edges: where each cell of a message begins, and where the last one ends: of shape (cells + 1, rows).
    """

    text: pa.Buffer
    edges: np.ndarray

    def are_between(self, around: Sequence[bytes]) -> bool:
        """Whether these texts stand around the values of each message, and values between them."""
        if (self.edges[2::2] <= self.edges[1:-1:2]).any():
            return False  # there is no room for a value
        return all(self._have(places, text) for places, text in zip(self.edges[::2], around, strict=True))

    def _have(self, places: np.ndarray, text: bytes) -> bool:
        size = len(text)
        all_of_size = np.ndarray(self.text.size - size + 1, f"V{size}", self.text, strides=(1,))
        return bool(all_of_size[places].tobytes() == text * len(places))

    def values(self, fields: Sequence[int]) -> pa.Array:
        """The values of some fields, one field behind the other."""
        cells, rows = len(self.edges) - 1, self.edges.shape[1]
        starts = np.empty(cells * rows + 1, np.int32)
        starts[:-1].reshape(rows, cells)[:] = self.edges[:-1].T
        starts[-1] = self.text.size
        all_ = pa.Array.from_buffers(pa.binary(), cells * rows, [None, pa.py_buffer(starts), self.text])
        order = np.add.outer([2 * field + 1 for field in fields], np.arange(0, cells * rows, cells)).ravel()
        found = all_.take(pa.array(order.astype(np.int32)))
        return pa.Array.from_buffers(pa.string(), len(found), found.buffers())


def _cells(values: pa.Array, around: Sequence[bytes]) -> _Cells | None:
    """The cells of messages with these texts around their values; None where they are more or fewer.

    Each message begins where the one before it ends. Of its fields, each but the first begins at a comma.
    """
    rows, fields = len(values), len(around) - 1
    _, offsets, data = values.buffers()
    width = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    bounds = np.frombuffer(offsets, width)[values.offset : values.offset + rows + 1]
    text = data.slice(int(bounds[0]), int(bounds[-1] - bounds[0]))
    commas = np.flatnonzero(np.frombuffer(text, np.uint8) == _COMMA)
    if commas.size != rows * (fields - 1):
        return None
    edges = np.empty((2 * fields + 2, rows), np.int64)
    edges[0], edges[-1] = bounds[:-1] - bounds[0], bounds[1:] - bounds[0]
    edges[2:-2:2] = commas.reshape(rows, fields - 1).T
    np.add(edges[:-2:2], [[len(before)] for before in around[:-1]], out=edges[1:-1:2])
    edges[-2] = edges[-1] - len(around[-1])
    return _Cells(text, edges)


# --- what values are ---------------------------------------------------------------------------------------


def _way(first: int, type_: pa.DataType | None) -> tuple[_Read, pa.DataType] | None:
    """How values of a type are read, one of which begins with some byte; None where that takes a parser.

    Fields without a type are in no column. They are read all the same: what is no value breaks its message.
    """
    is_text, is_word = type_ in (None, pa.string()), type_ in (None, pa.string(), pa.bool_())
    is_number = is_text or pa.types.is_integer(type_) or pa.types.is_floating(type_)
    if first == _QUOTE or (first == _N and type_ == pa.string()):
        return (_strings, pa.string()) if is_text else None
    if first in b"tf" or (first == _N and type_ == pa.bool_()):
        return (_words, type_ or pa.string()) if is_word else None
    return (_numbers, type_ or pa.string()) if is_number else None


def _strings(texts: pa.Array, _type: pa.DataType) -> pa.Array | None:
    texts = _with_nulls(texts)
    data, starts, ends = _bytes(texts.drop_null())
    if not ((ends - starts >= 2) & (data[starts] == _QUOTE) & (data[ends - 1] == _QUOTE)).all():
        return None
    strings = pc.binary_replace_slice(pc.binary_replace_slice(texts, 0, 1, ""), -1, _ALL_BEHIND, "")
    data, *_ = _bytes(strings)
    if (data == _QUOTE).any() or (data == _BACKSLASH).any() or (data < _BLANK).any():
        return None
    return strings if not (data > _DELETE).any() or _is_valid(strings) else None


def _words(texts: pa.Array, type_: pa.DataType) -> pa.Array | None:
    texts = _with_nulls(texts)
    if not pc.all(pc.is_in(texts.drop_null(), _WORDS), min_count=0).as_py():
        return None
    return pc.equal(texts, "true") if type_ == pa.bool_() else texts


def _numbers(texts: pa.Array, type_: pa.DataType) -> pa.Array | None:
    texts = _with_nulls(texts)
    if not _are_spelled_as_numbers(texts.drop_null()):
        return None
    try:
        numbers = texts.cast(pa.float64() if type_ == pa.string() else type_)
    except pa.ArrowException:
        return None
    return texts if type_ == pa.string() else numbers


def _with_nulls(texts: pa.Array) -> pa.Array:
    data, starts, _ = _bytes(texts)
    if not (data[starts] == _N).any():
        return texts
    return pc.if_else(pc.equal(texts, "null"), pa.scalar(None, pa.string()), texts)


def _are_spelled_as_numbers(texts: pa.Array) -> bool:
    """Whether none is a number for Arrow that is none in JSON, as `01`, `+1`, `.5`, `1.`, `0x1`, `inf`.

    Texts that are none for both need not be found.
    """
    data, starts, ends = _bytes(texts)
    is_digit = data - np.uint8(_ZERO) < 10
    if not is_digit[ends - 1].all():
        return False
    first = starts + (data[starts] == _MINUS)
    if not is_digit[first].all():
        return False
    leads = (data[first] == _ZERO) & (first + 1 < ends)
    return bool(_MAY_FOLLOW_ZERO[data[first[leads] + 1]].all() and ((data[:-1] != _DOT) | is_digit[1:]).all())


def _bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of texts, and where each of these begins and ends in them."""
    _, offsets, data = texts.buffers()
    if data is None:  # all are empty, or there is none
        nowhere = np.zeros(len(texts), np.intp)
        return np.empty(0, np.uint8), nowhere, nowhere
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.intp)
    return (
        np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]],
        bounds[:-1] - bounds[0],
        bounds[1:] - bounds[0],
    )


def _is_valid(texts: pa.Array) -> bool:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
