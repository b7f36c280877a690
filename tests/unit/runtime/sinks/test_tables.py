from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError, TableMismatchError
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.sinks import hive, tables

RUN = Run(dag_id="d", task_id="t", run_id="r")


@pytest.mark.parametrize(
    ("found", "expected", "widens"),
    [
        ("int", "bigint", True),
        ("bigint", "int", False),
        ("float", "double", True),
        ("double", "float", False),
        ("int", "double", False),
        ("string", "int", False),
        ("int", "int", False),
    ],
)
def test_only_types_that_hold_every_value_are_wider(found, expected, widens):
    assert tables.widens(found, expected) is widens


def test_columns_that_differ_in_capitals_alone_are_named():
    tables.require_distinct(["id", "ds"], "delta /lake/t")
    with pytest.raises(TableMismatchError, match="columns 'a' and 'A' would be one column; columns 'DS' and"):
        tables.require_distinct(["a", "DS", "b", "A", "ds"], "delta /lake/t")


def test_a_string_is_no_more_than_a_string_of_sql():
    assert tables.text("it's \\ or 1=1 --") == r"'it\'s \\ or 1=1 --'"


def test_tries_of_one_partition_meet_and_others_do_not():
    def place(run=RUN, **arguments):
        return tables.place("/lake/t/", Sink.delta("/lake/t", **arguments), run)

    day = {"ds": "1", "hour": "2"}
    assert place(partition=day).startswith("/lake/t.")
    assert place(partition=day) == place(partition=dict(reversed(day.items())), run=None)
    assert len({place(), place(partition={"ds": "1"}), place(partition=day)}) == 3


def test_runs_that_merge_do_not_take_anything_from_each_other():
    sink = Sink.delta("/lake/t", mode="merge", keys=["id"])
    other, cleared = (
        Run(dag_id="d", task_id="t", run_id="other"),
        Run(dag_id="d", task_id="t", run_id="r", clear_number=7),
    )
    found = [tables.place("/lake/t", sink, run) for run in (RUN, cleared, other)]
    assert found[0] == found[1] != found[2]


def test_a_try_comes_after_all_that_are_there():
    later = "hydrogen-9000000000000000000-0123456789ab"
    found = hive._next_folder(["ds=1", "hydrogen-1", later], "ba9876543210")
    assert found == "hydrogen-9000000000000000001-ba9876543210"
    assert hive._next_folder([], "ba9876543210") > "hydrogen-1790000000000000000"


def test_a_table_of_hive_is_never_replaced_as_a_whole():
    with pytest.raises(InvalidJobError, match=r"name it, as in Sink\.hive"):
        Sink.hive("lake.t")
    assert Sink.hive("lake.t", mode="append").for_run(RUN).partition
