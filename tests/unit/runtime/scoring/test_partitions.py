"""Which partition a row belongs to: by the type of its column, and none but those that are declared."""

from __future__ import annotations

import datetime
import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import UndeclaredPartitionError
from airflow_hydrogen.runtime.scoring.partitions import Partitions, counts
from airflow_hydrogen.runtime.sinks.divided_files import PARTITION

UTC = datetime.timezone.utc


def numbers(partitions, **columns):
    return partitions.numbered(pa.record_batch(columns)).column(PARTITION).to_pylist()


@pytest.mark.parametrize(
    ("texts", "column"),
    [
        (("b", "a"), pa.array(["a", "b"])),
        (("06", "5"), pa.array([5, 6], pa.int8())),
        (("2013-01-02", "2013-01-01"), pa.array([datetime.date(2013, 1, 1), datetime.date(2013, 1, 2)])),
        (("true", "false"), pa.array([False, True])),
        (("2.50", "1.50"), pa.array([1.5, 2.5])),
        (
            ("2013-01-01 01:00", "2013-01-01T00:00:00+00:00"),
            pa.array(
                [datetime.datetime(2013, 1, 1, hour, tzinfo=UTC) for hour in (0, 1)],
                pa.timestamp("us", "UTC"),
            ),
        ),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_values_are_compared_as_the_columns_type(texts, column):
    assert numbers(Partitions(("x",), tuple((text,) for text in texts)), x=column) == [1, 0]


@given(st.data())
def test_rows_of_several_columns_come_to_the_partition_with_all_of_their_values(data):
    pairs = data.draw(
        st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), min_size=1, unique=True)
    )
    rows = data.draw(st.lists(st.sampled_from(pairs)))
    partitions = Partitions(("x", "y"), tuple((x, str(y)) for x, y in pairs))
    x, y = pa.array([x for x, _ in rows], pa.string()), pa.array([y for _, y in rows], pa.int64())
    batch = pickle.loads(pickle.dumps(partitions)).numbered(pa.record_batch({"x": x, "y": y}))
    assert batch.column(PARTITION).to_pylist() == [pairs.index(row) for row in rows]
    assert counts(batch) == {
        number: rows.count(pairs[number]) for number in {pairs.index(row) for row in rows}
    }


def test_a_pair_that_is_not_declared_is_told_though_each_of_its_values_is():
    partitions = Partitions(("x", "y"), (("a", "1"), ("b", "2")))
    with pytest.raises(UndeclaredPartitionError) as caught:
        numbers(partitions, x=pa.array(["a", "a", None, "b"]), y=pa.array([1, 2, 1, None]))
    assert caught.value.found == ["x='a'/y='2'", "x=null/y='1'", "x='b'/y=null"]
    assert "the sink's partitions by 'x', 'y' are 'a/1', 'b/2'; nothing is replaced" in str(caught.value)


def test_some_of_many_partitions_are_told():
    partitions = Partitions(("x",), tuple((str(number),) for number in range(100)))
    with pytest.raises(UndeclaredPartitionError, match=r"are 100: '0' to '99'; nothing") as caught:
        numbers(partitions, x=pa.array(list(range(90, 1000))))
    assert caught.value.found == [f"x='{number}'" for number in range(100, 105)]
