"""Iceberg tables in a real catalog (SQLite), read and written by pyiceberg, without Spark's own package."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql.types import (
    BooleanType,
    DateType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from airflow_hydrogen.contract.errors import (
    ColumnTypeError,
    InvalidJobError,
    MissingColumnError,
    PartitionTakenError,
    SourceError,
    TableBusyError,
    TableMismatchError,
    UnwritableUriError,
)
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source
from airflow_hydrogen.runtime.data import scans, snapshots, sources, staging
from airflow_hydrogen.runtime.scoring.application import run_inference
from airflow_hydrogen.runtime.sinks import iceberg, placements
from tests.integration import iceberg_writer
from tests.integration.iceberg_writer import SCHEMA, stage
from tests.integration.models import dense, matrix_layout, publish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RUN = Run(dag_id="d", task_id="t", run_id="r")
DAY = {"ds": "2013-01-02"}


def other_run(name):
    return Run(dag_id="d", task_id="t", run_id=name)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """prediction = a + 10 b."""
    uri = str(tmp_path_factory.mktemp("models") / "linear")
    return publish(dense([[1.0], [10.0]]), uri, matrix_layout("a", "b"))


class Lake:
    """A catalog with the namespace `db`, and a table `db.t` that sinks make."""

    def __init__(self, folder):
        self.folder = folder
        self.properties = {
            "type": "sql",
            "uri": f"sqlite:///{folder}/catalog.db",
            "warehouse": folder.as_uri(),
        }
        self.catalog.create_namespace_if_not_exists("db")

    @property
    def catalog(self):
        from pyiceberg.catalog import load_catalog

        return load_catalog("default", **self.properties)

    @property
    def table(self):
        return self.catalog.load_table("db.t")

    def sink(self, partition=None, **arguments):
        return Sink.iceberg("db.t", catalog=self.properties, partition=partition, **arguments)

    def source(self, **arguments):
        return Source.iceberg("db.t", catalog=self.properties, **arguments)

    def rows(self, where="true"):
        return self.table.scan(row_filter=where).to_arrow().to_pylist()

    def ids(self, where="true"):
        return sorted(row["id"] for row in self.rows(where))

    def contents(self, where="true"):
        """Name -> hash of the files that hold rows."""
        files = [
            Path(urlsplit(task.file.file_path).path)
            for task in self.table.scan(row_filter=where).plan_files()
        ]
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def leftovers(self):
        """Files of the table's folder that no snapshot has, but for its metadata."""
        known = {Path(urlsplit(name).path) for name in iceberg._files_of(self.table)}
        data = Path(urlsplit(self.table.location()).path) / "data"
        return sorted(str(path) for path in data.rglob("*") if path.is_file() and path not in known)


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path)


def put(ids, sink, run=RUN, **arguments):
    """Rows in their place, as if a model had made them; how many they were."""
    return iceberg_writer.put(ids, sink, run, **arguments)


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


# --- The sink ----------------------------------------------------------------------------------------------


def test_one_partition_is_replaced_and_the_others_keep_every_byte(lake):
    assert put(range(10), lake.sink({"ds": "2013-01-01"})) == 10
    assert put(range(10, 30), lake.sink(DAY)) == 20
    before = lake.contents("ds = '2013-01-01'")
    assert put(range(30, 35), lake.sink(DAY), other_run("s")) == 5
    assert lake.ids("ds = '2013-01-02'") == list(range(30, 35))
    assert lake.ids("ds = '2013-01-01'") == list(range(10))
    assert lake.contents("ds = '2013-01-01'") == before
    assert lake.leftovers() == []
    assert len(lake.table.snapshots()) == 3, "one for each commit"
    assert lake.table.properties == {}
    assert put(range(0), lake.sink(DAY)) == 0
    assert lake.ids() == list(range(10))
    said = lake.table.current_snapshot().summary.additional_properties
    assert json.loads(said["airflow-hydrogen.made-by"]) == {"model_uri": "/models/none"}
    assert json.loads(said["airflow-hydrogen.run"])["run_id"] == "r"


def test_rows_are_added_once_a_run_whatever_its_retries_and_clears(lake):
    sink = lake.sink(DAY, mode="append")
    put(range(10), sink)
    put(range(100, 104), sink, other_run("second"))
    put(range(3), sink, Run(dag_id="d", task_id="t", run_id="r", clear_number=1))
    assert lake.ids("ds = '2013-01-02'") == [0, 1, 2, 100, 101, 102, 103]
    assert len({row["hydrogen_run"] for row in lake.rows()}) == 2


def test_four_at_once_write_a_partition_each_of_a_table_that_is_not_there_yet(lake):
    calls = [
        lambda day=day: put(range(10 * day, 10 * day + 5), lake.sink({"ds": f"d{day}"}), other_run(str(day)))
        for day in range(4)
    ]
    assert threads(*calls) == [5, 5, 5, 5]
    assert lake.ids() == [10 * day + n for day in range(4) for n in range(5)]
    assert lake.leftovers() == []


def test_of_four_at_once_in_one_partition_one_is_there_as_a_whole(lake):
    put(range(3), lake.sink({"ds": "other"}))
    before = lake.contents("ds = 'other'")
    calls = [
        lambda n=n: put(range(10 * n, 10 * n + 5), lake.sink(DAY), other_run(str(n))) for n in range(1, 5)
    ]
    outcomes = threads(*calls)
    done = [n for n, outcome in enumerate(outcomes, 1) if outcome == 5]
    assert done and all(isinstance(outcome, PartitionTakenError) for outcome in outcomes if outcome != 5), (
        outcomes
    )
    assert lake.ids("ds = '2013-01-02'") in [list(range(10 * n, 10 * n + 5)) for n in done]
    assert lake.contents("ds = 'other'") == before
    put(range(5), lake.sink(DAY))
    assert lake.leftovers() == []


def test_a_commit_that_comes_second_is_made_again_on_what_the_first_has_left(lake, monkeypatch):
    """The other is a writer of its own, which knows nothing of ours, and writes the same partition too."""
    put(range(10), lake.sink(DAY))
    commit, waited = iceberg.Target.commit, []

    def second(target, table, *given):
        if not waited:
            rows = [{"id": 7, "prediction": 1.0, "ds": ds} for ds in ("other", "2013-01-02")]
            lake.table.append(pa.Table.from_pylist(rows, lake.table.schema().as_arrow()))
        waited.append(len(lake.rows()))
        return commit(target, table, *given)

    monkeypatch.setattr(iceberg.Target, "commit", second)
    assert put(range(20, 25), lake.sink(DAY), other_run("s")) == 5
    assert waited == [12, 12]
    assert lake.ids("ds = '2013-01-02'") == list(range(20, 25))
    assert lake.ids("ds = 'other'") == [7]

    def always(target, table, *given):
        lake.table.append(pa.Table.from_pylist(rows, lake.table.schema().as_arrow()))
        return commit(target, table, *given)

    rows = [{"id": 8, "prediction": 1.0, "ds": "other"}]
    monkeypatch.setattr(iceberg.Target, "commit", always)
    monkeypatch.setattr(iceberg, "ATTEMPTS", 2)
    with pytest.raises(
        TableBusyError, match=r"others have committed to iceberg db.t .*ds=2013-01-02.* 2 times"
    ):
        put(range(30, 35), lake.sink(DAY), other_run("t"))
    assert lake.ids("ds = '2013-01-02'") == list(range(20, 25))
    assert lake.leftovers() == []


def test_an_answer_of_the_catalog_that_is_lost_is_found_in_the_table(lake, monkeypatch):
    put(range(3), lake.sink(DAY))
    commit = iceberg.Target.commit

    def lost(*given):
        commit(*given)
        raise ConnectionError("password=geheim: the connection was reset")

    monkeypatch.setattr(iceberg.Target, "commit", lost)
    assert put(range(5, 9), lake.sink(DAY), other_run("s")) == 4
    assert lake.ids() == [5, 6, 7, 8]
    assert lake.leftovers() == []


def test_a_try_that_has_committed_does_not_fail_where_leftovers_cannot_be_removed(lake, monkeypatch, caplog):
    put(range(3), lake.sink(DAY))
    commit, load = iceberg.Target.commit, iceberg.Target.load

    def refused(target):
        raise OSError(f"503 Slow Down: {load(target).location()}")

    def committed(*given):
        snapshot = commit(*given)
        monkeypatch.setattr(iceberg.Target, "load", refused)
        return snapshot

    monkeypatch.setattr(iceberg.Target, "commit", committed)
    assert put(range(5, 9), lake.sink(DAY), other_run("s")) == 4
    assert "leftovers stay until the next run writes there: OSError: 503 Slow Down" in caplog.text
    monkeypatch.undo()
    assert lake.ids() == [5, 6, 7, 8]
    assert lake.leftovers() != []
    assert put(range(9), lake.sink(DAY), other_run("t")) == 9
    assert lake.leftovers() == []


@pytest.mark.parametrize("dies", ["while files are brought", "before the commit", "after the commit"])
def test_a_driver_is_killed_and_the_next_try_sweeps_what_nobody_has(lake, dies):
    put(range(10), lake.sink(DAY))
    before = lake.contents()
    asked = json.dumps({"sink": lake.sink(DAY).to_dict(), "ids": list(range(20, 26)), "dies": dies})
    killed = subprocess.run(
        [sys.executable, "-m", "tests.integration.iceberg_writer", asked],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    committed = dies == "after the commit"
    assert lake.ids() == (list(range(20, 26)) if committed else list(range(10)))
    kept = lake.contents() if committed else before
    brought = [name for name in lake.leftovers() if "hydrogen." in name and name.endswith(".parquet")]
    assert bool(brought) == (not committed)
    assert put(range(30, 33), lake.sink(DAY), other_run("next")) == 3
    assert lake.ids() == [30, 31, 32]
    assert lake.leftovers() == []
    assert all(Path(name).exists() for name in kept), "older snapshots keep their files"


def test_a_table_that_does_not_fit_is_refused_before_anything_is_scored(lake):
    put(range(10), lake.sink(DAY))
    before = lake.contents()

    def refused(said, sink=None, error=TableMismatchError, schema=SCHEMA):
        with pytest.raises(error, match=re.escape(said)):
            iceberg.placing(sink or lake.sink(DAY), RUN, {}, {}, schema).__enter__()

    more = StructType([*SCHEMA, StructField("more", LongType())])
    refused("it has no column 'more'", schema=more)
    refused("its column 'prediction' is not among the scored ones", schema=StructType(SCHEMA.fields[:1]))
    text = StructType([SCHEMA["id"], StructField("prediction", StringType())])
    refused("its column 'prediction' is float, and what is scored is string", schema=text)
    refused("it has no column 'day', by which it is to be replaced", lake.sink({"day": "1"}))
    refused("it is partitioned by identity(ds), and what is replaced is a partition by nothing", lake.sink())
    elsewhere = Sink.iceberg("nowhere.t", catalog=lake.properties)
    refused("the namespace 'nowhere', which its catalog does not have", elsewhere, InvalidJobError)
    small = StructType([StructField("id", IntegerType()), SCHEMA["prediction"]])
    assert put(range(5), lake.sink(DAY), schema=small) == 5, "a wider column takes them"
    with lake.table.update_spec() as spec:
        spec.add_field("id", "bucket[4]", "parts")
    refused("it is partitioned by identity(ds), bucket[4](parts), and what is replaced is a")
    assert set(before) < {urlsplit(name).path for name in iceberg._files_of(lake.table)}
    assert lake.leftovers() == []


def test_a_table_that_changes_meanwhile_is_refused_and_left_as_it_is(lake):
    put(range(10), lake.sink(DAY))

    def change_and_commit(rows):
        stage(rows, [20, 21, 22])
        with lake.table.update_schema(allow_incompatible_changes=True) as update:
            update.delete_column("prediction")
        rows.commit(rows=3, model=None)

    with (
        iceberg.placing(lake.sink(DAY), RUN, {}, {}, SCHEMA) as rows,
        pytest.raises(TableMismatchError, match="it has changed: "),
    ):
        change_and_commit(rows)
    assert lake.ids() == list(range(10))
    assert lake.leftovers() == []


def test_a_table_that_is_made_anew_meanwhile_gets_no_column_under_the_number_of_another(lake):
    schema = StructType([*SCHEMA, StructField("late", FloatType())])
    put(range(3), lake.sink(DAY), schema=schema, late=lambda _: -1.0)
    fields = [("id", pa.int64()), ("late", pa.float32()), ("prediction", pa.float32()), ("ds", pa.string())]

    def make_anew_and_commit(rows):
        stage(rows, [20, 21, 22], late=lambda _: -1.0)
        lake.catalog.drop_table("db.t")
        with (
            lake.catalog.create_table_transaction("db.t", schema=pa.schema(fields)) as making,
            making.update_spec() as spec,
        ):
            spec.add_identity("ds")
        rows.commit(rows=3, model=None)

    with (
        iceberg.placing(lake.sink(DAY), RUN, {}, {}, schema) as rows,
        pytest.raises(UnwritableUriError, match="the table was dropped and made anew meanwhile") as caught,
    ):
        make_anew_and_commit(rows)
    assert caught.value.retryable
    assert lake.ids() == []
    assert put(range(30, 33), lake.sink(DAY), schema=schema, late=lambda _: -1.0) == 3
    assert {row["id"]: (row["prediction"], row["late"]) for row in lake.rows()} == {
        n: (float(n), -1.0) for n in range(30, 33)
    }


def test_files_of_an_older_partitioning_are_not_given_up_with_the_rows_of_others(lake):
    schema = StructType([*SCHEMA, StructField("ds", StringType())])
    put(range(4), lake.sink(), schema=schema, ds=lambda number: f"2013-01-0{1 + number // 2}")
    with lake.table.update_spec() as spec:
        spec.add_identity("ds")
    with pytest.raises(TableMismatchError, match="is of an older partitioning, and may hold rows of other"):
        put(range(20, 25), lake.sink(DAY))
    assert lake.ids() == [0, 1, 2, 3]
    assert put(range(20, 25), lake.sink({"ds": "2013-01-07"})) == 5, "its bounds leave this one out"
    assert lake.leftovers() == []


def test_values_of_a_partition_have_the_types_of_the_source(lake):
    """Also where the table's metadata holds no bounds, by which pyiceberg tells a file's partition."""
    types = {"ds": DateType(), "hour": IntegerType(), "late": BooleanType()}
    sink = lake.sink({"ds": "2013-01-01", "hour": "05", "late": "true"})
    put(range(3), sink, types=types)
    put(range(3, 5), lake.sink({"ds": "2013-01-01", "hour": "6", "late": "false"}))
    with lake.table.transaction() as change:
        change.set_properties({"write.metadata.metrics.default": "none"})
    put(range(5, 7), sink)
    assert [str(field.field_type) for field in lake.table.schema().fields[2:]] == ["date", "int", "boolean"]
    assert lake.ids() == [3, 4, 5, 6]
    assert lake.ids("hour = 5 and ds = '2013-01-01'") == [5, 6]
    for hour in ("x", "1.5", "3000000000"):
        wrong = lake.sink({"ds": "2013-01-01", "hour": hour, "late": "true"})
        with pytest.raises(
            ColumnTypeError, match=rf"column 'hour': expected int, found '{hour}'; change the"
        ):
            put(range(3), wrong)


def test_rows_that_come_through_spark_are_written_by_its_tasks_with_their_notes(lake, spark):
    frame = spark.range(0, 6, 1, 2).selectExpr(
        "id", "cast(id as float) as prediction", "if(id % 3 = 2, concat('note ', id), null) as note"
    )
    with placements.placing(spark, lake.sink(DAY), RUN, {}, {}, SCHEMA) as place:
        rows, notes = place.stage(frame, "note")
        assert (rows, sorted(notes), place.count()) == (4, ["note 2", "note 5"], 4)
        place.commit(rows=rows, model=None)
    assert lake.ids() == [0, 1, 3, 4]
    assert lake.leftovers() == []


# --- The source --------------------------------------------------------------------------------------------


def opened(spark, source, earlier=None):
    return snapshots.open_pinned(spark, source, {}, earlier)


def frame_ids(frame):
    return sorted(row["id"] for row in frame.select("id").collect())


def test_every_try_reads_the_snapshot_that_the_first_one_has_found(lake, spark):
    with pytest.raises(SourceError, match=r"source iceberg db.t cannot be read: .*db.t"):
        opened(spark, lake.source())
    put(range(10), lake.sink(DAY))
    first = opened(spark, lake.source())
    assert first.snapshot["version"] == lake.table.current_snapshot().snapshot_id
    put(range(20, 25), lake.sink(DAY))
    retry = opened(spark, lake.source(), first.snapshot)
    assert frame_ids(retry.frame) == list(range(10))
    assert snapshots.differences(first.snapshot, retry.snapshot) == []
    assert frame_ids(opened(spark, lake.source()).frame) == list(range(20, 25))
    when = lake.table.snapshots()[0].timestamp_ms
    at = spark.sql(f"select cast(timestamp_millis({when}) as string)").collect()[0][0]
    assert frame_ids(opened(spark, lake.source(timestamp=at)).frame) == list(range(10))
    with pytest.raises(SourceError, match="the table had no snapshot at that time"):
        opened(spark, lake.source(timestamp="2013-01-01"))
    with pytest.raises(SourceError, match="timestamp 'soon' is no time such as"):
        opened(spark, lake.source(timestamp="soon"))
    with pytest.raises(SourceError, match="the table has no snapshot 7, or no longer"):
        opened(spark, lake.source(snapshot=7))
    lake.table.maintenance.expire_snapshots().by_id(first.snapshot["version"]).commit()
    with pytest.raises(SourceError, match=r"The run's first try read that; clear the task"):
        opened(spark, lake.source(), first.snapshot)


def test_files_of_a_snapshot_that_are_gone_are_told_whoever_reads_them(lake, spark):
    put(range(4), lake.sink(DAY))
    plain = opened(spark, lake.source())
    with lake.table.update_schema() as update:
        update.rename_column("prediction", "delay")
    renamed = opened(spark, lake.source())
    joined = opened(spark, Source.sql("select * from t", t=lake.source()))
    for name in lake.contents():
        Path(name).unlink()
    gone = (
        r"source iceberg db.t at snapshot \d+ cannot be read: .*\.parquet.*[^.]\. Clear the task, which reads"
    )
    for found in (plain, renamed):
        with pytest.raises(SourceError, match=f"{gone} the newest version$"), sources.explained(found.source):
            found.frame.where("id > 0").collect()
    with pytest.raises(SourceError, match="Clear the task"), sources.explained(joined.source):
        joined.frame.where("id > 0").collect()


def test_conditions_leave_out_files_and_columns_are_chosen(lake, spark):
    for day in range(1, 4):
        put(range(10 * day, 10 * day + 5), lake.sink({"ds": f"2013-01-0{day}"}))

    def read(**arguments):
        source = lake.source(**arguments)
        return source, sources.read(spark, source, {})

    def files(frame):
        return [name for name in frame.inputFiles() if name.endswith(".parquet")]

    for condition in (
        {"where": "ds = :day", "where_args": {"day": "2013-01-02"}},
        {"where": "id between 20 and 24 and length(ds) = 10"},
        {"where": "ds in ('2013-01-02', '2012-12-31')"},
        {"where": "ds = '2013-01-02' or id = 20"},
    ):
        _, frame = read(**condition)
        assert len(files(frame)) == 2, condition
        assert frame_ids(frame) == list(range(20, 25))
    _, frame = read(where="length(ds) = 10")
    assert len(files(frame)) == 6
    source, frame = read(where="ds = '2013-01-03' and id < 32", columns=["id"])
    scan = scans.scan_of(frame, source, frame.columns)
    assert scan is not None and scan.files.total_rows == 5
    assert frame.columns == ["id"] and frame_ids(frame) == [30, 31]
    with pytest.raises(MissingColumnError, match="delay"):
        read(columns=["delay"])
    with pytest.raises(SourceError, match="nothing"):
        read(where="nothing = 1")
    assert read(where="ds = '2012-01-01'")[1].collect() == []
    assert frame_ids(read(where="DS = '2013-01-01' and Id > 12")[1]) == [13, 14]
    joined = Source.sql(
        "select count(*) as n from t where ds < :day", query_args={"day": "2013-01-03"}, t=lake.source()
    )
    assert sources.read(spark, joined, {}).collect()[0]["n"] == 10


def test_files_that_spark_takes_for_hidden_ones_and_files_that_are_there_twice_are_read(lake, spark):
    """Tables take files that others have written; Spark says nothing of those that it passes over."""
    schema = pa.schema([("id", pa.int64())])
    table = lake.catalog.create_table("db.t", schema=schema)
    names = ["plain", "_part", ".part", "part._COPYING_", "_part=1", "50%20 ü [#]"]
    files = [str(lake.folder / name) for name in names]
    for number, file in enumerate(files):
        pq.write_table(pa.table({"id": [number]}, schema), file)
    table.add_files(files[-1:])
    assert opened(spark, lake.source()).frame.inputFiles(), "this one Spark reads"
    table.add_files(files[:-1])
    assert lake.ids() == frame_ids(opened(spark, lake.source()).frame) == [0, 1, 2, 3, 4, 5]
    table.delete("id > 0")
    table.add_files(files[:1], check_duplicate_files=False)
    assert lake.ids() == frame_ids(opened(spark, lake.source()).frame) == [0, 0]


def test_columns_that_were_renamed_dropped_and_widened_are_read_by_their_numbers(lake, spark):
    from pyiceberg import types

    schema = StructType(
        [*SCHEMA, StructField("small", IntegerType()), StructField("gone", StringType())],
    )
    put(range(4), lake.sink(DAY), schema=schema, small=lambda _: 7, gone=lambda _: "x")
    first = lake.table.current_snapshot().snapshot_id
    with lake.table.update_schema(allow_incompatible_changes=True) as update:
        update.rename_column("prediction", "delay")
        update.delete_column("gone")
    with lake.table.update_schema() as update:
        update.add_column("gone", types.DoubleType())
        update.update_column("small", types.LongType())
        update.add_column("later", types.StringType())
    source = lake.source()
    found = opened(spark, source).frame
    rows = {row["id"]: row.asDict() for row in found.collect()}
    assert rows[3] == {"id": 3, "delay": 3.0, "small": 7, "ds": "2013-01-02", "gone": None, "later": None}
    assert scans.scan_of(found, source, found.columns) is None
    assert frame_ids(opened(spark, lake.source(where="delay > 1")).frame) == [2, 3]
    lake.table.append(pa.Table.from_pylist([{"id": 9, "ds": "other"}], lake.table.schema().as_arrow()))
    old = opened(spark, lake.source(snapshot=first)).frame
    assert old.columns == ["id", "prediction", "small", "gone", "ds"]
    assert {row["gone"] for row in old.collect()} == {"x"}


def test_types_that_spark_does_not_have_are_left_out_with_columns(lake, spark):
    from pyiceberg import schema, types

    fields = [
        types.NestedField(1, "id", types.LongType(), required=True),
        types.NestedField(2, "at", types.TimeType()),
        types.NestedField(3, "of", types.StructType(types.NestedField(4, "at", types.TimeType()))),
        types.NestedField(5, "key", types.UUIDType()),
    ]
    table = lake.catalog.create_table("db.t", schema.Schema(*fields, identifier_field_ids=[1]))
    for number in range(3):
        table.append(pa.Table.from_pylist([{"id": number}], table.schema().as_arrow()))
    for name, kind in (("at", "time"), ("of", "struct"), ("key", "uuid")):
        with pytest.raises(SourceError, match=f"its column '{name}' is of type {kind}.*leave it out"):
            opened(spark, lake.source(columns=["id", name]))
    found = opened(spark, lake.source(columns=["id"], where="id = 1")).frame
    assert (frame_ids(found), len(found.inputFiles())) == ([1], 1), "files are left out as of other tables"
    with pytest.raises(TableMismatchError, match="its column 'at' is not among the scored ones; .* 'key'"):
        iceberg.placing(lake.sink(), RUN, {}, {}, StructType(SCHEMA.fields[:1])).__enter__()


def test_a_training_reads_the_files_of_a_snapshot_in_place(lake, spark, tmp_path):
    put(range(10), lake.sink(DAY))
    kept = snapshots.Kept(str(tmp_path / "kept.json"), RUN)
    first = staging.stage(spark, "train", lake.source(), str(tmp_path / "data"), ranks=2, kept=kept)
    assert (first.in_place, first.rows) == (True, 10)
    put(range(20, 25), lake.sink(DAY))
    again = snapshots.Kept(str(tmp_path / "kept.json"), RUN)
    retry = staging.stage(spark, "train", lake.source(), str(tmp_path / "data"), ranks=2, kept=again)
    assert (retry.fingerprint, retry.files.files) == (first.fingerprint, first.files.files)
    assert retry.snapshot["version"] == lake.table.snapshots()[0].snapshot_id


# --- Scoring -----------------------------------------------------------------------------------------------


def test_scores_of_one_table_go_into_another_and_say_what_made_them(lake, spark, linear, tmp_path):
    events = pa.table(
        {
            "id": range(101),
            "a": pa.array([*map(float, range(100)), None], pa.float32()),
            "b": pa.array([1.0] * 101, pa.float32()),
            "ds": ["2013-01-02"] * 101,
        }
    )
    lake.catalog.create_table("db.events", schema=events.schema).append(events)
    job = InferenceJob(
        model_uri=linear,
        source=Source.iceberg("db.events", catalog=lake.properties, where="ds = '2013-01-02'"),
        sink=lake.sink(DAY, work_uri=str(tmp_path / "work")),
        report_uri=str(tmp_path / "report.json"),
        keep_columns=["id"],
        on_bad_row="quarantine",
        quarantine=Sink.parquet(str(tmp_path / "bad")),
        run=RUN,
    )
    report = run_inference(job)
    assert (report.rows, report.rows_quarantined, report.output_uri) == (100, 1, "db.t")
    snapshot = lake.catalog.load_table("db.events").current_snapshot().snapshot_id
    assert report.source["version"] == snapshot
    assert {row["id"]: row["prediction"] for row in lake.rows()} == {n: n + 10.0 for n in range(100)}
    said = lake.table.current_snapshot().summary.additional_properties
    made = json.loads(said["airflow-hydrogen.made-by"])
    assert made["model_version"] == report.model_version and made["source"] == report.source
    [file, *_] = lake.contents()
    stored = pq.read_schema(file)
    assert stored.names == ["id", "prediction", "ds"]
    assert [stored.field(name).metadata[b"PARQUET:field_id"] for name in stored.names] == [b"1", b"2", b"3"]
    assert lake.leftovers() == []


def test_a_catalog_that_does_not_answer_is_named_without_its_password(spark):
    properties = {"type": "sql", "uri": "postgresql+psycopg2://me:geheim@127.0.0.1:1/lake", "warehouse": "/w"}
    source = Source.iceberg("db.t", catalog="lake")
    with pytest.raises(SourceError, match="source iceberg lake: db.t cannot be read") as caught:
        snapshots.open_pinned(spark, source, {"lake": properties})
    assert "geheim" not in str(caught.value)
    sink = Sink.iceberg("db.t", catalog="lake")
    with pytest.raises(UnwritableUriError, match="lake: db.t") as refused:
        placements.require_writable(sink, {"lake": properties})
    assert "geheim" not in str(refused.value)
    with pytest.raises(InvalidJobError, match=r"needs access\['lake'\]"):
        placements.require_writable(sink, {})
