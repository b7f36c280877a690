from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_hydrogen.runtime.data import flat_json
from airflow_hydrogen.runtime.data.messages import JsonValues

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


def columns(*messages: bytes | None, type_: pa.DataType | None = None) -> dict[str, list[Any]] | None:
    """The columns that were found, without those in which nothing stands."""
    found = flat_json.columns(pa.array(messages, type_ or pa.binary()), SCHEMA)
    if found is None:
        return None
    for column, item in zip(found.values(), SCHEMA, strict=True):
        column.validate(full=True)
        assert (len(column), column.type) == (len(messages), item.type)
    assert [*found] == SCHEMA.names
    return {name: column.to_pylist() for name, column in found.items() if column.null_count < len(messages)}


ALIKE: list[tuple[list[bytes], dict[str, list[Any]]]] = [
    ([b'{"a":1}'], {"a": [1]}),
    ([b'{"f": 1.5, "a": 7}', b'{"f": -2e1, "a": -8}'], {"f": [1.5, -20.0], "a": [7, -8]}),
    ([b'{"a" :\t1,\n"i":2 }\r\n', b'{"a" :\t3,\n"i":4 }\r\n'], {"a": [1, 3], "i": [2, 4]}),
    ([b'{"s":"x","b":true}', b'{"s":"","b":false}'], {"s": ["x", ""], "b": [True, False]}),
    ([b'{"s":"\xc3\xbc} {"}', b'{"s":"null"}', b'{"s":null}'], {"s": ["ü} {", "null", None]}),
    ([b'{"s":1.50}', b'{"s":-7}'], {"s": ["1.50", "-7"]}),
    ([b'{"s":true}', b'{"s":null}'], {"s": ["true", None]}),
    ([b'{"a":null,"b":null}', b'{"a":1,"b":true}'], {"a": [None, 1], "b": [None, True]}),
    ([b'{"s":null}', b'{"s":"x"}'], {"s": [None, "x"]}),
    ([b'{"a":null,"b":null,"s":null,"x":null}'], {}),
    ([b'{"x":1e3,"y":"z","a":2,"z":null}', b'{"x":0,"y":"","a":3,"z":4}'], {"a": [2, 3]}),
    ([b'{"f":1e400}', b'{"f":1e39}'], {"f": [math.inf, math.inf]}),
    ([b'{"d":0}', b'{"d":-0.5}', b'{"d":0e1}', b'{"d":10}'], {"d": [0.0, -0.5, 0.0, 10.0]}),
]


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize(("messages", "expected"), ALIKE)
def test_messages_that_are_spelled_alike_become_columns(messages, expected, type_):
    assert columns(*messages, type_=type_) == expected


def test_a_slice_is_read_as_a_batch_of_its_own():
    batch = pa.array([b'{"s":"no, not this"}', b'{"a":1,"s":"x"}', b'{"a":2,"s":"y"}', None], pa.binary())
    found = flat_json.columns(batch.slice(1, 2), SCHEMA)
    assert (found["a"].to_pylist(), found["s"].to_pylist()) == ([1, 2], ["x", "y"])


# Each stands behind a message of the same spelling, but for what makes it another one.
OTHERS = [
    *(b'{"a":1}', b'{"a":1,"s":"x","d":2}', b'{"s":"x","a":1}', b'{"A":1,"s":"x"}', b'{"a": 1,"s":"x"}'),
    *(b'{"a":1 ,"s":"x"}', b'{"a":1,"s":"x"} ', b' {"a":1,"s":"x"}', b'{"a":1,"s":"x"', b'"a":1,"s":"x"}'),
    *(
        b'{"a":1,"s":"x,y"}',
        b'{"a":1,"s":"x"y"}',
        b'{"a":1,"s":"\\n"}',
        b'{"a":1,"s":"\n"}',
        b'{"a":1,"s":"}',
    ),
    *(
        b'{"a":1,"s":"\xff"}',
        b'{"a":1,"s":"\xed\xa0\xbd"}',
        b'{"a":1,"s":2}',
        b'{"a":1,"s":x}',
        b'{"a":1,"s":}',
    ),
    *(
        b'{"a":1.0,"s":"x"}',
        b'{"a":"1","s":"x"}',
        b'{"a":true,"s":"x"}',
        b'{"a":,"s":"x"}',
        b'{"a":-,"s":"x"}',
    ),
    *(
        b'{"a":01,"s":"x"}',
        b'{"a":-01,"s":"x"}',
        b'{"a":0x1,"s":"x"}',
        b'{"a":+1,"s":"x"}',
        b'{"a":1-,"s":"x"}',
    ),
    *(b'{"a":9223372036854775808,"s":"x"}', b'{"a":nul,"s":"x"}', b'{"a":[1],"s":"x"}', b'{"a":{},"s":"x"}'),
    *(b"", b"{}", b"null", b'{"a":1,"s":"x"}{"a":1,"s":"x"}', b'{"a":1,"a":1}', b'{"a":1},"s":"x"}', None),
]


@pytest.mark.parametrize("other", OTHERS)
def test_nothing_is_taken_where_one_message_is_another(other):
    good = b'{"a":7,"s":"good"}'
    assert columns(good, good) == {"a": [7, 7], "s": ["good", "good"]}
    assert columns(good, other) is None
    assert columns(good, other, good) is None


@pytest.mark.parametrize(
    "number",
    [
        "01",
        "-01",
        "00",
        "+1",
        ".5",
        "-.5",
        "1.",
        "1.e5",
        "1e",
        "1e+",
        "1.5.",
        "inf",
        "-inf",
        "nan",
        "-",
        "",
        "0x1",
    ],
)
def test_numbers_of_arrow_that_json_does_not_have_are_left_to_the_parser(number):
    for field in ("f", "d", "s", "x"):
        message = f'{{"{field}":{number}}}'.encode()
        assert columns(f'{{"{field}":1}}'.encode(), message) is None
        assert columns(message) is None


@pytest.mark.parametrize(
    "message",
    [
        *(b'{"a":1,"a":2}', b'{"\\u0061":1}', b'{"\xff":1}', b'{"l":[1]}', b'{"l":null}', b'{"s":{"a":1}}'),
        *(
            b'{"a":1',
            b"{}",
            b"",
            b"[]",
            b'{"b":1}',
            b'{"f":"NaN"}',
            b'{"d":NaN}',
            b'{"d":-Infinity}',
            b'{"a":1}}',
        ),
    ],
)
def test_nothing_is_taken_of_messages_that_are_not_flat_or_not_of_the_schema(message):
    assert columns(message, message) is None


def test_messages_in_other_bounds_than_their_commas_say_are_not_taken():
    assert columns(b'{"a":1,"s":"x"}', b'{"a":1', b',"s":"x"}{"a":2,"s":"y"}') is None
    assert columns(b'{"s":"x,"}', b'{"s":"y"}') is None
    assert columns(b'{"a":1,"i":2}', b'{"a":1,"i":2,"i":3}', b'{"a":1}') is None
    assert columns(b'{"x,y":1,"a":2}', b'{"a":2}', b'{"x,y":1,"a":2}') is None


NUMBERS = st.sampled_from(["0", "-0", "1", "-12", "0.5", "-0.25", "1e2", "2E-1", "3.50", "123456789012"])
ODD = st.sampled_from(
    ["01", "1.", ".5", "+1", "inf", "NaN", "0x1", '"x"', '"', "true", "tru", "[1]", "{}", "", "1,2", "}"]
)
WORDS = st.sampled_from(["true", "false", "null"])
TEXTS = st.sampled_from(
    ['"x"', '""', '"ü"', '"null"', '"1"', '"}"', '"{"', '": "', "null", '"a,b"', '"\\n"', '"\n"']
)
KINDS = st.sampled_from([NUMBERS, NUMBERS, NUMBERS, WORDS, TEXTS, NUMBERS | st.just("null")])


@st.composite
def batches(draw: Any) -> list[bytes]:
    """Messages that have the same fields, most of them with values of the same kinds."""
    names = draw(st.lists(st.sampled_from([*SCHEMA.names[:-1], "x", "y"]), min_size=1, max_size=4))
    kinds = [draw(KINDS) for _ in names]
    blank, end = draw(st.sampled_from(["", "", " ", "\n"])), draw(st.sampled_from(["}", "}", " }", "}\n"]))
    messages = []
    for _ in range(draw(st.integers(1, 4))):
        oddity = draw(st.integers(0, 8 * len(names)))
        values = [draw(ODD if number == oddity else kind) for number, kind in enumerate(kinds)]
        fields = (f'"{name}":{blank}{value}' for name, value in zip(names, values, strict=True))
        messages.append(f"{{{f',{blank}'.join(fields)}{end}".encode())
    return messages


@settings(max_examples=150, deadline=None)
@given(batches())
def test_what_is_taken_is_what_messages_say_one_by_one(messages):
    found = flat_json.columns(pa.array(messages, pa.binary()), SCHEMA)
    if found is None:
        return
    for row, message in enumerate(messages):
        fields = JsonValues(SCHEMA)._row(message)
        assert fields is not None, message
        expected = [
            pa.scalar(value, type_).as_py() for value, type_ in zip(fields, SCHEMA.types, strict=True)
        ]
        assert repr([column[row].as_py() for column in found.values()]) == repr(expected), message


def test_the_parser_of_arrow_makes_the_same_columns():
    schema = pa.schema([("a", pa.int64()), ("f", pa.float32()), ("d", pa.float64())])
    messages = [
        f'{{"a": {n * 7919}, "f": {n / 7}, "d": {(-1) ** n * n**11 / 13}}}'.encode() for n in range(2000)
    ]
    values = pa.array(messages, pa.binary())
    parsed = JsonValues(schema)._parse(values)
    found = flat_json.columns(values, schema)
    assert all(found[name].equals(parsed.column(name).combine_chunks()) for name in schema.names)
