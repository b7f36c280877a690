"""What ranks and scoring workers read without Spark is what Spark reads: rows, types and values."""

from __future__ import annotations

import datetime
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.data import snapshots, staging
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.scans import Scan, scan_of
from airflow_hydrogen.runtime.scoring.direct import read, row_groups

pytestmark = pytest.mark.integration

KINDS = ("parquet", "delta")
ROWS = """
SELECT IF(id % 10 = 0, null, id) AS id,
       CASE id % 7 WHEN 0 THEN double('nan') WHEN 1 THEN null WHEN 2 THEN -0.0D WHEN 3 THEN 0.0D
                   ELSE id / 3 END AS x,
       float(id % 5) AS f, IF(id % 6 = 0, null, int(id % 3)) AS k,
       IF(id % 9 = 0, null, concat('ä', id % 12)) AS w, id % 2 = 0 AS b,
       date_add(date'2020-01-01', int(id % 30)) AS d,
       IF(id % 8 = 0, null, concat('a:%20 ', id % 4)) AS ds, int(id % 3) AS n,
       date_add(date'2021-01-01', int(id % 3)) AS day
FROM range(200)
"""
CONDITIONS = [
    "x > 5",
    "not (x > 5)",
    "x = double('nan')",
    "x < double('nan')",
    "x >= 'nan'",
    "x = 0.0D",
    "f >= 1.5F",
    "k in (1, 2)",
    "k not in (1, 2)",
    "not (k <=> 1)",
    "id in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)",
    "w > 'ä3'",
    "w != 'ä1'",
    "not b",
    "d >= '2020-01-15' and d < '2020-01-20'",
    "id is null or x is null",
    "not (w is not null and k = 2)",
    "id between 10 and 20",
    "ds = 'a:%20 1' or id > 100",  # of a partition column, and yet not of partitions alone
    "not (ds = 'a:%20 1' and id > 100)",
    "ds is null",
    "day > '2021-01-01' and n = 2 and k = 2",
    "day in (date'2021-01-01') and ds < 'a:%20 2'",
]
LEFT_TO_SPARK = [
    "id + 1 > 5",
    "x > k",
    "length(w) > 2",
    "k = 1.5",
    "rand() < 0.5",
    "ID > 5",
    "id <= (select max(id) from range(10))",
]


def scan(session: Any, source: Source) -> tuple[Any, Scan | None]:
    opened = snapshots.open_pinned(session, source)
    return opened.frame, scan_of(opened.frame, opened.source, opened.frame.columns)


def counted(table: pa.Table) -> Counter[str]:
    return Counter(map(repr, table.to_pylist()))  # NaN too equals itself then


def require_same(session: Any, source: Source) -> Scan:
    """Read directly, hold it against what Spark reads, and give what was found."""
    frame, found = scan(session, source)
    assert found is not None, f"{source} was left to Spark"
    found = pickle.loads(pickle.dumps(found))
    batches = list(read(found, row_groups(found.files), frame.columns, 50))
    expected = frame.toArrow()
    if batches:
        assert batches[0].schema == expected.schema
    assert counted(pa.Table.from_batches(batches, expected.schema)) == counted(expected)
    return found


@pytest.fixture(scope="module")
def lake(warehouse: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same rows in partition folders and as a Delta table, in a folder with a difficult name."""
    folder = tmp_path_factory.mktemp("direct") / "a lake%20#ü"
    rows = warehouse.sql(ROWS).coalesce(1)
    for kind in KINDS:
        rows.write.partitionBy("ds", "n", "day").format(kind).save(str(folder / kind))
    return {kind: str(folder / kind) for kind in KINDS}


@pytest.fixture
def delta(warehouse: Any, tmp_path: Path) -> Callable[..., Source]:
    """Writes a Delta table, or adds to it."""

    def write(
        name: str, query: str, *, mode: str = "append", by: tuple[str, ...] = (), **options: str
    ) -> Source:
        options = {f"delta.{option}": value for option, value in options.items()}
        frame = warehouse.sql(query).coalesce(1).write.format("delta").mode(mode)
        frame.options(mergeSchema="true", **options).partitionBy(*by).save(str(tmp_path / name))
        return Source.delta(str(tmp_path / name))

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_partition_folders_and_delta_tables_are_read_as_spark_reads_them(warehouse, lake, kind):
    make = getattr(Source, kind)
    found = require_same(warehouse, make(lake[kind]))
    assert found.files.partition_columns == ("ds", "n", "day")
    assert found.files.total_rows == 200
    require_same(warehouse, make(lake[kind], columns=["day", "w", "ds"]))
    require_same(warehouse, make(lake[kind], columns=["ds", "n"]))


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_leave_the_rows_that_spark_leaves(warehouse, lake, kind):
    # Delta plans each for seconds; what is done with the condition is the same.
    for where in CONDITIONS if kind == "parquet" else CONDITIONS[::4]:
        require_same(warehouse, getattr(Source, kind)(lake[kind], where=where))
    bound = {"where": "ds = :ds and x > :x", "where_args": {"ds": "a:%20 1", "x": 3.0}}
    require_same(warehouse, getattr(Source, kind)(lake[kind], **bound))
    for where in LEFT_TO_SPARK if kind == "parquet" else LEFT_TO_SPARK[:1]:
        assert scan(warehouse, getattr(Source, kind)(lake[kind], where=where))[1] is None, where


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_on_partition_columns_leave_whole_files(warehouse, lake, kind):
    found = require_same(warehouse, getattr(Source, kind)(lake[kind], where="ds = 'a:%20 1' and n < 2"))
    assert found.condition is None
    assert {values[:2] for values in found.files.partitions} == {("a:%20 1", 0), ("a:%20 1", 1)}
    assert len(found.files.files) == 2


def test_partition_values_of_which_python_cannot_be_sure_are_left_to_spark(spark, tmp_path, delta):
    for name, values in {"halves": "id / 2", "moments": "timestamp_seconds(id)"}.items():
        spark.sql(f"SELECT id, {values} AS p FROM range(3)").write.partitionBy("p").parquet(
            f"{tmp_path}/{name}"
        )
        assert scan(spark, Source.parquet(f"{tmp_path}/{name}"))[1] is None


def test_columns_that_spark_finds_by_other_names_or_types_are_left_to_it(spark, tmp_path):
    for name, columns in {"letters": {"ID": [2]}, "types": {"id": pa.array([2], "int32")}}.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"id": [1]}), tmp_path / name / "0.parquet")
        pq.write_table(pa.table(columns), tmp_path / name / "1.parquet")
        assert scan(spark, Source.parquet(str(tmp_path / name)))[1] is None
    pq.write_table(pa.table({"id": [1], "at": pa.array([0], "uint32")}), tmp_path / "unsigned.parquet")
    unsigned = Source.parquet(str(tmp_path / "unsigned.parquet"))
    assert scan(spark, unsigned)[1] is None
    require_same(spark, Source.parquet(str(tmp_path / "unsigned.parquet"), columns=["id"]))


def test_dates_by_the_old_calendar_are_left_to_spark(spark, tmp_path, stage):
    setting = "spark.sql.parquet.datetimeRebaseModeInWrite"
    spark.conf.set(setting, "LEGACY")
    try:
        rows = spark.sql("SELECT id, date'0001-01-01' AS d FROM range(3)")
        rows.coalesce(1).write.parquet(f"{tmp_path}/old")
    finally:
        spark.conf.unset(setting)
    source = Source.parquet(f"{tmp_path}/old", where="d = date'0001-01-01'")
    frame, found = scan(spark, source)
    assert (frame.count(), found) == (3, None)
    assert not stage(Source.parquet(f"{tmp_path}/old")).in_place
    assert stage(Source.parquet(f"{tmp_path}/old", columns=["id"])).in_place


def test_a_column_that_stands_in_folder_and_file_has_the_folders_value(spark, tmp_path):
    (tmp_path / "ds=1").mkdir()
    pq.write_table(pa.table({"id": [1], "ds": pa.array([7], "int32")}), tmp_path / "ds=1" / "x.parquet")
    found = require_same(spark, Source.parquet(str(tmp_path), where="ds < 2 or id = 5"))
    assert len(row_groups(found.files)) == 1, "whatever its statistics say"
    pq.write_table(pa.table({"id": [1], "DS": [7]}), tmp_path / "ds=1" / "x.parquet")
    assert scan(spark, Source.parquet(str(tmp_path)))[1] is None


def test_a_delta_table_is_read_at_its_version(warehouse, delta):
    source = delta("t", "SELECT id, 'a' AS ds FROM range(10)")
    delta("t", "SELECT id, 'b' AS ds, 'new' AS later FROM range(5)")
    assert require_same(warehouse, source).files.total_rows == 15
    require_same(warehouse, Source.delta(source.uri, where="later is null"))
    require_same(warehouse, Source.delta(source.uri, where="later = 'new'", columns=["later"]))
    old = require_same(warehouse, Source.delta(source.uri, version=0))
    assert old.files.total_rows == 10
    assert old.files.schema.names == ["id", "ds"]


def test_a_delta_table_of_a_catalog_is_read_directly(warehouse, tmp_path):
    warehouse.sql(f"CREATE TABLE direct_table USING delta LOCATION '{tmp_path}/t' AS SELECT id FROM range(3)")
    try:
        require_same(warehouse, Source.table("direct_table"))
    finally:
        warehouse.sql("DROP TABLE direct_table")


def test_a_table_with_deletion_vectors_is_read_directly_until_there_is_one(warehouse, delta):
    source = delta("t", "SELECT id FROM range(10)", enableDeletionVectors="true", enableRowTracking="true")
    require_same(warehouse, source)
    warehouse.sql(f"DELETE FROM delta.`{source.uri}` WHERE id = 5")
    frame, found = scan(warehouse, source)
    assert found is None
    assert frame.count() == 9
    require_same(warehouse, Source.delta(source.uri, version=0))


def test_tables_whose_files_do_not_say_it_all_are_left_to_spark(warehouse, delta, tmp_path):
    mapped = delta("mapped", "SELECT id FROM range(3)", **{"columnMapping.mode": "name"})
    assert scan(warehouse, mapped)[1] is None
    widened = delta("widened", "SELECT int(id) AS id FROM range(3)", enableTypeWidening="true")
    warehouse.sql(f"ALTER TABLE delta.`{widened.uri}` CHANGE COLUMN id TYPE bigint")
    assert scan(warehouse, widened)[1] is None
    plain = delta("plain", "SELECT id FROM range(3)")
    warehouse.sql(f"CREATE TABLE delta.`{tmp_path}/clone` SHALLOW CLONE delta.`{plain.uri}`")
    assert scan(warehouse, Source.delta(f"{tmp_path}/clone"))[1] is None


def test_the_log_may_lie_in_checkpoints_of_either_kind(warehouse, delta):
    for policy in ("classic", "v2"):
        for _ in range(3):
            source = delta(policy, "SELECT id FROM range(3)", checkpointPolicy=policy, checkpointInterval="2")
        assert any("checkpoint" in name for name in os.listdir(f"{source.uri}/_delta_log"))
        assert require_same(warehouse, source).files.total_rows == 9


def test_delta_partition_values_of_every_type_that_is_sure(warehouse, delta):
    query = "SELECT id, id % 2 = 0 AS b, smallint(id) AS s, nullif(id, 1) AS n FROM range(3)"
    require_same(warehouse, delta("t", query, by=("b", "s", "n")))
    assert scan(warehouse, delta("halves", "SELECT id, id / 2 AS p FROM range(3)", by=("p",)))[1] is None


# --- ranks -----------------------------------------------------------------------------------------------


@pytest.fixture
def stage(warehouse, tmp_path):
    def run(source: Source) -> staging.StagedDataset:
        return staging.stage(warehouse, "train", source, str(tmp_path / "data"), ranks=2)

    return run


def shard_rows(staged: staging.StagedDataset) -> tuple[pa.Table, list[int]]:
    """All rows of two ranks, and how many each has."""
    files = pickle.loads(pickle.dumps(staged.files))
    shards = [DatasetShard(files, rank=rank, size=2) for rank in range(2)]
    tables = [pa.Table.from_batches(shard.to_batches(16)) for shard in shards]
    return pa.concat_tables(tables), [len(shard) for shard in shards]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [None, "ds = 'a:%20 1' and day < '2021-01-03'"])
def test_ranks_read_partitions_in_place(warehouse, lake, stage, tmp_path, kind, where):
    source = getattr(Source, kind)(lake[kind], where=where, columns=["ds", "x", "day", "n"])
    staged = stage(source)
    assert staged.in_place
    assert not (tmp_path / "data").exists()
    rows, steps = shard_rows(staged)
    expected = snapshots.open_pinned(warehouse, source).frame.toArrow()
    assert rows.schema == expected.schema
    assert steps == [-(-expected.num_rows // 2)] * 2
    assert set(counted(rows)) == set(counted(expected))
    assert staged.rows == expected.num_rows
    if kind == "delta":
        assert staged.snapshot["version"] == 0
    assert stage(source).fingerprint == staged.fingerprint
    assert stage(getattr(Source, kind)(lake[kind])).fingerprint != staged.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_nobody_has_counted_are_prepared_for_ranks(lake, stage, kind):
    staged = stage(getattr(Source, kind)(lake[kind], where="n = 1 and k = 1"))
    assert not staged.in_place
    assert set(staged.files.schema.names) == {"id", "x", "f", "k", "w", "b", "d", "ds", "n", "day"}


def test_a_delta_table_that_grew_a_column_is_prepared_for_ranks(delta, stage):
    source = delta("t", "SELECT id FROM range(10)")
    delta("t", "SELECT id, id AS later FROM range(5)")
    assert not stage(source).in_place
    assert stage(Source.delta(source.uri, columns=["id"])).in_place
    assert stage(Source.delta(source.uri, version=0)).in_place


def test_columns_of_plain_files_are_read_in_place(stage, tmp_path):
    (tmp_path / "lake").mkdir()
    for number in range(2):
        table = pa.table({"a": [number], "b": [datetime.date(2013, 1, 1)], "c": [[number]]})
        pq.write_table(table, tmp_path / "lake" / f"{number}.parquet")
    staged = stage(Source.parquet(str(tmp_path / "lake"), columns=["b", "a"]))
    assert staged.in_place
    rows, _ = shard_rows(staged)
    assert rows.schema.names == ["b", "a"]
    assert sorted(rows.column("a").to_pylist()) == [0, 1]
    assert staged.fingerprint != stage(Source.parquet(str(tmp_path / "lake"))).fingerprint
