"""What of a table as a sink needs neither Spark nor a database."""

from __future__ import annotations

from collections import Counter

import pytest
from pyspark.sql import types

from airflow_hydrogen.contract.errors import DatabaseRefusedError, InvalidJobError
from airflow_hydrogen.runtime.sinks import dialects, jdbc
from airflow_hydrogen.runtime.sinks.attempts import _Sum, condition
from airflow_hydrogen.runtime.sinks.connections import Column, Table, split
from airflow_hydrogen.runtime.sinks.targets import fits


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("scores", [("scores", False)]),
        ("Shop.scores", [("Shop", False), ("scores", False)]),
        ('shop."The.Scores"', [("shop", False), ("The.Scores", True)]),
        ('"a ""b"""', [('a "b"', True)]),
        ("`a``b`.c", [("a`b", True), ("c", False)]),
        ("server.shop.scores", [("server", False), ("shop", False), ("scores", False)]),
    ],
)
def test_names_of_tables_have_parts(name, parts):
    assert split(name) == parts


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", '"a', 'a"b"', '"a"b', "a.b.c.d", '""', " . "])
def test_what_is_no_name_of_a_table_is_refused(name):
    with pytest.raises(InvalidJobError, match="must be a name such as"):
        split(name)


@pytest.mark.parametrize(
    ("attempts", "sql"),
    [
        ([], "(1 = 0)"),
        ([7], "(a between 7 and 7)"),
        ([5, 3, 4, 9], "(a between 3 and 5 or a between 9 and 9)"),
    ],
)
def test_accepted_attempts_are_ranges(attempts, sql):
    assert condition("a", dict.fromkeys(attempts, 1)) == sql


def test_counts_of_tasks_add_up_and_leave_their_parts_alone():
    first = Counter({1: 2})
    assert _Sum().addInPlace(first, Counter({1: 3, 2: 0, 4: 1})) == {1: 5, 4: 1}
    assert first == {1: 2}
    assert _Sum().zero(first) == {}


TYPES = {
    "long": types.LongType(),
    "int": types.IntegerType(),
    "float": types.FloatType(),
    "double": types.DoubleType(),
    "decimal(20,0)": types.DecimalType(20, 0),
    "string": types.StringType(),
    "varchar(9)": types.VarcharType(9),
    "boolean": types.BooleanType(),
    "date": types.DateType(),
    "timestamp": types.TimestampType(),
    "timestamp_ntz": types.TimestampNTZType(),
    "binary": types.BinaryType(),
    "array<float>": types.ArrayType(types.FloatType()),
    "array<double>": types.ArrayType(types.DoubleType()),
    "array<int>": types.ArrayType(types.IntegerType()),
    "array<string>": types.ArrayType(types.StringType()),
}


@pytest.mark.parametrize(
    ("written", "held", "expected"),
    [
        ("long", "int", True),
        ("int", "double", True),
        ("long", "decimal(20,0)", True),
        ("double", "float", True),
        ("double", "long", False),
        ("double", "string", True),
        ("boolean", "boolean", True),
        ("boolean", "int", False),
        ("boolean", "string", False),
        ("string", "varchar(9)", True),
        ("string", "double", False),
        ("date", "timestamp", True),
        ("timestamp", "date", False),
        ("timestamp", "timestamp_ntz", True),
        ("array<float>", "array<double>", True),
        ("array<float>", "array<int>", False),
        ("array<float>", "string", False),
        ("string", "array<string>", False),
        ("binary", "binary", True),
    ],
)
def test_a_column_holds_what_does_not_change_in_it(written, held, expected):
    assert fits(TYPES[written], TYPES[held]) is expected


def test_mysql_compares_text_as_it_is_written():
    text = Column("ds", 12, "VARCHAR", 9, needed=False)
    number = Column("hour", 4, "INT", 10, needed=False)
    assert dialects.of("jdbc:mysql://db/shop").equals("`ds`", text)[1] == 2
    assert dialects.of("jdbc:mysql://db/shop").equals("`hour`", number) == ("`hour` = ?", 1)
    assert dialects.of("jdbc:postgresql://db/shop").equals('"ds"', text) == ('"ds" = ?', 1)
    assert type(dialects.of("jdbc:sqlserver://db")) is dialects.AnyDatabase


@pytest.mark.parametrize(
    ("state", "retryable"), [("23505", False), ("42501", False), ("40001", True), ("08006", True), ("", True)]
)
def test_what_a_database_refuses_for_good_is_not_tried_again(state, retryable):
    assert DatabaseRefusedError("sink", "reason", state).retryable is retryable


def test_a_try_comes_after_all_that_are_there():
    first = jdbc.next_name("hydrogen_0_", [], "abcdef")
    assert first < jdbc.next_name("hydrogen_0_", [], "000000")
    later = "hydrogen_0_7ffffffffffffffe_000000"
    assert jdbc.next_name("hydrogen_0_", [first, later], "abcdef") == "hydrogen_0_7fffffffffffffff_abcdef"


class Answers:
    """A connection to a server that gives answers of `get_lock`."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def execute(self, sql):
        pass

    def query(self, sql):
        return [self._answers.pop(0)]

    def refusal(self, reason, state):
        return DatabaseRefusedError("sink", reason, state)

    def begin(self, isolation):
        assert not self._answers


def test_who_waits_for_a_lock_of_mysql_learns_that_the_waiting_was_ended(capsys):
    mysql, table = dialects.of("jdbc:mysql://db/shop"), Table("shop", None, "scores", "`scores`")
    mysql.begin(Answers("0", "1"), table)
    assert "another try has been changing the table for a day" in capsys.readouterr().out
    with pytest.raises(DatabaseRefusedError, match="get_lock") as refused:
        mysql.begin(Answers(None), table)
    assert refused.value.retryable
