"""Files of a Delta table that tasks have written: as if Spark had, by a real Delta."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest

from airflow_hydrogen.contract.errors import PartitionTakenError, RowsLostError, TableBusyError
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.sinks import delta, delta_files, placements
from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles
from airflow_hydrogen.runtime.storage import filesystems, swap

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RUN = Run(dag_id="d", task_id="t", run_id="r")
DAY = {"ds": "2013-01-02"}
ODD = """
select * from values
  (1L, 1S, float(1.5), double(-0.0), 'a', date'1001-01-01', timestamp'2013-01-01 05:00:00.001999', 1.50BD, true, x'00', array(1)),
  (2L, null, float('nan'), double(2.5), repeat('é', 40), date'2013-01-02', timestamp'1969-12-31 23:59:59.999999', null, null, null, null),
  (null, -3S, null, double(1), '', null, null, 3.25BD, false, x'ff', array())
  as t (id, small, f, d, text, day, at, price, flag, bytes, list)
"""  # noqa: E501


def other_run(name):
    return Run(dag_id="d", task_id="t", run_id=name)


class Table:
    """A Delta table that tasks' files are put into, or, to compare it with, rows of Spark."""

    def __init__(self, warehouse, folder):
        self.warehouse, self.folder = warehouse, folder
        self.name = f"delta.`{folder}`"

    def sink(self, **arguments):
        return Sink.delta(str(self.folder), **arguments)

    def placing(self, frame, sink, run=RUN, types=None):
        return placements.placing(self.warehouse, sink.for_run(run), run, {}, types, frame.schema)

    def put(self, frame, sink, run=RUN, types=None, lost=False):
        """Write each partition of a frame as a task would, and commit; how many rows there are."""
        with self.placing(frame, sink, run, types) as place:
            assert place.by_tasks is not None
            folder = swap.staging_uri(place.by_tasks.place, swap.new_token())
            filesystems.make_folder(folder)
            files = place.by_tasks.fitted(TaskFiles("sink", folder, pa.schema([])))
            names = []
            for batch in frame.toArrow().to_batches():
                with TaskFile(files) as file:
                    file.add(batch)
                names += [file.name] if file.name else []
            rows = files.accept(names[1:] if lost else names, place.by_tasks.staged)
            swap.sweep(folder)
            place.commit(rows=rows, model="/models/none")
        return rows

    def put_by_spark(self, frame, sink, types=None):
        with placements.placing(self.warehouse, sink, RUN, {}, types) as place:
            rows, _ = place.stage(frame, None)
            place.commit(rows=rows, model="/models/none")

    def frame(self, where="true"):
        return self.warehouse.read.format("delta").load(str(self.folder)).where(where)

    def ids(self, where="true"):
        return sorted(row["id"] for row in self.frame(where).select("id").collect())

    def actions(self, kind, version=-1):
        commits = sorted((self.folder / "_delta_log").glob("*.json"))
        lines = map(json.loads, commits[version].read_text().splitlines())
        return [line[kind] for line in lines if kind in line]

    def data_files(self):
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("part-*.parquet")}

    def beside(self):
        return [path.name for path in self.folder.parent.iterdir() if path.name.startswith(".lake")]


@pytest.fixture
def table(warehouse, tmp_path):
    return Table(warehouse, tmp_path / "lake")


@pytest.fixture
def of_spark(warehouse, tmp_path):
    return Table(warehouse, tmp_path / "of_spark")


def killed(*_given):
    raise KeyboardInterrupt


def numbers(warehouse, start, end):
    return warehouse.range(start, end, 1, 1).selectExpr("id", "cast(id as float) as prediction")


# --- As Spark writes ---------------------------------------------------------------------------------------


def test_rows_statistics_and_commit_are_those_of_sparks_own_writer(table, of_spark, warehouse):
    frame = warehouse.sql(ODD).coalesce(1)
    for number in range(2):  # the second replaces the first
        assert table.put(frame, table.sink(partition=DAY)) == 3
        of_spark.put_by_spark(frame, of_spark.sink(partition=DAY))
        [ours], [theirs] = table.actions("add"), of_spark.actions("add")
        assert len(table.actions("remove")) == len(of_spark.actions("remove")) == number
    assert ours["partitionValues"] == theirs["partitionValues"] == DAY
    assert Path(ours["path"]).parent == Path(theirs["path"]).parent == Path("ds=2013-01-02")
    assert ours.keys() - {"tags"} == theirs.keys()
    statistics, expected = json.loads(ours["stats"]), json.loads(theirs["stats"])
    assert statistics["numRecords"] == 3
    assert expected["maxValues"].pop("f") == "NaN"
    for kind in ("minValues", "maxValues", "nullCount"):
        left_out = {"price"} if kind != "nullCount" else {"list"}
        assert expected[kind].keys() - statistics[kind].keys() == left_out & expected[kind].keys()
        assert statistics[kind] == {name: expected[kind][name] for name in statistics[kind]}, kind
    [info], [told] = table.actions("commitInfo"), of_spark.actions("commitInfo")
    for what in ("operation", "operationParameters", "isolationLevel", "isBlindAppend", "readVersion"):
        assert info[what] == told[what], what
    assert json.loads(info["userMetadata"]).keys() == json.loads(told["userMetadata"]).keys()
    assert info["operationMetrics"].keys() == told["operationMetrics"].keys()
    for count in ("numFiles", "numOutputRows", "numRemovedFiles"):
        assert info["operationMetrics"][count] == told["operationMetrics"][count]
    assert [txn["appId"] for txn in table.actions("txn")] == [txn["appId"] for txn in of_spark.actions("txn")]
    assert table.frame().collect() == of_spark.frame().collect() or sorted(
        map(str, table.frame().collect())
    ) == sorted(map(str, of_spark.frame().collect()))
    assert table.frame().schema == of_spark.frame().schema


def test_queries_skip_files_by_their_statistics_and_no_row(table, warehouse):
    for number, query in enumerate(
        (
            "select id, cast(id as float) as f, repeat('a', 33) || id as text, timestamp_millis(id) as at "
            "from range(10)",
            "select id, float('nan') as f, 'b' as text, timestamp_micros(20000999) as at from range(90, 95)",
            "select id, if(id = 20, float('nan'), float(-5)) as f, 'a' as text, timestamp_millis(1) as at "
            "from range(20, 22)",
        )
    ):
        table.put(warehouse.sql(query).coalesce(1), table.sink(partition={"part": str(number)}))
    for where, rows, files in (
        ("id < 10", 10, 1),
        ("id > 1000", 0, 0),
        ("f > 5", 10, 3),  # NaN is greater than all
        ("f < -4", 1, 2),
        ("f = float('nan')", 6, 2),
        ("text > 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa8'", 6, 2),
        ("text > 'b'", 0, 0),
        ("text = 'b'", 5, 1),
        ("at >= timestamp_micros(20000999)", 5, 1),
        ("id is null", 0, 0),
    ):
        found = table.frame(where)
        assert (found.count(), len(found.inputFiles())) == (rows, files), where


def test_values_of_a_partition_may_hold_anything(table, of_spark, warehouse):
    odd = "a'b\\ %20=x/é`\" 50% :#?d&e+f {g}[h] ..ß\t|<>^~,;@!$*()"
    for number, value in enumerate(("plain", odd, odd)):
        table.put(numbers(warehouse, number, number + 1), table.sink(partition={"ds": value}))
    of_spark.put_by_spark(numbers(warehouse, 0, 1), of_spark.sink(partition={"ds": odd}))
    [ours], [theirs] = table.actions("add"), of_spark.actions("add")
    assert ours["partitionValues"] == theirs["partitionValues"] == {"ds": odd}
    assert Path(ours["path"]).parent == Path(theirs["path"]).parent
    assert len(table.actions("remove")) == 1
    assert (table.folder / unquote(ours["path"])).is_file(), "so that VACUUM knows it"
    assert {row["ds"]: row["id"] for row in table.frame().collect()} == {"plain": 0, odd: 2}


@pytest.mark.soak
def test_vacuum_removes_what_was_brought_and_not_committed(table, warehouse, monkeypatch):
    odd = "a'b\\ %20=x/é`\" 50%"
    table.put(numbers(warehouse, 0, 3), table.sink(partition={"ds": odd}))
    with monkeypatch.context() as patched:
        patched.setattr(delta_files.Transaction, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            table.put(numbers(warehouse, 3, 5), table.sink(partition={"ds": odd}))
    assert len(table.data_files()) == 2
    warehouse.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    try:
        warehouse.sql(f"vacuum {table.name} retain 0 hours")
    finally:
        warehouse.conf.unset("spark.databricks.delta.retentionDurationCheck.enabled")
    assert (table.ids(), len(table.data_files())) == ([0, 1, 2], 1)


@pytest.mark.soak
def test_typed_partitions_and_wider_columns(table, warehouse):
    warehouse.sql(
        f"create table {table.name} (id bigint, prediction double, day date, hour int, flag boolean) using "
        "delta partitioned by (day, hour, flag)"
    )
    frame = warehouse.range(0, 3, 1, 1).selectExpr(
        "cast(id as int) as id", "cast(0.1 as float) as prediction"
    )
    for hour in ("5", "05"):
        sink = table.sink(partition={"hour": hour, "flag": "TRUE", "day": "2013-01-02"})
        assert table.put(frame, sink) == 3
    [row, *_] = table.frame("hour = 5 and flag and day = '2013-01-02' and id = 2").collect()
    assert row["prediction"] == pytest.approx(0.1, abs=1e-8)
    assert table.actions("add")[0]["path"].startswith("day=2013-01-02/hour=5/flag=true/")
    assert table.frame().count() == 3


def test_a_whole_table_is_replaced_by_no_rows_too(table, warehouse):
    for rows in (10, 7, 0):
        assert table.put(numbers(warehouse, 0, rows), table.sink()) == rows
        assert table.ids() == list(range(rows))
    assert len(table.actions("remove")) == 1


@pytest.mark.soak
def test_files_with_deletion_vectors_are_replaced(table, warehouse):
    table.put(numbers(warehouse, 10, 20), table.sink())
    warehouse.sql(f"alter table {table.name} set tblproperties (delta.enableDeletionVectors = true)")
    warehouse.sql(f"delete from {table.name} where id in (11, 13)")
    table.put(numbers(warehouse, 20, 25), table.sink())
    assert json.loads(table.actions("add")[0]["stats"])["tightBounds"] is True
    assert table.ids() == [20, 21, 22, 23, 24]


# --- What goes wrong ---------------------------------------------------------------------------------------


def test_files_of_tries_that_spark_did_not_accept_are_nowhere(table, warehouse):
    frame = warehouse.range(0, 10, 1, 2).selectExpr("id", "cast(id as float) as prediction")
    table.put(frame, table.sink(partition=DAY), lost=True)
    assert table.ids() == [5, 6, 7, 8, 9]
    assert len(table.data_files()) == 1 and table.beside() == []


def test_who_is_overtaken_in_its_partition_commits_on_what_is_there_then(table, warehouse, monkeypatch):
    table.put(numbers(warehouse, 0, 5), table.sink(partition=DAY))
    commit, tries = delta_files.Transaction.commit, []

    def overtaken(self, *given):
        tries.append(given)
        if len(tries) == 1:
            warehouse.sql(f"delete from {table.name} where id = 1")
        commit(self, *given)

    monkeypatch.setattr(delta_files.Transaction, "commit", overtaken)
    table.put(numbers(warehouse, 10, 12), table.sink(partition=DAY))
    assert len(tries) == 2
    assert table.ids() == [10, 11]
    assert len(table.actions("add")) == 1


@pytest.mark.soak
def test_another_partition_is_no_conflict(table, warehouse, monkeypatch):
    table.put(numbers(warehouse, 0, 5), table.sink(partition=DAY))
    commit, tries = delta_files.Transaction.commit, []

    def overtaken(self, *given):
        tries.append(given)
        if len(tries) == 1:
            table.put(numbers(warehouse, 50, 53), table.sink(partition={"ds": "other"}), other_run("other"))
        commit(self, *given)

    monkeypatch.setattr(delta_files.Transaction, "commit", overtaken)
    table.put(numbers(warehouse, 10, 12), table.sink(partition=DAY))
    assert len(tries) == 2 and table.ids() == [10, 11, 50, 51, 52]


def test_what_dies_between_bringing_and_committing_leaves_the_table_as_it_was(table, warehouse, monkeypatch):
    table.put(numbers(warehouse, 0, 5), table.sink(partition=DAY))
    before = table.data_files()
    with monkeypatch.context() as patched:
        patched.setattr(delta_files.Transaction, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            table.put(numbers(warehouse, 10, 12), table.sink(partition=DAY))
    assert len(table.data_files() - before) == 1, "they are brought, and nobody's"
    assert table.ids() == [0, 1, 2, 3, 4]
    table.put(numbers(warehouse, 20, 22), table.sink(partition=DAY))
    assert table.ids() == [20, 21]


def test_a_commit_that_fails_for_certain_takes_its_files_back(table, warehouse, monkeypatch):
    table.put(numbers(warehouse, 0, 5), table.sink(partition=DAY))
    before = table.data_files()

    def busy(self, *_given):
        from py4j.protocol import Py4JJavaError

        raise_ = warehouse._jvm.io.delta.exceptions.ConcurrentAppendException("files were added")
        raise Py4JJavaError("An error occurred", raise_)

    with monkeypatch.context() as patched:
        patched.setattr(delta, "ATTEMPTS", 2)
        patched.setattr(delta_files.Transaction, "commit", busy)
        with pytest.raises(TableBusyError):
            table.put(numbers(warehouse, 10, 12), table.sink(partition=DAY))
    assert table.data_files() == before and table.ids() == [0, 1, 2, 3, 4]
    assert table.beside() == []


@pytest.mark.soak
def test_a_commit_that_fails_after_it_is_there_is_one(table, warehouse, monkeypatch):
    from pyspark.errors import PySparkException

    commit = delta_files.Transaction.commit

    def fails(self, *given):
        commit(self, *given)
        raise PySparkException("the connection was reset")

    monkeypatch.setattr(delta_files.Transaction, "commit", fails)
    assert table.put(numbers(warehouse, 0, 5), table.sink(partition=DAY)) == 5
    assert table.ids() == [0, 1, 2, 3, 4]


@pytest.mark.soak
def test_an_older_try_that_comes_late_is_skipped(table, warehouse, monkeypatch):
    table.put(numbers(warehouse, 0, 2), table.sink(partition=DAY))
    begin, late = delta.Table.begin, []

    def slowly(self, session):
        if session is not self.spark and not late:  # a commit, and no look at the table
            late.append(1)
            table.put(numbers(warehouse, 100, 105), table.sink(partition=DAY))
        return begin(self, session)

    monkeypatch.setattr(delta.Table, "begin", slowly)
    monkeypatch.setattr(delta.Rows, "require_owner", lambda _self: None)  # it has looked
    with pytest.raises(PartitionTakenError):
        table.put(numbers(warehouse, 0, 10), table.sink(partition=DAY))
    assert table.ids() == [100, 101, 102, 103, 104]
    assert len(table.data_files()) == 2


def test_rows_that_are_lost_on_the_way_to_the_commit_fail_it(table, warehouse):
    frame = numbers(warehouse, 0, 5)
    with table.placing(frame, table.sink(partition=DAY)) as place, pytest.raises(RowsLostError):
        place.commit(rows=5, model=None)


# --- What is left to Spark ---------------------------------------------------------------------------------

REFUSED = {
    "a feed of changes": ("", "tblproperties (delta.enableChangeDataFeed = true)", "enableChangeDataFeed"),
    "mapped columns": (
        "",
        "tblproperties (delta.columnMapping.mode = 'name')",
        "writers of version 5|columnM",
    ),
    "a column that is made": (", twice bigint generated always as (id * 2)", "", "generationExpression"),
    "rows with numbers": ("", "tblproperties (delta.enableRowTracking = true)", "rowTracking"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tables_that_ask_more_of_their_writers_are_left_to_spark(table, warehouse, capsys, what):
    columns, more, said = REFUSED[what]
    warehouse.sql(
        f"create table {table.name} (id bigint, prediction float, ds string{columns}) using delta "
        f"partitioned by (ds) {more}"
    )
    with table.placing(numbers(warehouse, 0, 3), table.sink(partition=DAY)) as place:
        assert place.by_tasks is None
    assert re.search(f"Spark writes the rows of delta .*{said}", capsys.readouterr().out)


def test_other_partitions_settings_keys_and_spellings_are_left_to_spark(table, warehouse, capsys):
    frame = numbers(warehouse, 0, 3)

    def refused(said, sink, frame=frame):
        with table.placing(frame, sink) as place:
            assert place.by_tasks is None
        assert said in capsys.readouterr().out

    refused("rows are merged by key", table.sink(mode="merge", keys=["id"]))
    warehouse.sql(f"create table {table.name} (id bigint, prediction float, ds string) using delta")
    refused("it is partitioned by nothing, and not by ds", table.sink(partition=DAY))
    frame_of_all = frame.selectExpr("id as ID", "prediction", "'x' as ds")
    refused("differ in capitals", table.sink(), frame_of_all)
    warehouse.conf.set("spark.databricks.delta.optimizeWrite.enabled", "true")
    try:
        refused("the setting spark.databricks.delta.optimizeWrite.enabled", table.sink(), frame_of_all)
    finally:
        warehouse.conf.unset("spark.databricks.delta.optimizeWrite.enabled")


def test_a_partition_by_a_name_with_a_dot_is_left_to_spark_which_replaces_it_alone(table, warehouse, capsys):
    """Delta's filter of files takes such a column for another one, and finds all files."""
    for number, value in enumerate("xyx"):
        sink = table.sink(partition={"a.b": value})
        with table.placing(numbers(warehouse, 0, 0), sink) as place:
            assert place.by_tasks is None
        table.put_by_spark(numbers(warehouse, number, number + 1), sink)
    assert "has a dot in its name" in capsys.readouterr().out
    assert table.ids() == [1, 2]


def test_files_that_cannot_be_brought_are_written_by_spark_once(table, warehouse, capsys, monkeypatch):
    """One is in the table's folder, the other is not."""
    transfer, brought = filesystems.transfer, []

    def fails(source, target):
        if "/ds=" in target:
            if brought:
                raise OSError("Invalid cross-device link")
            brought.append(target)
        transfer(source, target)

    monkeypatch.setattr(filesystems, "transfer", fails)
    frame = warehouse.range(0, 10, 1, 2).selectExpr("id", "cast(id as float) as prediction")
    assert table.put(frame, table.sink(partition=DAY)) == 10
    assert "cannot be brought into its folder: Invalid cross-device link" in capsys.readouterr().out
    assert table.ids() == list(range(10))
    assert len(brought) == 1 and not Path(brought[0]).exists()
    assert table.beside() == []


@pytest.mark.parametrize("brought", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_table_that_asks_for_more_in_the_meantime_is_written_by_spark(
    table, warehouse, capsys, monkeypatch, brought
):
    """Before the commit, or between an attempt that came second and the next."""
    table.put(numbers(warehouse, 0, 3), table.sink(partition=DAY))
    at = "commit" if brought else "__init__"
    first = getattr(delta_files.Transaction, at)

    def changed(self, *given):
        if brought or given[0] is not warehouse:
            monkeypatch.setattr(delta_files.Transaction, at, first)
            warehouse.sql(f"alter table {table.name} add constraint positive check (id >= 0)")
        first(self, *given)

    monkeypatch.setattr(delta_files.Transaction, at, changed)
    assert table.put(numbers(warehouse, 10, 14), table.sink(partition=DAY)) == 4
    assert "Spark writes the rows of" in capsys.readouterr().out
    assert table.ids() == [10, 11, 12, 13]
    live = {row["file"] for row in table.frame().selectExpr("_metadata.file_name as file").collect()}
    assert {Path(name).name for name in table.data_files()} >= live
    assert table.beside() == []
