"""What Delta's log says of a file: bounds that hold, or none."""

from __future__ import annotations

import datetime
import decimal
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.sinks.delta_statistics import statistics
from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles

UTC = datetime.timezone.utc


def statistics_of(table, folder=None, tight=False):
    """Of a file that a task has written, or pyarrow by itself where there is no folder."""
    if folder is None:
        written = io.BytesIO()
        pq.write_table(table, written, row_group_size=2)
        footer = pq.read_metadata(written)
    else:
        with TaskFile(TaskFiles("sink", str(folder), table.schema, ranges=True)) as file:
            for batch in table.to_batches():
                file.add(batch)
        footer = pq.read_metadata(folder / file.name)
    return json.loads(statistics(footer, table.schema, tight=tight))


def column(values, type_, folder=None):
    found = statistics_of(pa.table({"c": pa.array(values, type_)}), folder)
    assert found["numRecords"] == len(values)
    return tuple(found[kind].get("c") for kind in ("minValues", "maxValues", "nullCount"))


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        ([3, None, -1, None, None], pa.int64(), (-1, 3, 3)),
        ([None, None], pa.int32(), (None, None, 2)),
        (["b", "a", None], pa.string(), ("a", "b", 1)),
        ([True, False], pa.bool_(), (None, None, 0)),
        ([b"x"], pa.binary(), (None, None, 0)),
        ([decimal.Decimal("1.50")], pa.decimal128(9, 2), (None, None, 0)),
        ([datetime.date(1, 1, 1), datetime.date(2013, 1, 2)], pa.date32(), ("0001-01-01", "2013-01-02", 0)),
        ([4_000_000], pa.date32(), (None, None, 0)),  # in the year 12921
        (
            [
                datetime.datetime(2013, 1, 1, 5, 0, 0, 1999, UTC),
                datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
            ],
            pa.timestamp("us", "UTC"),
            ("1969-12-31T23:59:59.999Z", "2013-01-01T05:00:00.001Z", 0),
        ),
        ([[1], []], pa.list_(pa.int64()), (None, None, None)),
        ([{"x": 1}, None], pa.struct([("x", pa.int64())]), (None, None, None)),
    ],
)  # fmt: skip
def test_bounds_of_every_type_that_is_certain(values, type_, expected):
    assert column(values, type_) == expected


def test_times_need_no_newer_python_than_the_oldest_that_is_supported(monkeypatch):
    monkeypatch.delattr(datetime, "UTC", raising=False)  # not in Python 3.10
    noon = datetime.datetime(2013, 1, 1, 12, tzinfo=UTC)
    assert column([noon], pa.timestamp("us", "UTC")) == (*["2013-01-01T12:00:00.000Z"] * 2, 0)


def test_nan_is_greater_than_every_bound(tmp_path):
    nan, inf = float("nan"), float("inf")
    assert column([1.5, -2.0], pa.float32(), tmp_path) == (-2.0, 1.5, 0)
    assert column([1.5, nan, -2.0, None], pa.float32(), tmp_path) == (-2.0, None, 1)
    assert column([nan], pa.float64(), tmp_path) == (None, None, 0)
    assert column([1.0, inf, -inf], pa.float64(), tmp_path) == (None, None, 0)
    assert column([0.1, None], pa.float32(), tmp_path)[:2] == (pa.scalar(0.1, pa.float32()).as_py(),) * 2
    assert column([None], pa.float32(), tmp_path) == (None, None, 1)
    assert column([1.5, -2.0], pa.float32()) == (None, None, None), "nobody has looked for NaN"


def test_long_texts_are_cut_to_bounds_that_still_hold():
    least, greatest, _ = column(["a" * 40, "é" * 40], pa.string())
    assert (least, greatest) == ("a" * 32, "é" * 32 + "\U0010ffff")
    assert column(["b" * 40], pa.string()) == ("b" * 32, "b" * 32 + "\x7f", 0)
    assert column(["b" * 32 + "\U0010ffff" * 2], pa.string()) == ("b" * 32, None, 0)
    assert column(["x" * 5000], pa.string())[:2] == (None, None), "Parquet itself leaves them out"


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_no_text_exceeds_its_bounds(texts):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    least, greatest, _ = column(texts, pa.string())
    assert all(least.encode() <= text.encode() for text in texts)
    assert greatest is None or all(text.encode() <= greatest.encode() for text in texts)


def test_columns_behind_the_first_32_have_no_statistics_and_the_others_keep_their_order():
    table = pa.table({f"c{n:02d}": [n] for n in range(40)})
    found = statistics_of(table)
    assert list(found["minValues"]) == [f"c{n:02d}" for n in range(32)]
    assert "tightBounds" not in found
    assert statistics_of(table, tight=True)["tightBounds"] is True
    dotted = pa.table({"a.b": [7], "a": pa.array([{"b": 1}], pa.struct([("b", pa.int64())]))})
    assert statistics_of(dotted)["minValues"] == {"a.b": 7}
