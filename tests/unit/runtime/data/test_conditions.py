from __future__ import annotations

import math
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_hydrogen.runtime.data.conditions import Both, Comparison, Either, IsNull, Not, OneOf, all_of
from airflow_hydrogen.runtime.data.files import list_dataset, read_footers
from airflow_hydrogen.runtime.data.scans import Scan
from airflow_hydrogen.runtime.scoring.direct import read, row_groups

SCHEMA = pa.schema([("n", pa.int32()), ("x", pa.float64()), ("s", pa.string()), ("b", pa.bool_())])
VALUES = {
    "n": st.integers(-2, 2),
    "x": st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 1.5, math.inf, math.nan]),
    "s": st.sampled_from(["", "a", "ab", "z", "é", "𝄞"]),
    "b": st.booleans(),
}

rows = st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()})
tables = st.lists(rows, min_size=1, max_size=12)
comparisons = st.sampled_from(["n", "x", "s"]).flatmap(
    lambda name: st.builds(
        Comparison, st.sampled_from(["=", "<=>", "<", "<=", ">", ">="]), st.just(name), VALUES[name]
    )
)
leaves = st.one_of(
    comparisons,
    st.builds(Comparison, st.sampled_from(["=", "<=>"]), st.just("b"), st.booleans()),
    st.builds(IsNull, st.sampled_from(SCHEMA.names)),
    st.sampled_from(["n", "s"]).flatmap(
        lambda name: st.builds(
            OneOf, st.just(name), st.lists(VALUES[name], min_size=1, max_size=3).map(tuple)
        )
    ),
)
wanted = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner), st.builds(Both, inner, inner), st.builds(Either, inner, inner)
    ),
    max_leaves=6,
)


def rank(value):
    """A key in Spark's order: NaN after all numbers, -0.0 as 0.0, strings by their bytes."""
    if isinstance(value, str):
        return value.encode()
    return (math.isnan(value), 0.0 if math.isnan(value) else float(value))


def asked(condition, row):
    """What SQL says of one row: True, False or None."""
    match condition:
        case Not(inner):
            found = asked(inner, row)
            return None if found is None else not found
        case Both(left, right) | Either(left, right):
            found = {asked(left, row), asked(right, row)}
            decisive = isinstance(condition, Either)
            return decisive if decisive in found else (None if None in found else not decisive)
        case IsNull(column):
            return row[column] is None
        case OneOf(column, values):
            return None if row[column] is None else row[column] in values
        case Comparison(sign, column, value):
            if row[column] is None:
                return False if sign == "<=>" else None
            found, bound = rank(row[column]), rank(value)
            return {
                "=": found == bound,
                "<=>": found == bound,
                "<": found < bound,
                "<=": found <= bound,
                ">": found > bound,
                ">=": found >= bound,
            }[sign]
    raise AssertionError(condition)


@given(tables, wanted)
def test_a_condition_says_of_each_row_what_sql_says(found, condition):
    batch = pa.RecordBatch.from_pylist(found, SCHEMA)
    assert condition.mask(batch).to_pylist() == [asked(condition, row) for row in found]
    assert condition.columns <= set(SCHEMA.names)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, wanted, st.integers(1, 4))
def test_row_groups_that_are_skipped_hold_no_row_that_is_wanted(tmp_path, found, condition, group_rows):
    pq.write_table(pa.Table.from_pylist(found, SCHEMA), tmp_path / "x.parquet", row_group_size=group_rows)
    files = read_footers(list_dataset(str(tmp_path)), condition=condition)
    batches = read(Scan(files, condition), row_groups(files), SCHEMA.names, 5)
    kept = [row for batch in batches for row in batch.to_pylist()]
    ordered = [{name: row[name] for name in SCHEMA.names} for row in found if asked(condition, row)]
    assert repr(kept) == repr(ordered)  # of NaN too, which equals nothing


@pytest.mark.parametrize(
    ("condition", "read_groups"),
    [
        (Comparison("=", "n", 15), [1]),
        (Comparison("<", "n", 10), [0]),
        (Comparison("<=", "n", 10), [0, 1]),
        (Comparison(">", "s", "s19"), [2]),
        (OneOf("n", (3, 29)), [0, 2]),
        (Both(Comparison(">=", "n", 5), Comparison("<", "n", 12)), [0, 1]),
        (Either(Comparison("<", "n", 5), Comparison(">", "s", "s28")), [0, 2]),
        (Comparison(">", "x", 100.0), [0, 1, 2]),  # NaN is larger, and stands in no statistics
        (Comparison("<", "x", -1.0), []),
        (Not(Comparison("<", "n", 10)), [0, 1, 2]),
    ],
)
def test_row_groups_are_skipped_by_their_statistics(tmp_path, condition, read_groups):
    numbers = range(30)
    table = pa.table(
        {
            "n": pa.array(numbers, pa.int32()),
            "s": [f"s{n:02}" for n in numbers],
            "x": [math.nan if n % 5 == 0 else float(n) for n in numbers],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10)
    files = read_footers(list_dataset(str(tmp_path)), condition=condition)
    assert [group.index for group in row_groups(files)] == read_groups
    assert files.total_rows == 30


def test_without_statistics_everything_is_read(tmp_path):
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "x.parquet", write_statistics=False)
    files = read_footers(list_dataset(str(tmp_path)), condition=Comparison("=", "n", 9))
    assert len(row_groups(files)) == 1


def test_conditions_travel_and_several_are_one():
    condition = all_of([IsNull("a"), Comparison("=", "b", 1), Not(IsNull("c"))])
    assert condition is not None
    assert pickle.loads(pickle.dumps(condition)) == condition
    assert condition.columns == {"a", "b", "c"}
    assert all_of([]) is None
