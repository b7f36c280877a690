"""Sources of a warehouse, through real servers: what is read, what is pinned, what is said where it fails."""

from __future__ import annotations

import datetime
import json
import re

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import MissingColumnError, SourceError
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source
from airflow_hydrogen.runtime.data import databases, snapshots, sources, staging
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.snapshots import Kept
from airflow_hydrogen.runtime.scoring import application
from airflow_hydrogen.runtime.scoring.application import run_inference
from airflow_hydrogen.runtime.sinks.tables import LABEL
from tests.integration.models import dense, matrix_layout, publish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RUN = Run(dag_id="d", task_id="t", run_id="r")


def rows_of(frame):
    return sorted(tuple(row) for row in frame.collect())


def plan_of(frame):
    return frame._jdf.queryExecution().executedPlan().toString()


def numbers(warehouse: SparkSession, start: int, end: int):
    """id, its remainder `ds`, and two columns that a model reads."""
    return warehouse.range(start, end).selectExpr(
        "id", "id % 3 as ds", "cast(id as double) as a", "cast(id % 7 as int) as b"
    )


@pytest.fixture
def delta(warehouse, tmp_path):
    uri = str(tmp_path / "lake")
    numbers(warehouse, 0, 30).write.format("delta").partitionBy("ds").save(uri)
    return uri


@pytest.fixture(scope="module")
def orders(request, postgres, mariadb):
    """The same table in both databases, and access to them."""
    found = {}
    for name, server in (("postgres", postgres), ("mariadb", mariadb)):
        database = server.database()
        database.execute(
            "CREATE TABLE orders (id INT PRIMARY KEY, day DATE, amount NUMERIC(9, 2), s VARCHAR(20))",
            "INSERT INTO orders VALUES "
            + ", ".join(f"({n}, '2013-01-{n % 9 + 1:02}', {n}.5, 's{n}')" for n in range(1, 101)),
            "INSERT INTO orders VALUES (101, NULL, NULL, NULL)",
        )
        found[name] = database
    return found


def access(orders):
    return {name: database.options for name, database in orders.items()}


# --- Reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["orc", "avro", "parquet", "csv", "json", "read"])
def test_files_of_every_format_have_the_same_rows(warehouse, tmp_path, format_):
    uri = str(tmp_path / "rows")
    written = "orc" if format_ == "read" else format_
    header = {"header": "true"} if written == "csv" else {}
    numbers(warehouse, 0, 30).write.format(written).options(**header).save(uri)
    arguments = {"columns": ["id", "b"], "where": "ds = :ds and id > 5", "where_args": {"ds": 1}}
    source = (
        Source.read("orc", uri, **arguments)
        if format_ == "read"
        else getattr(Source, format_)(uri, **arguments)
    )
    found = rows_of(sources.read(warehouse, source))
    assert found == [(n, n % 7) for n in range(6, 30) if n % 3 == 1]


def test_delta_is_read_as_of_a_version_and_reads_only_the_partitions_that_a_condition_names(warehouse, delta):
    numbers(warehouse, 30, 40).write.format("delta").mode("append").save(delta)
    assert sources.read(warehouse, Source.delta(delta)).count() == 40
    assert sources.read(warehouse, Source.delta(delta, version=0)).count() == 30
    source = Source.delta(delta, where="ds = :ds and a > 3", where_args={"ds": 2}, columns=["id"])
    frame = sources.read(warehouse, source)
    assert rows_of(frame) == [(n,) for n in range(4, 40) if n % 3 == 2]
    plan = plan_of(frame)
    assert "PushedFilters: [IsNotNull(a), GreaterThan(a,3.0)]" in plan
    assert "ReadSchema: struct<id:bigint,a:double>" in plan
    assert "PartitionFilters: [isnotnull(ds" in plan


def test_tables_of_catalogs_and_of_hive(warehouse):
    warehouse.sql("create database if not exists source_tests")
    warehouse.sql("create table source_tests.flights using delta as select 1 as id, 'x' as word")
    warehouse.sql("insert into source_tests.flights values (2, 'y')")
    table = Source.table("source_tests.flights", where="id > 1", columns=["word"])
    assert rows_of(sources.read(warehouse, table)) == [("y",)]
    assert rows_of(sources.read(warehouse, Source.table("source_tests.flights", version=0))) == [(1, "x")]
    query = Source.sql("select word from source_tests.flights where id = :id", query_args={"id": 1})
    assert rows_of(sources.read(warehouse, query)) == [("x",)]

    warehouse.sql("create table source_tests.h (id int) partitioned by (ds string) stored as parquet")
    for day in "ab":
        warehouse.sql(f"insert into source_tests.h partition (ds = '{day}') values (1), (2)")
    hive = sources.read(
        warehouse, Source.hive("source_tests.h", where="ds = :ds and id > 1", where_args={"ds": "b"})
    )
    assert rows_of(hive) == [(2, "b")]
    assert "ds=b" in "".join(hive.inputFiles()) and "ds=a" not in "".join(hive.inputFiles())
    opened = snapshots.open_pinned(warehouse, Source.hive("source_tests.h"))
    assert opened.snapshot["files"] >= 2 and opened.snapshot["bytes"] > 0


@pytest.mark.parametrize("name", ["postgres", "mariadb"])
def test_a_database_is_read_in_parts_and_sends_only_what_is_asked_for(warehouse, orders, name):
    given = access(orders)
    source = Source.jdbc(name, table="orders", partition_column="id", partitions=4)
    frame = sources.read(warehouse, source, given)
    assert frame.rdd.getNumPartitions() == 4
    assert [row[0] for row in rows_of(frame.select("id"))] == list(range(1, 102))
    by_day = Source.jdbc(name, table="orders", partition_column="day", partitions=3)
    assert sources.read(warehouse, by_day, given).count() == 101, "nulls are in one of the parts"

    some = Source.jdbc(
        name,
        table="orders",
        columns=["id", "s"],
        where="id > :id and s = :s",
        where_args={"id": 2, "s": "s7"},
    )
    frame = sources.read(warehouse, some, given)
    assert rows_of(frame) == [(7, "s7")]
    plan = plan_of(frame)
    assert "ReadSchema: struct<id:int,s:string>" in plan
    assert "PushedFilters: [*IsNotNull(id), *IsNotNull(s), *GreaterThan(id,2), *EqualTo(s,s7)]" in plan

    query = Source.jdbc(
        name,
        query="select day, count(*) as n from orders where id <= 9 group by day -- days\n;",
        partition_column="n",
        partitions=2,
    )
    assert rows_of(sources.read(warehouse, query, given)) == [
        (datetime.date(2013, 1, day), 1) for day in range(1, 10)
    ]


def test_a_table_without_rows_is_read_in_one_part(warehouse, orders):
    orders["postgres"].execute("CREATE TABLE empty (id INT)")
    source = Source.jdbc("postgres", table="empty", partition_column="id", partitions=4)
    assert sources.read(warehouse, source, access(orders)).collect() == []


def test_sources_are_joined_across_systems(warehouse, orders, delta):
    source = Source.sql(
        "select l.id, o.s from l join o on l.id = o.id where o.id < :n",
        query_args={"n": 3},
        l=Source.delta(delta),
        o=Source.jdbc("mariadb", table="orders"),
    )
    assert rows_of(sources.read(warehouse, source, access(orders))) == [(1, "s1"), (2, "s2")]


def test_sources_of_a_query_may_have_conditions_and_be_queries(warehouse, delta):
    some = Source.delta(delta, where="id < :n", where_args={"n": 3})
    source = Source.sql(
        "select a.id from a join b on a.id = b.id",
        a=some,
        b=Source.sql("select id from a where id > :n", query_args={"n": 0}, a=some),
    )
    assert rows_of(sources.read(warehouse, source)) == [(1,), (2,)]


def test_a_view_is_read_as_it_is(warehouse, delta):
    warehouse.read.format("delta").load(delta).createOrReplaceTempView("view_of_a_table")
    opened = snapshots.open_pinned(warehouse, Source.table("view_of_a_table"))
    assert (opened.frame.count(), opened.source.version) == (30, None)


# --- What fails ------------------------------------------------------------------------------------------


def test_what_cannot_be_read_says_why(warehouse, orders, delta, tmp_path):
    given = access(orders)
    wrong = {
        "wrong": {**given["postgres"], "password": "geheim"},
        "refused": {**given["mariadb"], "password": "geheim"},
        "nowhere": {**given["postgres"], "driver": "org.nowhere.Driver"},
    }
    down = {
        "down": {**given["postgres"], "url": "jdbc:postgresql://localhost:1/x"},
        "gone": {**given["mariadb"], "url": "jdbc:mysql://localhost:1/x?permitMysqlScheme"},
    }
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    damaged.mkdir()
    (damaged / "x.parquet").write_bytes(b"no Parquet")
    cases = [
        (Source.parquet(f"{delta}-nix"), "Path does not exist"),
        (Source.orc(f"{delta}-nix"), "Path does not exist"),
        (Source.parquet(str(empty)), "there are no parquet files in it$"),
        (Source.parquet(str(damaged)), "file 'x.parquet': Parquet magic bytes not found"),
        (Source.delta(f"{delta}-nix"), "Path does not exist"),
        (
            Source.delta(delta, version=9),
            r"to version 9. Available versions: \[0",
        ),
        (Source.table("nix.nix"), "The table or view `nix`.`nix` cannot be found"),
        (Source.hive("nix"), "The table or view `nix` cannot be found"),
        (Source.sql("select * from nix"), "The table or view `nix` cannot be found"),
        (Source.delta(delta, where="nix > 1"), "with name `nix` cannot be resolved"),
        (Source.read("nix"), r"Failed to find the data source: nix"),
        (Source.hive("nix.nix", where="nix > 1"), "The table or view `nix`.`nix` cannot be found"),
        (
            Source.jdbc("postgres", table="nix"),
            'postgres: nix cannot be read: ERROR: relation "nix" does not',
        ),
        (Source.jdbc("mariadb", table="nix"), "Table 'test_.*nix' doesn't exist"),
        (
            Source.jdbc("postgres", query="select nix from orders"),
            'read: ERROR: column "nix" does not exist$',
        ),
        (Source.jdbc("postgres", table="orders", where="nix > 1"), "with name `nix` cannot be resolved"),
        (
            Source.jdbc("postgres", table="orders", partition_column="nix", partitions=2),
            'read: ERROR: column "nix" does not exist$',
        ),
        (
            Source.jdbc("mariadb", table="orders", partition_column="nix", partitions=2),
            "Unknown column 'nix'",
        ),
        (Source.jdbc("wrong", table="orders"), "read: FATAL: password authentication failed for user"),
        (Source.jdbc("refused", table="orders"), r"read: \(conn=\d+\) Access denied for user"),
        (Source.jdbc("nowhere", table="orders"), "no jar has the class org.nowhere.Driver"),
        (
            Source.jdbc("postgres", table="orders", partition_column="s", partitions=2),
            "partition_column 's' holds 's1'; expected numbers, dates or times",
        ),
        (Source.jdbc("down", table="orders"), "read: Connection to localhost:1 refused"),
        (Source.jdbc("gone", table="orders"), "read: Socket fail to connect to .*localhost.*:1"),
    ]
    for source, message in cases:
        with pytest.raises(SourceError, match=message) as told:
            snapshots.open_pinned(warehouse, source, {**given, **wrong, **down})
        assert not re.search(r"geheim|\n|Exception|SPARK_GEN", str(told.value)), told.value
    with pytest.raises(MissingColumnError, match="column 'nix' not found; the columns are 'id', 'ds'"):
        sources.read(warehouse, Source.delta(delta, columns=["nix"]))
    for name in ("postgres", "mariadb"):
        with pytest.raises(MissingColumnError, match="column 'nix' not found; the columns are 'id', 'day'"):
            sources.read(warehouse, Source.jdbc(name, table="orders", columns=["nix"]), given)


# --- Snapshots -------------------------------------------------------------------------------------------


def test_a_retry_reads_the_version_that_the_first_try_found(warehouse, delta):
    source = Source.delta(delta, where="id >= 10")
    first = snapshots.open_pinned(warehouse, source)
    assert first.snapshot == {"source": f"delta '{delta}' where id >= 10", "version": 0}
    numbers(warehouse, 30, 40).write.format("delta").mode("append").save(delta)
    assert first.frame.count() == 20, "nor does the first try see what came later"
    again = snapshots.open_pinned(warehouse, source, earlier=json.loads(json.dumps(first.snapshot)))
    assert (again.frame.count(), again.snapshot) == (20, first.snapshot)
    assert snapshots.open_pinned(warehouse, source).frame.count() == 30

    both = Source.sql("select * from x union all select * from y", x=source, y=Source.delta(delta, version=0))
    opened = snapshots.open_pinned(warehouse, both)
    assert {name: table["version"] for name, table in opened.snapshot["tables"].items()} == {"x": 1, "y": 0}
    numbers(warehouse, 40, 50).write.format("delta").mode("append").save(delta)
    assert snapshots.open_pinned(warehouse, both, earlier=opened.snapshot).frame.count() == 60


def test_what_another_source_was_pinned_to_counts_nothing(warehouse, delta, capsys):
    earlier = {"source": "delta '/another'", "version": 7}
    assert snapshots.open_pinned(warehouse, Source.delta(delta), earlier=earlier).snapshot["version"] == 0
    assert "the run's first try read delta '/another', this one reads delta '" in capsys.readouterr().out


def test_a_version_that_is_gone_says_what_to_do(warehouse, delta):
    with pytest.raises(SourceError, match="The run's first try read that; clear the task to read what is"):
        snapshots.open_pinned(
            warehouse, Source.delta(delta), earlier={"source": f"delta '{delta}'", "version": 7}
        )


def test_what_has_changed_in_a_database_is_said(warehouse, orders):
    orders["postgres"].execute("CREATE TABLE events (id INT)", "INSERT INTO events VALUES (1), (2)")
    source = Source.jdbc("postgres", table="events", partition_column="id", partitions=2)
    first = snapshots.open_pinned(warehouse, source, access(orders))
    assert first.snapshot == {"source": "jdbc postgres: events", "rows": 2, "highest": "2"}
    orders["postgres"].execute("INSERT INTO events VALUES (7)")
    again = snapshots.open_pinned(warehouse, source, access(orders), first.snapshot)
    assert snapshots.differences(first.snapshot, again.snapshot) == [
        "its number of rows was 2 and is 3",
        "the highest value of its partition column was 2 and is 7",
    ]


def test_prepared_rows_of_a_pinned_table_are_used_again(warehouse, delta, tmp_path, capsys):
    source = Source.delta(delta, where="id % 100 >= 0")  # which ranks cannot decide for themselves

    def stage(kept=None):
        return staging.stage(warehouse, "train", source, str(tmp_path / "data"), ranks=1, kept=kept)

    first = stage(Kept(str(tmp_path / "kept.json"), RUN))
    assert (first.rows, first.snapshot["version"]) == (30, 0)
    numbers(warehouse, 30, 40).write.format("delta").mode("append").save(delta)
    capsys.readouterr()
    assert stage(Kept(str(tmp_path / "kept.json"), RUN)).rows == 30
    assert "using the 30 rows that an earlier try prepared" in capsys.readouterr().out
    newest = stage()
    assert (newest.rows, newest.snapshot["version"]) == (40, 1)
    assert newest.fingerprint != first.fingerprint


def test_a_try_that_dies_while_it_prepares_has_pinned_what_the_next_one_reads(
    warehouse, delta, tmp_path, monkeypatch
):
    source = Source.delta(delta, where="id % 100 >= 0")

    def stage():
        kept = Kept(str(tmp_path / "kept.json"), RUN)
        return staging.stage(warehouse, "train", source, str(tmp_path / "data"), ranks=1, kept=kept)

    def dies(*given):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_write", dies)
        with pytest.raises(OSError, match="the disk is full"):
            stage()
    numbers(warehouse, 30, 40).write.format("delta").mode("append").save(delta)
    assert (stage().rows, stage().snapshot["version"]) == (30, 0)


@pytest.mark.parametrize("name", ["lake", "a b%20ü+;&'#?=x"])
def test_a_tables_folder_may_have_any_name(warehouse, tmp_path, name):
    folder = tmp_path / name / "t"
    uri = uris.spark_uri(str(folder))
    numbers(warehouse, 0, 30).write.format("delta").partitionBy("ds").save(uri)
    assert folder.is_dir(), list(tmp_path.rglob("*"))
    source = Source.delta(str(folder), where="ds = 1")
    assert rows_of(sources.read(warehouse, source).select("id")) == [(n,) for n in range(1, 30, 3)]
    staged = staging.stage(warehouse, "train", source, str(tmp_path / "data"), ranks=1)
    assert (staged.rows, staged.in_place, staged.snapshot["version"]) == (10, True, 0)
    shard = DatasetShard(staged.files)
    found = [row for batch in shard.to_batches(4, ["id"]) for row in batch.column("id").to_pylist()]
    assert sorted(found) == list(range(1, 30, 3))


# --- The whole way ---------------------------------------------------------------------------------------


@pytest.fixture
def linear(tmp_path):
    return publish(dense([[1.0], [10.0]]), str(tmp_path / "model"), matrix_layout("a", "b"))


def test_a_scored_partition_says_what_made_it_and_a_retry_reads_the_same(
    warehouse, delta, linear, tmp_path, monkeypatch
):
    monkeypatch.setattr(application, "spark_session", lambda job: warehouse)
    job = InferenceJob(
        model_uri=linear,
        source=Source.delta(delta, where="ds = :ds", where_args={"ds": 1}),
        sink=Sink.parquet(str(tmp_path / "scores"), partition={"part": "1"}),
        report_uri=str(tmp_path / "report.json"),
        run=RUN,
    )

    def fails(*given, **named):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(application.sinks, "place", fails)
        with pytest.raises(OSError, match="the disk is full"):
            run_inference(job)
    numbers(warehouse, 30, 60).write.format("delta").mode("append").save(delta)
    report = run_inference(job)
    assert report.rows == 10
    assert report.source == {"source": f"delta '{delta}' where ds = :ds with ds=1", "version": 0}
    [file, *_] = (tmp_path / "scores" / "part=1").glob("*.parquet")
    written = json.loads(pq.read_schema(file).metadata[b"org.apache.spark.sql.parquet.row.metadata"])
    made = {field["name"]: field["metadata"] for field in written["fields"]}["prediction"]
    assert made[LABEL] == {
        "model_uri": report.model_uri,
        "model_version": report.model_version,
        "source": report.source,
    }
    assert [path.name for path in (tmp_path / "scores").iterdir() if "snapshot" in path.name] == []
    assert run_inference(job).rows == 20, "a run that is done begins anew"


def test_the_extent_of_a_query_is_asked_for_in_the_databases_own_words(orders, warehouse):
    source = Source.jdbc(
        "mariadb", query="select id as `a b` from orders where id < 5", partition_column="a b", partitions=2
    )
    assert databases.extent(warehouse, source, access(orders)) == databases.Extent(4, 1, 4)
    assert sources.read(warehouse, source, access(orders)).count() == 4
