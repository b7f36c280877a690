from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_hydrogen.runtime.data import messages
from airflow_hydrogen.runtime.data.messages import FAULT, NO_VALUE, RAW, VALUE, JsonValues, ParquetValues

SCHEMA = pa.schema(
    [
        ("a", pa.int64()),
        ("i", pa.int32()),
        ("f", pa.float32()),
        ("d", pa.float64()),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("l", pa.list_(pa.float32())),
    ]
)
BROKEN = "broken"


def decoded(*values: bytes | None) -> list[Any]:
    """The fields of each value that are not null, or that it is broken."""
    columns, broken = JsonValues(SCHEMA).decode(pa.array(values, pa.binary()))
    assert [column.type for column in columns.values()] == SCHEMA.types
    return [
        BROKEN
        if broken[row]
        else {name: column[row].as_py() for name, column in columns.items() if column[row].is_valid}
        for row in range(len(values))
    ]


CASES: list[tuple[bytes | None, Any]] = [
    (
        b'{"a": 1, "i": -2, "f": 0.5, "d": 1e-3, "s": "x", "b": true, "l": [1, null]}',
        {"a": 1, "i": -2, "f": 0.5, "d": 1e-3, "s": "x", "b": True, "l": [1.0, None]},
    ),
    (b' {"a":1}\r\n', {"a": 1}),
    (b"{}", {}),
    (b'{"a":null,"l":null,"s":null,"b":null}', {}),
    (b'{"A":1,"x":{"y":[{"z":{}}]},"a":3} ', {"a": 3}),
    (b'{"a":1,"a":2}', {"a": 2}),
    (b'{"a":1,"a":null}', {}),
    (b'{"a":-0}', {"a": 0}),
    (b'{"a":9223372036854775807}', {"a": 2**63 - 1}),
    (b'{"a":9223372036854775808}', BROKEN),
    (b'{"i":2147483648}', BROKEN),
    (b'{"a":1.0}', BROKEN),
    (b'{"a":1e2}', BROKEN),
    (b'{"a":"1"}', BROKEN),
    (b'{"a":""}', BROKEN),
    (b'{"a":true}', BROKEN),
    (b'{"a":[1]}', BROKEN),
    (b'{"f":1}', {"f": 1.0}),
    (b'{"f":1e39}', {"f": math.inf}),
    (b'{"f":1e400,"x":1e999}', {"f": math.inf}),
    (b'{"x":1e400,"a":1}', {"a": 1}),
    (b'{"d":"NaN"}', {"d": math.nan}),
    (b'{"d":NaN}', {"d": math.nan}),
    (b'{"d":-Infinity}', {"d": -math.inf}),
    (b'{"d":"-INF"}', {"d": -math.inf}),
    (b'{"d":Inf}', BROKEN),
    (b'{"d":"1.5"}', BROKEN),
    (b'{"d":true}', BROKEN),
    (b'{"s":1.50}', {"s": "1.50"}),
    (b'{"s":false}', {"s": "false"}),
    ('{"s":{"x": 1.50, "y":["ü", null, true]}}'.encode(), {"s": '{"x":1.50,"y":["ü",null,true]}'}),
    (b'{"s":"\\u0000\\u00e9 } x"}', {"s": "\0é } x"}),
    (b'{"s":"\\ud83d"}', BROKEN),
    (b'{"s":"\\udc00"}', BROKEN),
    (b'{"x":"\\udc00","a":1}', {"a": 1}),
    (b'{"s":"\xff"}', BROKEN),
    (b'{"x":"\xff"}', BROKEN),
    (b'{"s":"a\nb"}', BROKEN),
    (b'{"b":1}', BROKEN),
    (b'{"b":"true"}', BROKEN),
    (b'{"l":1}', BROKEN),
    (b'{"l":[1,"x"]}', BROKEN),
    (b'{"l":[]}', {"l": []}),
    (b"{'a':1}", BROKEN),
    (b'{"a":01}', BROKEN),
    (b'{"a":1,}', BROKEN),
    (b'{"a":1}x', BROKEN),
    (b'{"a":1} // more', BROKEN),
    (b'{"a":1}{"a":2}', BROKEN),
    (b'{"a":1}\n{"a":2}', BROKEN),
    (b'{"a":1} null {"a":2}', BROKEN),
    (b'{"a":1', BROKEN),
    (b'{"x":{"y":1}', BROKEN),
    (b'{"x":"}', BROKEN),
    (b"null", BROKEN),
    (b"[]", BROKEN),
    (b'[{"a":1}]', BROKEN),
    (b'"x"', BROKEN),
    (b"5", BROKEN),
    (b"", BROKEN),
    (b" ", BROKEN),
    (b'\xef\xbb\xbf{"a":1}', BROKEN),
    ('{"a":1}'.encode("utf-16"), BROKEN),
    (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", BROKEN),
    (b'{"x":' + b"[" * 300 + b"]" * 300 + b',"a":1}', {"a": 1}),
    (b'{"x":[' + b"1," * 100_000 + b'1],"a":1}', {"a": 1}),
    (None, BROKEN),
]


def test_values_are_what_the_schema_says_or_broken_whatever_stands_beside_them():
    values, expected = zip(*CASES, strict=True)
    assert repr(decoded(*values)) == repr([*expected])  # NaN is not equal to itself
    for value, fields in CASES:
        good = b'{"a":7,"s":"good"}'
        found = decoded(good, value, good)
        assert repr(found) == repr([{"a": 7, "s": "good"}, fields, {"a": 7, "s": "good"}]), value


def test_messages_that_are_cut_do_not_become_whole_beside_each_other():
    assert decoded(b'{"a":1', b',"i":2}{"a":3}') == [BROKEN, BROKEN]
    assert decoded(b'{"x":{"y":1}', b'{"a":1}}', b'{"a":2}') == [BROKEN, BROKEN, {"a": 2}]
    assert decoded(b'{"s":"x}', b'{","a":1}', b'{"a":2}') == [BROKEN, BROKEN, {"a": 2}]
    assert decoded(b'{"x":[{"y":1}', b'{"a":1}]}') == [BROKEN, BROKEN]


PIECES = st.sampled_from(
    [
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b'"',
            b'"a":1',
            b'"s":"x"',
            b'"f":1.5',
            b'"a"',
            b" ",
            b"\n",
            b"\\",
        ),
        *(
            b"null",
            b"1",
            b"-",
            b"NaN",
            b"Inf",
            b"true",
            b'{"a":1}',
            b'{"x":{"a":2}}',
            b'"}"',
            b'"{"',
            b"\xff",
        ),
    ]
)
DOCUMENTS = st.dictionaries(
    st.sampled_from([*SCHEMA.names, "x"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=4,
    ),
).map(lambda document: json.dumps(document).encode())
VALUES = st.lists(st.lists(PIECES, max_size=8).map(b"".join) | DOCUMENTS, min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_a_batch_is_decoded_as_its_messages_are_one_by_one(values):
    rows = JsonValues(SCHEMA)
    expected = [rows._row(value) for value in values]
    columns, broken = rows.decode(pa.array(values, pa.binary()))
    for row, fields in enumerate(expected):
        assert broken[row] == (fields is None)
        wanted = [
            pa.scalar(fields[number] if fields else None, item.type).as_py()
            for number, item in enumerate(SCHEMA)
        ]
        assert repr([column[row].as_py() for column in columns.values()]) == repr(wanted)


FLAT = st.sampled_from(
    [
        *(b'{"a":1}', b'{"s":"x, y"}', b'{"f":1.5,"l":[1,2]}', b'{"N":1,"I":2}', b"{}", b'{"s":"\xc3\xbc"}'),
        *(b'{"d":NaN}', b'{"s":"NaN"}', b'{"d":Inf}', b'{"s":"\xff"}', b"{", b"}", b"", None, b"1", b"{N}"),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLAT, max_size=6), st.integers(0, 3), st.sampled_from([pa.binary(), pa.large_binary()]))
def test_what_is_seen_at_a_glance_is_what_is_seen_by_looking_closely(values, start, type_):
    array = pa.array(values, type_).slice(start)
    seen = messages._are_alike(array)
    closely = pc.and_not(
        pc.match_substring_regex(array, messages._OBJECT), pc.match_substring_regex(array, messages._ODD)
    )
    assert seen.tolist() == closely.fill_null(False).to_pylist()


def test_messages_of_one_flat_object_each_are_seen_at_a_glance():
    values = [b'{"a":1,"s":"Nancy"}', b'{"a":2,"l":[3]}', b"{}"]
    assert messages._are_plain(pa.array(values, pa.binary()))
    assert messages._are_plain(pa.array([b"no", *values], pa.large_binary()).slice(1))
    assert not messages._are_plain(pa.array([*values, b'{"a":1}{"a":2}'], pa.binary()))
    assert not messages._are_plain(pa.array([*values, b'{"d":NaN}'], pa.binary()))


def test_rows_have_the_columns_that_are_wanted_and_say_what_is_wrong():
    values = [b'{"a":1}', None, b"no", b'{"a":4,"s":"x"}']
    batch = pa.record_batch({VALUE: pa.array(values, pa.binary()), "kafka_offset": pa.array([7, 8, 9, 10])})
    (rows,) = JsonValues(SCHEMA).rows([batch], ["s", "kafka_offset", "a", RAW, FAULT])
    assert rows.to_pydict() == {
        "s": [None, None, None, "x"],
        "kafka_offset": [7, 8, 9, 10],
        "a": [1, None, None, 4],
        RAW: [None, None, b"no", None],
        FAULT: [None, NO_VALUE, "the value is not JSON of the schema", None],
    }


@pytest.mark.parametrize("value", [b'{"a":1}', b"no"])
def test_batches_that_are_too_large_for_the_parser_are_read_one_by_one(value, monkeypatch):
    monkeypatch.setattr(messages, "_LARGEST", 5)
    assert decoded(value) == [BROKEN if value == b"no" else {"a": 1}]


def parquet(**columns: Any) -> bytes:
    """A file of some columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def test_files_in_messages_become_as_many_rows_as_they_have():
    whole = parquet(a=[1, 2, 3], f=[0.5, None, 1.5], more=["x", "y", "z"])
    cut = whole[: len(whole) // 2] + whole[len(whole) // 2 + 8 :]
    values = [whole, None, parquet(a=pa.array([], pa.int32())), b"no", cut, parquet(f=[4]), parquet(a=[1.5])]
    batch = pa.record_batch({VALUE: pa.array(values, pa.binary()), "kafka_offset": pa.array(range(7))})
    schema = pa.schema([("a", pa.int64()), ("f", pa.float32())])
    (rows,) = ParquetValues(schema).rows([batch], ["kafka_offset", "a", "f", RAW, FAULT])
    wrong = "the value is not PARQUET of the schema"
    assert rows.schema.field("f").type == pa.float32()
    assert rows.to_pydict() == {
        "kafka_offset": [0, 0, 0, 1, 3, 4, 5, 6],
        "a": [1, 2, 3, None, None, None, None, None],
        "f": [0.5, None, 1.5, None, None, None, 4.0, None],
        RAW: [None, None, None, None, b"no", cut, None, values[6]],
        FAULT: [None, None, None, NO_VALUE, wrong, wrong, None, wrong],
    }


def test_large_files_are_given_away_before_the_next_one_is_read(monkeypatch):
    monkeypatch.setattr(messages, "_JOINED", 40)
    values = [parquet(a=[1, 2]), parquet(a=[3, 4, 5]), b"no", parquet(a=range(6, 16)), parquet(a=[16])]
    batch = pa.record_batch({VALUE: pa.array(values, pa.binary()), "kafka_offset": pa.array(range(5))})
    values_of = ParquetValues(pa.schema([("a", pa.int64())]))
    first, second, third = values_of.rows([batch], ["kafka_offset", "a", RAW])
    assert first.to_pydict() == {"kafka_offset": [0] * 2 + [1] * 3, "a": [1, 2, 3, 4, 5], RAW: [None] * 5}
    assert second.column("a").to_pylist() == [None, *range(6, 16)]
    assert second.column("kafka_offset").to_pylist() == [2, *[3] * 10]
    assert second.column(RAW).to_pylist() == [b"no", *[None] * 10]
    assert third.to_pydict() == {"kafka_offset": [4], "a": [16], RAW: [None]}


def test_a_batch_of_files_without_rows_has_none():
    batch = pa.record_batch({VALUE: pa.array([parquet(a=pa.array([], pa.int32()))], pa.binary())})
    (rows,) = ParquetValues(pa.schema([("a", pa.int64())])).rows([batch], ["a", FAULT])
    assert rows.num_rows == 0


def test_a_file_is_not_copied_for_each_of_its_rows():
    rows = 60_000
    file = parquet(a=range(rows))
    assert len(file) * rows > 2**31  # what no column of binary values holds
    batch = pa.record_batch({VALUE: pa.array([b"no", file], pa.binary()), "kafka_offset": pa.array([7, 8])})
    (found,) = ParquetValues(pa.schema([("a", pa.int64())])).rows([batch], ["a", "kafka_offset", RAW, FAULT])
    assert found.column("a").to_pylist() == [None, *range(rows)]
    assert found.column("kafka_offset").to_pylist() == [7, *[8] * rows]
    assert found.column(RAW).to_pylist() == [b"no", *[None] * rows]
    assert found.column(FAULT).null_count == rows


def test_files_with_a_column_twice_or_with_texts_that_are_none_are_broken_beside_whole_ones():
    good, schema = parquet(s=["x"]), pa.schema([("s", pa.string())])
    no_text = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays([pa.array(["y"]), pa.array(["z"])], names=["s", "s"]), sink)
    twice = sink.getvalue().to_pybytes()
    no_name = good.replace(b"\x18\x01s", b"\x18\x01\xff")
    values = [good, parquet(s=no_text), twice, no_name, good]
    batch = pa.record_batch({VALUE: pa.array(values, pa.binary())})
    (rows,) = ParquetValues(schema).rows([batch], ["s", FAULT])
    assert rows.column("s").to_pylist() == ["x", None, None, None, "x"]
    assert rows.column(FAULT).is_valid().to_pylist() == [False, True, True, True, False]
