"""What is seen of a source without Spark is what Spark finds, and both tell the same differences."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Connection
from pyarrow import orc

from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.hooks import databases
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.runtime.data import sources
from airflow_hydrogen.runtime.scoring.planning import columns_of
from airflow_hydrogen.schemas import __main__ as schemas
from airflow_hydrogen.schemas import looks
from airflow_hydrogen.testing import run_task
from tests.integration.databases import DatabaseServer
from tests.integration.models import dense, matrix_layout, publish

pytestmark = [pytest.mark.integration]

EVERY = "cast(1 as {0}) as c_{0}"
TYPES = ["tinyint", "smallint", "int", "bigint", "float", "double", "boolean", "string", "date", "timestamp"]
SELECT = ", ".join([*(EVERY.format(name) for name in TYPES if name != "date"), "date'2013-01-01' as c_date"])
NESTED = "array(1.5F) as list, map('a', 1) as pairs, struct(1 as x, 'y' as y) as who, 1.5 as price, 0 as Part"


def require_same(spark: Any, source: Source, types: int, access: Any = None) -> None:
    """What the look finds is what Spark finds, types where it names them: so many of them."""
    client = access and access["client"]
    seen = schemas._columns_of(source, client)
    opened = sources.read(spark, source, access and {"shop": access["options"]})
    expected = dict(columns_of(opened.schema))
    assert sorted(name for name, _ in seen) == sorted(expected)
    certain = {name: type_ for name, type_ in seen if type_ is not None}
    assert certain == {name: expected[name] for name in certain}
    assert len(certain) == types, sorted(set(expected) - set(certain))


def by_spark(spark: Any, kind: str) -> Callable[[str], None]:
    frame = spark.sql(f"select {SELECT}, {NESTED}")
    return lambda folder: frame.write.partitionBy("Part").format(kind).save(folder)


def by_arrow(folder: str) -> None:
    Path(folder).mkdir()
    one = {
        **{str(type_): pa.array([1], type_) for type_ in (pa.int8(), pa.int16(), pa.uint8(), pa.uint64())},
        **{str(type_): pa.array([1], type_) for type_ in (pa.uint16(), pa.uint32(), pa.float32())},
        "us": pa.array([0], pa.timestamp("us")),
        "utc": pa.array([0], pa.timestamp("ms", tz="UTC")),
        "day": [datetime.date(2013, 1, 1)],
        "word": pa.array(["x"]).dictionary_encode(),
        "large": pa.array(["x"], pa.large_string()),
        "list": [[[1.5]]],
        "fixed": pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0], pa.float32()), 2),
        "tensor": pa.FixedShapeTensorArray.from_storage(
            pa.fixed_shape_tensor(pa.int32(), [2]),
            pa.FixedSizeListArray.from_arrays(pa.array([1, 2], pa.int32()), 2),
        ),
        "pairs": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "who": [{"x": 1, "y": "z"}],
        "price": pa.array([1], pa.decimal128(12, 3)),
        "raw": [b"x"],
    }
    pq.write_table(pa.table(one), f"{folder}/x.parquet")


@pytest.mark.parametrize(
    ("kind", "write", "types"),
    [("parquet", "spark", 14), ("parquet", "arrow", 18), ("orc", "spark", 13)],
)
def test_files_are_seen_as_spark_reads_them(
    spark: Any, tmp_path: Path, kind: str, write: str, types: int
) -> None:
    folder = str(tmp_path / "table")
    (by_spark(spark, kind) if write == "spark" else by_arrow)(folder)
    require_same(spark, Source(kind=kind, uri=folder), types)  # type: ignore[arg-type]


def test_orc_of_others_and_csv_are_seen_as_spark_reads_them(spark: Any, tmp_path: Path) -> None:
    orc.write_table(pa.table({"n": pa.array([1], pa.int8()), "s": ["x"], "l": [[1.5]]}), tmp_path / "x.orc")
    require_same(spark, Source.orc(str(tmp_path / "x.orc")), 3)
    (tmp_path / "csv" / "day=1").mkdir(parents=True)
    (tmp_path / "csv" / "day=1" / "x.csv").write_text("a;B c;d\n1;2;3\n")
    require_same(spark, Source.csv(str(tmp_path / "csv"), sep=";"), 0)


def test_a_delta_table_is_seen_by_the_names_that_its_columns_have_now(warehouse: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "table")
    frame = warehouse.sql(f"select {SELECT}, {NESTED}")
    (
        frame.write.format("delta")
        .partitionBy("Part")
        .option("delta.columnMapping.mode", "name")
        .option("delta.checkpointInterval", "2")
        .save(folder)
    )
    warehouse.sql(f"alter table delta.`{folder}` rename column c_double to renamed")
    warehouse.sql(f"alter table delta.`{folder}` drop column c_int")
    frame.drop("c_int").withColumnRenamed("c_double", "renamed").write.format("delta").mode("append").save(
        folder
    )
    log = sorted(Path(folder, "_delta_log").glob("*.json"))
    assert len(log) == 4
    require_same(warehouse, Source.delta(folder), 14)
    require_same(warehouse, Source.delta(folder, version=0), 15)
    for commit in log[:3]:
        commit.unlink()  # as Delta does when they are old: the checkpoint has it all
    require_same(warehouse, Source.delta(folder), 14)


@pytest.mark.parametrize(("server", "types"), [("postgres", 11), ("mariadb", 3)])
def test_a_table_of_a_database_is_seen_as_spark_reads_it(
    warehouse: Any, request: pytest.FixtureRequest, server: str, types: int
) -> None:
    started: DatabaseServer = request.getfixturevalue(server)
    database = started.database()
    columns = ["a smallint", "b int", "c bigint", "d real", "e double precision", "f varchar(9)", "g char(3)"]
    columns += ["h text", "i date", "j timestamp", "k numeric(10, 2)", "l boolean"]
    database.execute(f"create table t ({', '.join(columns)})")
    connection = Connection(
        conn_id="shop",
        conn_type=server,
        host=database.host,
        port=database.port,
        schema=database.name,
        login=database.user,
        password=database.password,
    )
    access = {
        "client": databases.client_options(connection),
        "options": databases.reader_options(connection),
    }
    query = "select a, b as bb, c + 1 as c1, d, e, f, g, h, i, j, k, l from t -- all\n;"
    require_same(warehouse, Source.jdbc("shop", query=query), types, access)
    require_same(warehouse, Source.jdbc("shop", table="t"), types, access)


def test_the_same_differences_are_told_before_a_submission_and_by_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = publish(dense([[1.0], [10.0]]), str(tmp_path / "model"), matrix_layout("dep_delay", "distance"))
    columns = {"Dep_Delay": [1.0], "distance": ["far"], "price": pa.array([1], pa.decimal128(9, 2))}
    pq.write_table(pa.table({**columns, "prediction": [1.0]}), tmp_path / "x.parquet")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", '{"conn_type": "spark", "host": "local[1]"}')
    monkeypatch.setattr(looks, "TIMEOUT_S", 60)  # where other work goes on beside the tests
    told, seconds = [], []
    for source in (Source.parquet(f"{tmp_path}/x.parquet"), Source.read("parquet", f"{tmp_path}/x.parquet")):
        operator = ArrowInferenceOperator(
            task_id="score",
            model_uri=model,
            source=source,
            sink=Sink.parquet(str(tmp_path / "scores")),
            keep_columns=["price", "prediction", "flight"],
            conf={"spark.ui.enabled": "false"},
        )
        started = time.monotonic()
        with pytest.raises(AirflowFailException) as caught:
            run_task(operator)
        seconds.append(time.monotonic() - started)
        told.append(str(caught.value))
    before, by_the_driver = told
    assert before.startswith("4 points in which source and job do not fit:\n")
    assert by_the_driver.removeprefix("SourceMisfitError: ") == before
    print(f"told after {seconds[0]:.1f} s without Spark, after {seconds[1]:.1f} s by its driver")
    assert seconds[0] < seconds[1]
    assert not (tmp_path / "scores").exists() and os.listdir(tmp_path)
