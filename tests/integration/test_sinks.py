"""Tables as sinks, with a real Delta and a real metastore: a partition exactly once, no other touched."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import AnalysisException
from pyspark.sql import functions as F

from airflow_hydrogen.contract.errors import (
    ColumnTypeError,
    InvalidJobError,
    MergeKeysError,
    MetastoreRefusedError,
    MissingColumnError,
    PartitionTakenError,
    SinkError,
    TableBusyError,
    TableMismatchError,
)
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source
from airflow_hydrogen.contract.sinks import RUN_COLUMN
from airflow_hydrogen.runtime.scoring import application
from airflow_hydrogen.runtime.scoring.application import run_inference
from airflow_hydrogen.runtime.sinks import delta, hive, placements
from airflow_hydrogen.runtime.sinks.tables import LABEL
from airflow_hydrogen.runtime.spark_errors import original_error, spark_errors
from tests.integration.models import dense, matrix_layout, publish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RUN = Run(dag_id="d", task_id="t", run_id="r")
DAY = {"ds": "2013-01-02"}


def other_run(name, clear_number=0):
    return Run(dag_id="d", task_id="t", run_id=name, clear_number=clear_number)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """prediction = a + 10 b."""
    uri = str(tmp_path_factory.mktemp("models") / "linear")
    return publish(dense([[1.0], [10.0]]), uri, matrix_layout("a", "b"))


@pytest.fixture(scope="module")
def database(warehouse):
    warehouse.sql("create database if not exists sink_tests")
    return "sink_tests"


def local_file(name):
    """The path of a file as Spark names it."""
    return Path(unquote(urlsplit(name).path))


class Lake:
    """A table of one kind, made by sinks, and what lies in it."""

    def __init__(self, kind, warehouse, name, folder):
        self.kind, self.warehouse, self.name, self.folder = kind, warehouse, name, folder

    def sink(self, **arguments):
        if self.kind == "hive":
            return Sink.hive(self.name, **arguments)
        return getattr(Sink, self.kind)(str(self.folder), **arguments)

    def rows(self, where="true"):
        if self.kind == "hive":
            frame = self.warehouse.table(self.name)
        else:
            frame = self.warehouse.read.format(self.kind).load(str(self.folder))
        return frame.where(where)

    def ids(self, where="true"):
        return sorted(row["id"] for row in self.rows(where).select("id").collect())

    def contents(self, partition):
        """Name -> hash of the files of a partition that readers see."""
        names = self.rows(partition).select(F.input_file_name().alias("name")).distinct().collect()
        files = [local_file(row["name"]) for row in names]
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def leftovers(self):
        """What is neither the table's nor Delta's log, in the table's folder and beside it."""
        found = [
            path.name
            for path in self.folder.parent.iterdir()
            if path.name.startswith(f".{self.folder.name}.")
        ]
        if self.kind == "hive":
            seen = {Path(name).name for name in self.contents("true")}
            there = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".crc"]
            found += [path.name for path in there if path.name not in {*seen, "_hydrogen.json"}]
        return found


@pytest.fixture(params=["delta", "hive"])
def lake(request, warehouse, database, metastore, tmp_path):
    if request.param != "hive":
        yield Lake(request.param, warehouse, "", tmp_path / "lake")
        return
    name = f"t{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    yield Lake("hive", warehouse, f"{database}.{name}", metastore.folder / f"{database}.db" / name)
    warehouse.sql(f"drop table if exists {database}.{name}")


def numbers(warehouse, start, end):
    return warehouse.range(start, end, 1, 2).selectExpr("id", "cast(id as float) as prediction")


def put(frame, sink, run=RUN, types=None):
    """The rows of a frame, put in place as if a model had made them; how many they were."""
    with placements.placing(frame.sparkSession, sink.for_run(run), run, {}, types, frame.schema) as place:
        rows, _ = place.stage(frame, None)
        assert place.count() == rows
        place.commit(rows=rows, model="/models/none")
    return rows


def threads(*calls):
    """What calls at the same time return or raise."""
    outcomes = [None] * len(calls)

    def run(place):
        try:
            outcomes[place] = calls[place]()
        except Exception as error:
            outcomes[place] = error

    started = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return outcomes


# --- Partitions --------------------------------------------------------------------------------------------


def test_one_partition_is_replaced_and_the_others_keep_every_byte(lake, warehouse):
    assert put(numbers(warehouse, 0, 10), lake.sink(partition={"ds": "2013-01-01"})) == 10
    assert put(numbers(warehouse, 10, 30), lake.sink(partition=DAY)) == 20
    before = lake.contents("ds = '2013-01-01'")
    assert put(numbers(warehouse, 30, 35), lake.sink(partition=DAY), other_run("s")) == 5
    assert lake.ids("ds = '2013-01-02'") == list(range(30, 35))
    assert lake.ids("ds = '2013-01-01'") == list(range(10))
    assert lake.contents("ds = '2013-01-01'") == before
    assert lake.leftovers() == []
    assert put(numbers(warehouse, 0, 0), lake.sink(partition=DAY)) == 0
    assert lake.ids() == list(range(10))


def test_a_commit_that_fails_leaves_the_old_rows_and_nothing_else(lake, warehouse, monkeypatch):
    put(numbers(warehouse, 0, 10), lake.sink(partition=DAY))
    before = lake.contents("ds = '2013-01-02'")

    def fails(*given, **named):
        raise OSError("the disk is full")

    monkeypatch.setattr(*{"delta": (delta.Table, "write"), "hive": (hive.Table, "point")}[lake.kind], fails)
    with pytest.raises(OSError, match="the disk is full"):
        put(numbers(warehouse, 10, 15), lake.sink(partition=DAY), other_run("s"))
    monkeypatch.undo()
    assert lake.contents("ds = '2013-01-02'") == before
    assert lake.leftovers() == []
    assert put(numbers(warehouse, 10, 15), lake.sink(partition=DAY), other_run("s")) == 5
    assert lake.ids() == list(range(10, 15))


@pytest.mark.parametrize("lake", ["delta", "hive", "parquet"], indirect=True)
def test_rows_are_added_once_a_run_whatever_its_retries_and_clears(lake, warehouse):
    sink = lake.sink(partition=DAY, mode="append")
    put(numbers(warehouse, 0, 10), sink)
    put(numbers(warehouse, 100, 104), sink, other_run("second"))
    put(numbers(warehouse, 0, 5), sink)  # a retry
    assert lake.ids("ds = '2013-01-02'") == [0, 1, 2, 3, 4, 100, 101, 102, 103]
    put(numbers(warehouse, 0, 3), sink, Run(dag_id="d", task_id="t", run_id="r", clear_number=1))
    assert lake.ids() == [0, 1, 2, 100, 101, 102, 103]
    assert lake.rows().select(RUN_COLUMN).distinct().count() == 2
    with pytest.raises(InvalidJobError, match="mode='append' needs a run"):
        put(numbers(warehouse, 0, 3), sink, None)


def test_four_at_once_write_a_partition_each_of_a_table_that_is_not_there_yet(lake, warehouse):
    calls = [
        lambda day=day: put(
            numbers(warehouse, 10 * day, 10 * day + 5),
            lake.sink(partition={"ds": f"d{day}"}),
            other_run(str(day)),
        )
        for day in range(4)
    ]
    assert threads(*calls) == [5, 5, 5, 5]
    assert lake.ids() == [10 * day + n for day in range(4) for n in range(5)]
    assert lake.leftovers() == []


def test_of_four_at_once_in_one_partition_one_is_there_as_a_whole(lake, warehouse):
    put(numbers(warehouse, 0, 3), lake.sink(partition={"ds": "other"}))
    before = lake.contents("ds = 'other'")
    calls = [
        lambda n=n: put(numbers(warehouse, 10 * n, 10 * n + 5), lake.sink(partition=DAY), other_run(str(n)))
        for n in range(1, 5)
    ]
    outcomes = threads(*calls)
    done = [n for n, outcome in enumerate(outcomes, 1) if outcome == 5]
    assert done and all(isinstance(outcome, PartitionTakenError) for outcome in outcomes if outcome != 5), (
        outcomes
    )
    found = lake.ids("ds = '2013-01-02'")
    assert found in [list(range(10 * n, 10 * n + 5)) for n in done]
    assert lake.contents("ds = 'other'") == before
    put(numbers(warehouse, 0, 5), lake.sink(partition=DAY))  # it sweeps what tasks wrote that went on
    assert lake.leftovers() == []


def test_a_table_that_does_not_fit_is_refused_before_anything_is_scored(lake, warehouse):
    put(numbers(warehouse, 0, 10), lake.sink(partition=DAY))
    before = lake.contents("true")

    def refused(frame, *said, sink=None, error=TableMismatchError):
        watched = frame.withColumn("id", F.expr("if(id >= 0, raise_error('scored'), id)"))
        with pytest.raises(error) as caught:
            put(watched, sink or lake.sink(partition=DAY))
        assert all(
            part in str(caught.value) for part in (*said, "sink_tests" if lake.kind == "hive" else "lake")
        )

    good = numbers(warehouse, 0, 5)
    refused(good.withColumn("more", F.lit(1)), "it has no column 'more'")
    refused(good.drop("prediction"), "its column 'prediction' is not among the scored ones")
    text = good.withColumn("prediction", F.lit("x"))
    refused(text, "its column 'prediction' is float, and what is scored is string")
    error = InvalidJobError if lake.kind == "hive" else TableMismatchError
    refused(
        good,
        "ds" if lake.kind == "hive" else "it has no column 'day'",
        sink=lake.sink(partition={"day": "1"}),
        error=error,
    )
    assert lake.contents("true") == before
    assert lake.leftovers() == []
    small = good.select(F.col("id").cast("int"), "prediction")
    assert put(small, lake.sink(partition=DAY)) == 5, "a wider column takes them"


def test_columns_of_a_new_table_that_differ_in_capitals_alone_are_refused(lake, warehouse):
    frame = numbers(warehouse, 0, 5).withColumn("DS", F.lit("x"))
    with pytest.raises(TableMismatchError, match="columns 'DS' and 'ds' would be one column"):
        put(frame, lake.sink(partition=DAY))
    assert not lake.folder.exists()


def test_values_of_a_partition_may_hold_anything(lake, warehouse):
    value = "a'b\\ %20=x/é`\""
    put(numbers(warehouse, 0, 3), lake.sink(partition={"ds": value}))
    put(numbers(warehouse, 3, 5), lake.sink(partition={"ds": "other"}))
    put(numbers(warehouse, 5, 7), lake.sink(partition={"ds": value}))
    found = {row["ds"]: row["n"] for row in lake.rows().groupBy("ds").agg(F.count("id").alias("n")).collect()}
    assert found == {value: 2, "other": 2}


# --- Delta -------------------------------------------------------------------------------------------------


@pytest.fixture
def table(warehouse, tmp_path):
    return Lake("delta", warehouse, "", tmp_path / "lake")


def test_a_commit_of_delta_says_what_made_it_and_columns_do_not(table, warehouse):
    label = {"model_uri": "/models/m", "model_version": "3f2a", "source": {"source": "x", "version": 8}}
    for number in range(2):
        frame = numbers(warehouse, 0, 3).withMetadata("prediction", {LABEL: {**label, "number": number}})
        put(frame, table.sink(partition=DAY))
    assert table.rows().schema["prediction"].metadata == {}
    history = warehouse.sql(f"describe history delta.`{table.folder}`").collect()
    said = [json.loads(row["userMetadata"]) for row in history if row["userMetadata"]]
    assert [made["number"] for made in said] == [1, 0]
    assert said[0]["source"] == label["source"] and said[0]["model_version"] == "3f2a"
    assert said[0]["run"]["run_id"] == "r" and said[0]["rows"] == 3


def test_a_new_delta_table_has_the_sources_types_and_is_written_by_a_part_of_its_partition(table, warehouse):
    from pyspark.sql.types import DateType, IntegerType

    sink = table.sink(partition={"ds": "2013-01-01", "hour": "05"})
    put(numbers(warehouse, 0, 3), sink, types={"ds": DateType(), "hour": IntegerType()})
    put(numbers(warehouse, 3, 5), table.sink(partition={"ds": "2013-01-01", "hour": "6"}))
    put(numbers(warehouse, 5, 7), sink)
    assert [(row["ds"], row["hour"]) for row in table.rows("id = 5").collect()] == [
        (datetime.date(2013, 1, 1), 5)
    ]
    assert table.ids() == [3, 4, 5, 6]
    with pytest.raises(ColumnTypeError, match=r"column 'hour': expected int, found 'x'; change the sink's"):
        put(numbers(warehouse, 0, 3), table.sink(partition={"ds": "2013-01-01", "hour": "x"}))
    whole = numbers(warehouse, 0, 2).selectExpr("*", "date'2013-01-03' as ds", "7 as hour")
    put(whole, table.sink())
    assert table.ids() == [0, 1]


def test_a_delta_table_that_is_not_partitioned_is_written_by_values(table, warehouse):
    warehouse.sql(f"create table delta.`{table.folder}` (id bigint, prediction float, ds string) using delta")
    put(numbers(warehouse, 0, 10).coalesce(1), table.sink(partition=DAY))
    warehouse.sql(f"update delta.`{table.folder}` set ds = 'other' where id < 4")
    put(numbers(warehouse, 10, 13), table.sink(partition=DAY))
    assert table.ids() == [0, 1, 2, 3, 10, 11, 12]
    warehouse.sql(f"alter table delta.`{table.folder}` set tblproperties (delta.enableChangeDataFeed = true)")
    put(numbers(warehouse, 20, 22), table.sink(partition={"ds": "other"}))
    assert table.ids() == [10, 11, 12, 20, 21]


def test_rows_are_merged_by_key(table, warehouse):
    sink = table.sink(mode="merge", keys=["id"])
    put(numbers(warehouse, 0, 5), sink)
    newer = numbers(warehouse, 3, 8).withColumn("prediction", F.lit(-1.0).cast("float"))
    put(newer, sink)
    put(newer, sink)
    found = {row["id"]: row["prediction"] for row in table.rows().collect()}
    assert found == {0: 0.0, 1: 1.0, 2: 2.0, **dict.fromkeys(range(3, 8), -1.0)}
    assert table.rows().count() == 8
    before = table.contents("true")
    twice = (
        numbers(warehouse, 20, 22)
        .union(numbers(warehouse, 20, 21))
        .union(warehouse.sql("select cast(null as bigint) as id, cast(1 as float) as prediction"))
    )
    with pytest.raises(
        MergeKeysError, match="1 rows have a key that is null, and 1 keys stand more than once"
    ):
        put(twice, sink)
    with pytest.raises(MissingColumnError, match="key 'nope' not found"):
        put(newer, table.sink(mode="merge", keys=["nope"]))
    assert table.contents("true") == before and table.leftovers() == []


def test_two_at_once_merge_into_a_table_that_is_not_there_yet(table, warehouse):
    sink = table.sink(mode="merge", keys=["id"])
    calls = [lambda n=n: put(numbers(warehouse, 3 * n, 3 * n + 5), sink, other_run(str(n))) for n in range(2)]
    assert threads(*calls) == [5, 5]
    assert table.ids() == list(range(8))
    assert table.leftovers() == []


def test_merged_rows_of_a_partition_leave_the_same_keys_of_others(table, warehouse):
    for day in ("a", "b"):
        put(numbers(warehouse, 0, 3), table.sink(partition={"ds": day}, mode="merge", keys=["id"]))
    put(numbers(warehouse, 2, 5), table.sink(partition={"ds": "a"}, mode="merge", keys=["id"]))
    assert (table.ids("ds = 'a'"), table.ids("ds = 'b'")) == ([0, 1, 2, 3, 4], [0, 1, 2])


def test_an_older_try_that_comes_late_is_never_taken_for_written(table, warehouse, monkeypatch):
    """It has looked who owns the partition, and stands still until a newer one is done."""
    put(numbers(warehouse, 0, 2), table.sink(partition=DAY), other_run("before"))
    write, late = delta.Table.write, []

    def slowly(self, session, staged):
        if not late:
            late.append(1)
            put(numbers(warehouse, 100, 105), table.sink(partition=DAY))
        write(self, session, staged)

    monkeypatch.setattr(delta.Table, "write", slowly)
    with pytest.raises(PartitionTakenError):
        put(numbers(warehouse, 0, 10), table.sink(partition=DAY))
    assert table.ids() == list(range(100, 105))


def test_rows_that_a_newer_try_sweeps_in_mid_commit_are_not_left_out(table, warehouse, monkeypatch):
    """Spark leaves out files that it no longer finds, where the user's settings say so."""
    put(numbers(warehouse, 0, 2), table.sink(partition=DAY))
    write = delta.Table.write

    def late(self, session, staged):
        with placements.placing(warehouse, table.sink(partition=DAY), other_run("newer"), {}):
            write(self, session, staged)

    monkeypatch.setattr(delta.Table, "write", late)
    warehouse.conf.set("spark.sql.files.ignoreMissingFiles", "true")
    try:
        with pytest.raises(PartitionTakenError):
            put(numbers(warehouse, 10, 20), table.sink(partition=DAY))
    finally:
        warehouse.conf.unset("spark.sql.files.ignoreMissingFiles")
    assert table.ids() == [0, 1]


def test_a_commit_of_other_rows_than_were_staged_is_no_success(table, warehouse, monkeypatch):
    write = delta.Table.write
    monkeypatch.setattr(delta.Table, "write", lambda self, session, rows: write(self, session, rows.limit(1)))
    with pytest.raises(SinkError, match=r"version 1 of .* with 1 rows in place of the 5 that were staged"):
        put(numbers(warehouse, 0, 5), table.sink(partition=DAY))


def test_a_retry_on_a_host_whose_clock_is_behind_is_the_newer_try(table, warehouse, monkeypatch):
    put(numbers(warehouse, 0, 5), table.sink(partition=DAY))
    monkeypatch.setattr(delta, "time", SimpleNamespace(time_ns=lambda: 5, sleep=time.sleep))
    put(numbers(warehouse, 5, 7), table.sink(partition=DAY))
    assert table.ids() == [5, 6]


def test_a_commit_that_fails_after_it_is_there_is_one(table, warehouse, monkeypatch):
    from pyspark.errors import PySparkException

    write = delta.Table.write

    def fails(self, session, staged):
        write(self, session, staged)
        raise PySparkException("the connection was reset")

    monkeypatch.setattr(delta.Table, "write", fails)
    assert put(numbers(warehouse, 0, 5), table.sink(partition=DAY)) == 5
    assert table.ids() == list(range(5))


def test_others_that_are_always_faster_are_named_at_last(table, warehouse, monkeypatch):
    put(numbers(warehouse, 0, 5), table.sink())

    def busy(self, session, staged):
        jvm = warehouse._jvm
        raise_ = jvm.io.delta.exceptions.ConcurrentAppendException("files were added")
        from py4j.protocol import Py4JJavaError

        raise Py4JJavaError("An error occurred", raise_)

    read_bytes, read = delta.filesystems.read_bytes, []
    monkeypatch.setattr(delta.filesystems, "read_bytes", lambda uri: (read.append(uri), read_bytes(uri))[1])
    monkeypatch.setattr(delta, "ATTEMPTS", 2)
    monkeypatch.setattr(delta.Table, "write", busy)
    with pytest.raises(
        TableBusyError, match=rf"others have committed to delta {table.folder} first, 2 times"
    ):
        put(numbers(warehouse, 5, 9), table.sink())
    assert table.ids() == list(range(5)) and table.leftovers() == []
    assert [uri for uri in read if "_delta_log" in uri] == [], (
        "commits from before the try are none of its own"
    )


def test_what_cannot_be_a_delta_table_is_refused(table, warehouse, spark, tmp_path):
    with pytest.raises(InvalidJobError, match="needs a Spark with Delta: its package, spark.sql.catalog"):
        put(numbers(spark, 0, 5), table.sink())
    with pytest.raises(InvalidJobError, match="column 'a b': columns of a Delta table have none of"):
        put(numbers(warehouse, 0, 5).withColumnRenamed("id", "a b"), table.sink())
    numbers(warehouse, 0, 5).write.parquet(str(tmp_path / "files"))
    with pytest.raises(InvalidJobError, match="its folder holds files and no Delta table"):
        put(numbers(warehouse, 0, 5), Sink.delta(str(tmp_path / "files")))
    assert not table.folder.exists() and table.leftovers() == []


# --- Hive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["stored as orc", "using parquet"])
def test_tables_of_hive_and_of_spark_keep_their_types_and_formats(warehouse, database, form):
    name = f"{database}.types_{form.replace(' ', '_')}"
    columns = "id bigint, prediction double"
    warehouse.sql(
        f"create table {name} ({columns}, ds date, hour int) {form} partitioned by (ds, hour)"
        if form.startswith("using")
        else f"create table {name} ({columns}) partitioned by (ds date, hour int) {form}"
    )
    warehouse.sql(f"insert into {name} partition (ds = '2013-01-01', hour = 5) values (1, 1.0)")
    warehouse.sql(f"insert into {name} partition (ds = '2013-01-01', hour = 6) values (2, 2.0)")
    warehouse.sql(f"analyze table {name} partition (ds = '2013-01-01', hour = 5) compute statistics")
    put(numbers(warehouse, 10, 13), Sink.hive(name, partition={"hour": "05", "ds": "2013-01-01"}))
    put(numbers(warehouse, 20, 22), Sink.hive(name, partition={"hour": "7", "ds": "2013-01-01"}))
    put(numbers(warehouse, 0, 0), Sink.hive(name, partition={"hour": "8", "ds": "2013-01-01"}))
    found = sorted((row["id"], row["prediction"], row["hour"]) for row in warehouse.table(name).collect())
    assert found == [(2, 2.0, 6), (10, 10.0, 5), (11, 11.0, 5), (12, 12.0, 5), (20, 20.0, 7), (21, 21.0, 7)]
    said = warehouse.sql(f"describe extended {name} partition (ds = '2013-01-01', hour = 5)").collect()
    assert "1 rows" not in str(said), "what was counted of the old rows is said of the new ones"
    with pytest.raises(ColumnTypeError, match="column 'ds': expected date, found 'x'"):
        put(numbers(warehouse, 0, 3), Sink.hive(name, partition={"hour": "5", "ds": "x"}))
    assert warehouse.catalog.tableExists(name)
    warehouse.sql(f"drop table {name}")


def test_texts_of_a_hive_table_that_have_a_length_keep_it(warehouse, database):
    name = f"{database}.lengths"
    columns = "id bigint, v varchar(3), c char(3)"
    warehouse.sql(f"create table {name} ({columns}) partitioned by (ds string) stored as orc")
    sink = Sink.hive(name, partition=DAY)
    texts = warehouse.sql("select 1L as id, 'abc  ' as v, 'a' as c union all select 2L, null, 'abc '")
    put(texts, sink)
    assert [(row["v"], row["c"]) for row in warehouse.table(name).orderBy("id").collect()] == [
        ("abc", "a  "),
        (None, "abc"),
    ]
    for column, kind in (("v", "varchar"), ("c", "char")):
        with pytest.raises(spark_errors()) as caught:
            put(texts.withColumn(column, F.lit("abcd")), sink)
        error = original_error(caught.value)
        said = rf"column '{column}': expected {kind}\(3\) in hive {name} .*, found a text of 4 characters"
        assert isinstance(error, ColumnTypeError) and re.search(said, str(error)), error
    assert warehouse.table(name).count() == 2
    warehouse.sql(f"drop table {name}")
    warehouse.sql(f"create table {name} (a array<varchar(2)>) partitioned by (ds string) stored as orc")
    with pytest.raises(TableMismatchError, match=r"column 'a' is array<varchar\(2\)>, whose texts have"):
        put(warehouse.sql("select array('abc') as a"), sink)
    warehouse.sql(f"drop table {name}")


def test_a_partition_stays_where_the_metastore_says(warehouse, database, tmp_path):
    name = f"{database}.elsewhere"
    warehouse.sql(
        f"create table {name} (id bigint, prediction float) partitioned by (ds string) stored as parquet"
    )
    place = tmp_path / "a b=c"
    warehouse.sql(f"alter table {name} add partition (ds = 'x') location '{place}'")
    warehouse.sql(f"insert into {name} partition (ds = 'x') values (1, 1.0)")
    for start in (10, 20):
        put(numbers(warehouse, start, start + 3), Sink.hive(name, partition={"ds": "x"}))
    assert sorted(row["id"] for row in warehouse.table(name).collect()) == [20, 21, 22]
    [folder] = [path for path in place.iterdir() if path.is_dir()]
    assert json.loads((folder / "_hydrogen.json").read_text())["rows"] == 3
    assert [path for path in place.iterdir() if path != folder] == []
    warehouse.sql(f"drop table {name}")


def test_an_older_try_of_hive_that_comes_late_leaves_the_newer_ones_rows(
    lake_of_hive, warehouse, monkeypatch
):
    lake = lake_of_hive
    put(numbers(warehouse, 0, 2), lake.sink(partition=DAY))
    point, late = hive.Table.point, []

    def slowly(self, folder):
        if not late:
            late.append(1)
            put(numbers(warehouse, 100, 105), lake.sink(partition=DAY), other_run("newer"))
        point(self, folder)

    monkeypatch.setattr(hive.Table, "point", slowly)
    with pytest.raises(PartitionTakenError):
        put(numbers(warehouse, 0, 10), lake.sink(partition=DAY))
    monkeypatch.undo()
    assert lake.ids() == list(range(100, 105))
    put(numbers(warehouse, 0, 2), lake.sink(partition=DAY))
    assert lake.ids() == [0, 1] and lake.leftovers() == []


@pytest.fixture
def lake_of_hive(warehouse, database, metastore):
    yield Lake("hive", warehouse, f"{database}.late", metastore.folder / f"{database}.db" / "late")
    warehouse.sql(f"drop table if exists {database}.late")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            "table {} (id bigint, ds string) using delta partitioned by (ds)",
            "it is a Delta table: write it as",
        ),
        ("table {} (id bigint) partitioned by (ds string) stored as textfile", "neither Parquet nor ORC but"),
        ("view {} as select 1 as id, 'x' as ds", "it is a view"),
        ("table {} (id bigint) stored as parquet", "it has no partitions"),
        (
            "table {} (id bigint, ds string) using parquet partitioned by (ds) "
            "clustered by (id) into 2 buckets",
            "it has buckets",
        ),
        (
            "table {} (id bigint) partitioned by (ds string) clustered by (id) into 2 buckets stored as orc "
            "tblproperties ('transactional' = 'true')",
            "it is transactional",
        ),
    ],
)
def test_tables_that_cannot_be_written_are_refused_by_what_they_are(warehouse, database, made, said):
    name = f"{database}.odd"
    warehouse.sql(f"create {made.format(name)}")
    try:
        with pytest.raises(InvalidJobError, match=said):
            put(warehouse.range(3), Sink.hive(name, partition={"ds": "x"}))
    finally:
        warehouse.sql(f"drop {made.split()[0]} {name}")


def test_what_the_metastore_does_not_have_is_said(warehouse, spark):
    with pytest.raises(InvalidJobError, match="sink hive nowhere.t .* cannot be opened: .*nowhere"):
        put(warehouse.range(3), Sink.hive("nowhere.t", partition={"ds": "x"}))
    with pytest.raises(InvalidJobError, match="name it, as in Sink.hive"):
        Sink.hive("sink_tests.t")


def test_a_metastore_that_does_not_answer_may_do_so_later(warehouse, monkeypatch):
    said = "Unable to instantiate SessionHiveMetaStoreClient: Could not connect to meta store"
    classes = "org.apache.hadoop.hive.ql.metadata.HiveException: java.lang.RuntimeException: "

    def down(self):
        raise AnalysisException(classes + said)

    monkeypatch.setattr(hive.Table, "_metadata", down)
    with pytest.raises(MetastoreRefusedError, match=f"does not answer: {said}$") as told:
        put(warehouse.range(3), Sink.hive("sink_tests.t", partition={"ds": "x"}))
    assert told.value.retryable


# --- The whole way -----------------------------------------------------------------------------------------


def test_a_model_scores_into_a_table_and_bad_rows_are_set_aside(
    lake, warehouse, linear, tmp_path, monkeypatch
):
    monkeypatch.setattr(application, "spark_session", lambda job: warehouse)
    monkeypatch.setattr(delta.Table, "write", None)  # tasks write its files
    source = tmp_path / "rows.parquet"
    a = pa.array([None if n % 10 == 3 else float(n) for n in range(30)])
    days = [datetime.date(2013, 1, 2)] * 30
    pq.write_table(pa.table({"id": range(30), "a": a, "b": [1] * 30, "ds": days}), source)
    on_bad_row = {"delta": "quarantine", "hive": "drop"}[lake.kind]
    work = {"work_uri": str(tmp_path / "work")} if lake.kind == "hive" else {}
    job = InferenceJob(
        model_uri=linear,
        source=Source.parquet(str(source)),
        sink=lake.sink(partition=DAY, **work),
        report_uri=str(tmp_path / "report.json"),
        on_bad_row=on_bad_row,
        run=RUN,
    )
    report = run_inference(job)
    assert (report.rows, report.rows_dropped + report.rows_quarantined) == (27, 3)
    assert report.output_uri == (lake.name or str(job.sink.folder or lake.folder))
    found = {row["id"]: row["prediction"] for row in lake.rows("ds = '2013-01-02'").collect()}
    assert found == {n: n + 10.0 for n in range(30) if n % 10 != 3}
    expected = "date" if lake.kind != "hive" else "string"
    assert lake.rows().schema["ds"].dataType.simpleString() == expected
    if on_bad_row == "quarantine":
        kept = pq.read_table(tmp_path / "lake_quarantine" / "ds=2013-01-02", partitioning=None)
        assert sorted(kept["id"].to_pylist()) == [3, 13, 23]
    assert run_inference(job).rows == 27
    assert lake.rows().count() == 27 and lake.leftovers() == []
