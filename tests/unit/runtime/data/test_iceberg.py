from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.data import iceberg
from airflow_hydrogen.runtime.data.conditions import Both, Comparison, Either, IsNull, Not, OneOf


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiceberg", None)
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    source = Source.iceberg("db.t", catalog={"uri": "http://catalog"})
    with pytest.raises(InvalidJobError, match=r"airflow-hydrogen\[iceberg\] where Spark's driver runs"):
        iceberg.catalog_of(source, {})
    with pytest.raises(InvalidJobError, match=r"source iceberg db.t .*airflow-hydrogen\[iceberg\] on exec"):
        next(iceberg.rows_of(str(source), b"", 0))


@pytest.fixture
def schema():
    from pyiceberg.schema import Schema
    from pyiceberg.types import DateType, DoubleType, ListType, LongType, NestedField, StringType

    types = {"id": LongType(), "ds": StringType(), "day": DateType(), "x": DoubleType()}
    types["many"] = ListType(9, LongType())
    return Schema(
        *(NestedField(n, name, type_, required=False) for n, (name, type_) in enumerate(types.items(), 1))
    )


ID, DS, X = Comparison("=", "id", 1), Comparison("<", "ds", "b"), Comparison(">", "x", 1.0)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (ID, "EqualTo('id', 1)"),
        (Comparison("<=>", "day", 15000), "EqualTo('day', 15000)"),
        (Both(ID, DS), "And(EqualTo('id', 1), LessThan('ds', 'b'))"),
        (Both(X, DS), "LessThan('ds', 'b')"),
        (Either(ID, DS), "Or(EqualTo('id', 1), LessThan('ds', 'b'))"),
        (OneOf("id", (1, 2)), "In('id', (1, 2))"),
        (Not(IsNull("ds")), "NotNull('ds')"),
        (IsNull("ds"), "IsNull('ds')"),
    ],
)
def test_files_are_asked_no_more_than_the_rows(schema, condition, expected):
    from pyiceberg import expressions

    wanted = eval(expected, vars(expressions))
    assert iceberg._expression(condition, schema) == wanted


@pytest.mark.parametrize(
    "condition",
    [
        *(X, Not(ID), Either(ID, X), OneOf("x", (1.0,)), Both(X, Not(DS))),
        *(Comparison("=", "ID", 1), Not(IsNull("Ds")), Not(IsNull("many"))),
    ],
)
def test_of_what_is_not_for_certain_files_are_asked_nothing(schema, condition):
    """Floats: Iceberg's bounds leave NaN out, which Spark takes for the largest number."""
    assert iceberg._expression(condition, schema) is None


def test_files_are_dealt_to_tasks_by_their_bytes():
    def files(*sizes):
        mega = 1024 * 1024
        return [SimpleNamespace(file=SimpleNamespace(file_size_in_bytes=size * mega)) for size in sizes]

    def dealt(*sizes):
        hands = iceberg._dealt(files(*sizes))
        return [[task.file.file_size_in_bytes >> 20 for task in hand] for hand in hands]

    assert dealt(100, 50, 1, 300, 2) == [[100, 50], [1, 300], [2]]
    assert dealt() == []
