"""The scoring application: every kind of model and column, and one partition replaced at once."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F

from airflow_hydrogen.contract import jobs, uris
from airflow_hydrogen.contract.errors import (
    AliasedModelError,
    BadRowsError,
    ColumnCollisionError,
    ColumnTypeError,
    EntrypointError,
    InvalidJobError,
    MissingColumnError,
    ModelFailedError,
    ModelReplacedError,
    NotAModelError,
    NotAnAliasError,
    NullValueError,
    PartitionTakenError,
    PartitionValueError,
    RaggedTensorError,
    RowCountError,
    RowsLostError,
    SourceError,
    UnloadableModelError,
    UnwritableUriError,
)
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.hooks.launchers import find_spark_submit
from airflow_hydrogen.runtime.data import snapshots, sources
from airflow_hydrogen.runtime.data.encoding import FeatureLayout
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.models import aliases, directory
from airflow_hydrogen.runtime.models.exports import ExportedModel
from airflow_hydrogen.runtime.rank import rehearsal
from airflow_hydrogen.runtime.scoring import application, planning, sinks
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT, Account
from airflow_hydrogen.runtime.scoring.application import run_inference
from airflow_hydrogen.runtime.scoring.planning import Scoring
from airflow_hydrogen.runtime.scoring.sizing import TRIED
from airflow_hydrogen.runtime.scoring.watching import RowCounter
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles
from airflow_hydrogen.runtime.storage import filesystems, swap
from tests.integration.models import dense, matrix_layout, publish
from tests.processes import living

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("spark")]


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """prediction = a + 10 b."""
    uri = str(tmp_path_factory.mktemp("models") / "linear")
    return publish(dense([[1.0], [10.0]]), uri, matrix_layout("a", "b"))


@pytest.fixture
def lake(tmp_path):
    """100 rows with columns that a model does not read."""
    folder = tmp_path / "lake"
    folder.mkdir()
    numbers = np.arange(100)
    table = pa.table(
        {
            "id": numbers,
            "a": numbers.astype("float64"),
            "b": (numbers % 7).astype("int32"),
            "word": pa.array([None if n % 10 == 0 else f"w{n}" for n in numbers]),
            "day": [datetime.date(2013, 1, 1)] * 100,
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    return str(folder)


@pytest.fixture
def score(tmp_path, lake):
    def run(model_uri, **changes):
        fields = {
            "model_uri": model_uri,
            "source": Source.parquet(lake),
            "sink": Sink.parquet(str(tmp_path / "scores"), partition={"ds": "2013-01-01"}),
            "report_uri": str(tmp_path / "report.json"),
            "batch_rows": 16,
        }
        report = run_inference(InferenceJob(**{**fields, **changes}))
        return report, pq.read_table(report.output_uri, partitioning=None).to_pandas()

    return run


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return Source.parquet(str(path))


def test_predictions_stand_beside_untouched_columns(score, linear, lake, tmp_path):
    report, found = score(linear)
    source = pq.read_table(lake).to_pandas()
    assert report.rows == len(found) == 100
    assert report.output_uri == str(tmp_path / "scores" / "ds=2013-01-01")
    assert list(found.columns) == [*source.columns, "prediction"]
    found = found.sort_values("id").reset_index(drop=True)
    assert found[source.columns].equals(source)
    assert np.allclose(found["prediction"], source["a"] + 10 * source["b"])
    assert found["prediction"].dtype == np.float32


# Spark reads what it alone can decide.
BY_SPARK = "id % 1000 "


def test_rows_that_workers_read_themselves_are_those_that_spark_reads(score, linear, lake, monkeypatch):
    calls = []
    deal = planning.direct.deal
    monkeypatch.setattr(planning.direct, "deal", lambda *given: calls.append(1) or deal(*given))
    _, directly = score(linear, source=Source.parquet(lake, where="id < :most", where_args={"most": 90}))
    assert calls == [1]
    _, through_spark = score(linear, source=Source.parquet(lake, where=f"{BY_SPARK} < 90"))
    assert calls == [1]
    directly, through_spark = (
        frame.sort_values("id", ignore_index=True) for frame in (directly, through_spark)
    )
    assert len(directly) == 90
    assert directly.equals(through_spark)
    assert directly.dtypes.equals(through_spark.dtypes)


def test_a_partition_of_a_partitioned_table_is_scored_into_its_own(score, linear, tmp_path):
    for day in ("2013-01-01", "2013-01-02"):
        (tmp_path / "table" / f"ds={day}").mkdir(parents=True)
        write(tmp_path / "table" / f"ds={day}" / "x.parquet", a=[1.0, 2.0], b=[int(day[-1])] * 2)
    source = Source.parquet(str(tmp_path / "table"), where="ds = :day", where_args={"day": "2013-01-01"})
    _, found = score(linear, source=source)
    assert sorted(found["prediction"]) == [11.0, 12.0]
    with pytest.raises(PartitionValueError, match="ds"):
        score(linear, source=Source.parquet(str(tmp_path / "table")))


def test_a_delta_table_is_scored_by_workers_that_read_it(warehouse, linear, tmp_path):
    query = "SELECT id, double(id) AS a, int(id % 7) AS b, id % 2 AS ds FROM range(100)"
    warehouse.sql(query).write.partitionBy("ds").format("delta").save(str(tmp_path / "table"))
    opened = snapshots.open_pinned(warehouse, Source.delta(str(tmp_path / "table")))
    warehouse.sql(f"INSERT INTO delta.`{tmp_path}/table` VALUES (-1, 0, 0, 0)")
    job = InferenceJob(
        model_uri=linear,
        source=opened.source,
        sink=Sink.parquet(str(tmp_path / "scores")),
        report_uri=str(tmp_path / "report.json"),
    )
    scoring = planning.score(warehouse, opened.frame, directory.open_model(linear)[0], job)
    assert scoring.rows == 100, "which is known of rows that workers read"
    found = scoring.frame().where(f"{ACCOUNT} is null").toPandas().sort_values("id", ignore_index=True)
    assert found["id"].tolist() == list(range(100))
    assert found["ds"].tolist() == [number % 2 for number in range(100)]
    assert np.allclose(found["prediction"], found["a"] + 10 * found["b"])


def test_workers_read_the_files_that_spark_lists_and_no_others(score, linear, lake):
    copies = pathlib.Path(lake) / "copies"
    copies.mkdir()
    (copies / "rows.parquet").write_bytes((pathlib.Path(lake) / "rows.parquet").read_bytes())
    report, _ = score(linear)
    assert report.rows == 100


PLAIN = {
    **{f"int{bits}": pa.array([1], f"int{bits}") for bits in (8, 16, 32, 64)},
    **{name: pa.array([1.0], name) for name in ("float32", "float64")},
    "bool": pa.array([True]),
    "text": pa.array(["x"]),
    "date": pa.array([datetime.date(2013, 1, 1)]),
}
OTHER = {
    "bytes": pa.array([b"x"]),
    "unsigned": pa.array([1], "uint32"),
    "large": pa.array(["x"], "large_string"),
    "local": pa.array([0], pa.timestamp("us")),
    "instant": pa.array([0], pa.timestamp("us", "UTC")),
    "decimal": pa.array([1], pa.decimal128(9, 2)),
    "list": pa.array([[1.0]]),
    "words": pa.array(["x"]).dictionary_encode(),
    "elapsed": pa.array([1], "int64").cast("duration[us]"),
}


@pytest.mark.parametrize("column", [None, *OTHER])
def test_columns_have_the_types_that_spark_finds_itself(spark, tmp_path, column):
    columns = PLAIN if column is None else {**PLAIN, column: OTHER[column]}
    (tmp_path / "lake").mkdir()
    write(tmp_path / "lake" / "b.parquet", other=[1])
    source = Source.parquet(str(tmp_path / "lake"))
    write(tmp_path / "lake" / "a.parquet", **columns)
    assert sources.read(spark, source).schema == spark.read.parquet(source.uri).schema


def test_plain_columns_are_found_without_a_job_of_sparks(spark, tmp_path):
    write(tmp_path / "rows.parquet", **PLAIN)
    spark.sparkContext.setJobGroup("schema", "")
    try:
        frame = sources.read(spark, Source.parquet(str(tmp_path / "rows.parquet")))
        assert frame.columns == list(PLAIN)
        assert spark.sparkContext.statusTracker().getJobIdsForGroup("schema") == []
        assert frame.collect()[0].text == "x"
        assert spark.sparkContext.statusTracker().getJobIdsForGroup("schema") != []
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)


def test_columns_of_all_files_are_found_where_spark_is_to_merge_them(spark, tmp_path):
    write(tmp_path / "1.parquet", id=[1])
    write(tmp_path / "2.parquet", id=[2], later=[2.0])
    spark.conf.set("spark.sql.parquet.mergeSchema", "true")
    try:
        assert sources.read(spark, Source.parquet(str(tmp_path))).columns == ["id", "later"]
    finally:
        spark.conf.unset("spark.sql.parquet.mergeSchema")


@pytest.mark.parametrize("where", [None, f"{BY_SPARK} < 30"], ids=["read by workers", "read by Spark"])
@pytest.mark.parametrize("writer", ["workers", "Spark"])
def test_spark_says_how_many_rows_have_come_back(
    spark, score, linear, lake, where, writer, eventually, monkeypatch
):
    monkeypatch.setattr(Scoring, "is_written_by_workers", lambda *_: writer == "workers")
    count = RowCounter(spark)
    assert count() == 0, "what the session has scored before does not count"
    report, _ = score(linear, source=Source.parquet(lake, where=where), batch_rows=10)
    if writer == "workers":
        count.rows_each = 10
        eventually(lambda: count() == report.rows, "all batches are counted", 20)
    else:
        eventually(lambda: count() == report.rows + 1, "all rows are counted, and the account", 20)


@pytest.mark.parametrize("where", [None, f"{BY_SPARK} >= 0"], ids=["read by workers", "read by Spark"])
def test_the_rows_of_a_call_are_found_out_and_told(score, linear, where, tmp_path, capsys):
    rows = 40_000
    source = write(tmp_path / "many.parquet", id=np.arange(rows), a=np.arange(rows) / 4, b=np.ones(rows))
    fixed, expected = score(linear, source=source, batch_rows=1000)
    report, found = score(linear, source=dataclasses.replace(source, where=where), batch_rows="auto")
    assert (fixed.batch_rows, report.rows) == (1000, rows)
    assert report.batch_rows in TRIED
    assert "batch_rows='auto': " in capsys.readouterr().out
    assert found.sort_values("id", ignore_index=True).equals(expected.sort_values("id", ignore_index=True))


def test_a_file_that_changes_before_a_worker_reads_it_is_named(spark, linear, lake, tmp_path):
    job = InferenceJob(
        model_uri=linear,
        source=Source.parquet(lake),
        sink=Sink.parquet(str(tmp_path / "scores")),
        report_uri=str(tmp_path / "report.json"),
    )
    frame = planning.score(
        spark, sources.read(spark, job.source), directory.open_model(linear)[0], job
    ).frame()
    write(pathlib.Path(lake) / "rows.parquet", a=[1.0], b=[1])
    with pytest.raises(Exception, match="DatasetChangedError: 'rows.parquet' of dataset .* it had"):
        frame.collect()


def test_kept_columns_and_output_names_are_chosen(score, linear):
    _, found = score(linear, keep_columns=["id"], output_columns={"prediction": "p"})
    assert list(found.columns) == ["id", "p"]


EVERYTHING = """
    SELECT id, float(id) AS a, float(1) AS b, id % 3 = 0 AS flag, tinyint(id) AS tiny, smallint(id) AS small,
        int(id) AS whole, double(id) / 3 AS third, string(id) AS text, binary(string(id)) AS raw,
        decimal(id) AS money, cast(1.5 AS decimal(38, 10)) AS much, date '1500-01-01' + int(id) AS day,
        timestamp '2013-03-10 02:30:00' AS instant, timestamp_ntz '1899-12-31 23:59:59.000001' AS local,
        array(id, null) AS list, map('k', id) AS map,
        struct(id AS x, array(struct(id AS y)) AS deep) AS nested, if(id % 2 = 0, null, id) AS gap{more}
    FROM range(20)
"""


def test_workers_write_what_spark_would_write(spark, score, linear, tmp_path, monkeypatch):
    query = EVERYTHING.format(more="")
    spark.sql(query).write.parquet(f"file://{tmp_path}/everything")
    found = {}
    for writer in ("workers", "Spark"):
        with monkeypatch.context() as patch:
            if writer == "Spark":
                patch.setattr(Scoring, "is_written_by_workers", lambda *_: False)
            report, _ = score(
                linear,
                source=Source.parquet(str(tmp_path / "everything")),
                sink=Sink.parquet(str(tmp_path / writer)),
            )
        found[writer] = spark.read.parquet(f"file://{report.output_uri}").orderBy("id")
        [file, *_] = (tmp_path / writer).glob("*.parquet")
        footer = pq.ParquetFile(file).metadata
        assert footer.row_group(0).column(0).compression == "SNAPPY"
        assert (b"org.apache.spark.version" in footer.metadata) and b"ARROW:schema" not in footer.metadata
    assert found["workers"].schema == found["Spark"].schema
    metadata = [frame.schema["prediction"].metadata for frame in found.values()]
    assert metadata[0] == metadata[1] and metadata[0][planning.LABEL]["model_uri"] == linear
    assert found["workers"].collect() == found["Spark"].collect()


def test_types_that_arrow_writes_in_another_way_are_written_by_spark(spark, score, linear, tmp_path):
    query = EVERYTHING.format(more=", interval '1' day AS lag")
    spark.sql(query).write.parquet(f"file://{tmp_path}/everything")
    source = Source.parquet(str(tmp_path / "everything"))
    report, _ = score(linear, source=source, keep_columns=["id", "lag"])
    written = spark.read.parquet(f"file://{report.output_uri}")
    assert written.where("lag = interval '1' day").count() == 20
    assert report.columns["lag"] == "interval day"


def test_the_files_have_the_codec_that_spark_is_told(spark, score, linear):
    spark.conf.set("spark.sql.parquet.compression.codec", "zstd")
    try:
        report, _ = score(linear)
    finally:
        spark.conf.unset("spark.sql.parquet.compression.codec")
    [file] = pathlib.Path(report.output_uri).glob("*.parquet")
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_partition_is_replaced_and_the_others_are_left_alone(score, linear, lake, tmp_path):
    other = Sink.parquet(str(tmp_path / "scores"), partition={"ds": "2013-01-02"})
    score(linear, sink=other)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "scores" / "ds=2013-01-02").iterdir()}
    score(linear)
    report, found = score(linear, source=Source.parquet(lake, where="id < 30"))
    assert report.rows == len(found) == 30
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "scores" / "ds=2013-01-02").iterdir()} == before
    assert sorted(os.listdir(tmp_path / "scores")) == ["ds=2013-01-01", "ds=2013-01-02"]


def test_spark_and_we_agree_on_the_name_of_a_partition(score, linear, spark, tmp_path):
    hour = "2024-01-01T00:00 %20 100% #ü+?='&"
    table = str(tmp_path / "the table%20#1")
    report, found = score(linear, sink=Sink.parquet(table, partition={"hour": hour}))
    assert report.rows == len(found) == 100
    assert os.listdir(table) == ["hour=2024-01-01T00%3A00 %2520 100%25 %23ü+%3F%3D%27&"]
    frame = spark.read.parquet(uris.spark_uri(table))
    assert frame.where(F.col("hour") == hour).count() == frame.count() == 100
    assert all(filesystems.exists(unquote(file)) for file in frame.inputFiles())
    frame.withColumn("hour", F.lit(hour)).write.partitionBy("hour").parquet(f"file://{tmp_path}/by-spark")
    assert [name for name in os.listdir(tmp_path / "by-spark") if "=" in name] == os.listdir(table)


@pytest.mark.parametrize("where", ["id < 0", "id > 5 and word = 'w5'"], ids=["no row group", "no row"])
def test_no_rows_leave_an_empty_partition(score, linear, lake, where):
    score(linear)
    report, found = score(linear, source=Source.parquet(lake, where=where))
    assert report.rows == len(found) == 0
    assert "prediction" in found.columns


def test_a_failed_scoring_leaves_the_partition_as_it_was(score, linear, tmp_path):
    score(linear)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "scores" / "ds=2013-01-01").iterdir()}
    nulls = write(tmp_path / "nulls.parquet", a=[1.0, None], b=[1, 2])
    with pytest.raises(
        NullValueError, match="column 'a': expected float64 without nulls, found 1 nulls in 2 rows"
    ):
        score(linear, source=nulls)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "scores" / "ds=2013-01-01").iterdir()} == before
    assert os.listdir(tmp_path / "scores") == ["ds=2013-01-01"]


def test_a_whole_folder_is_replaced_without_partition(score, linear, tmp_path):
    report, found = score(linear, sink=Sink.parquet(str(tmp_path / "all")))
    assert report.output_uri == str(tmp_path / "all")
    assert len(found) == 100


def test_several_named_inputs_strings_and_outputs(score, tmp_path):
    import keras

    a, word = keras.Input((1,), name="a"), keras.Input((1,), name="word", dtype="string")
    known = keras.layers.StringLookup(vocabulary=["w1", "w2"], output_mode="one_hot")(word)
    model = keras.Model(
        {"a": a, "word": word},
        {
            "double": keras.ops.squeeze(a * 2, -1),
            "which": known,
            "sum": keras.layers.Concatenate()([a, known]),
        },
    )
    layout = FeatureLayout("columns", (ColumnSpec("word", "string"), ColumnSpec("a", "float32")))
    uri = publish(model, str(tmp_path / "named"), layout)
    source = write(tmp_path / "rows.parquet", a=[1, 2, 3], word=["w1", "w2", "other"])
    _, found = score(uri, source=source)
    found = found.sort_values("a")
    assert found["double"].tolist() == [2.0, 4.0, 6.0]
    assert [list(row) for row in found["which"]] == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert list(found["sum"].iloc[2]) == [3, 1, 0, 0]


def test_tensor_columns(score, tmp_path):
    layout = FeatureLayout("matrix", (ColumnSpec("pixels", "float32", 3),))
    uri = publish(dense([[1.0], [10.0], [100.0]]), str(tmp_path / "pixels"), layout)
    source = write(tmp_path / "rows.parquet", pixels=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    _, found = score(uri, source=source, keep_columns=[])
    assert sorted(found["prediction"]) == [321.0, 654.0]
    ragged = write(tmp_path / "ragged.parquet", pixels=[[1.0, 2.0, 3.0], [4.0, 5.0]])
    with pytest.raises(
        RaggedTensorError, match="column 'pixels': expected lists of 3 numbers in every row, found"
    ):
        score(uri, source=ragged)


def test_a_saved_model(score, tmp_path, lake):
    dense([[1.0, 2.0], [10.0, 20.0]]).export(str(tmp_path / "export"), verbose=False)
    uri = publish(
        ExportedModel(path=str(tmp_path / "export")), str(tmp_path / "saved"), matrix_layout("a", "b")
    )
    _, found = score(uri, keep_columns=["id", "a", "b"])
    assert np.allclose(np.stack(found["prediction"])[:, 1], 2 * found["a"] + 20 * found["b"])


@pytest.fixture
def predictor_module(tmp_path, monkeypatch):
    (tmp_path / "my_predictor.py").write_text(
        "import json\n"
        "def load(path):\n"
        "    factor = json.load(open(path))\n"
        "    return lambda arrays: {'p': arrays['x'].sum(axis=1) * factor}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_predictor:load"


def test_a_predictor_of_the_users_own(score, tmp_path, predictor_module, spark):
    spark.sparkContext.addPyFile(str(tmp_path / "my_predictor.py"))
    (tmp_path / "factor.json").write_text("3")
    signature = Signature(
        (InputSpec("x", (ColumnSpec("a", "float32"), ColumnSpec("b", "float32")), "float32", (2,)),),
        (OutputSpec("p", "float32", ()),),
    )
    model = ExportedModel(
        path=str(tmp_path / "factor.json"), framework="mine", predictor=predictor_module, signature=signature
    )
    _, found = score(publish(model, str(tmp_path / "mine")), keep_columns=["a", "b"])
    assert np.allclose(found["p"], 3 * (found["a"] + found["b"]))


def test_one_model_is_loaded_per_worker_and_short_batches_trace_nothing_new(score, tmp_path, spark):
    module = tmp_path / "counting_predictor.py"
    module.write_text(
        "import os\n"
        "def load(path):\n"
        "    open(f'{os.path.dirname(path)}/loads', 'a').write(f'{os.getpid()}\\n')\n"
        "    return lambda arrays: {'p': arrays['x'][:, 0]}\n"
    )
    spark.sparkContext.addPyFile(str(module))
    sys.path.insert(0, str(tmp_path))
    try:
        (tmp_path / "weights").write_text("x")
        signature = Signature(
            (InputSpec("x", (ColumnSpec("a", "float32"),), "float32", (1,)),),
            (OutputSpec("p", "float32", ()),),
        )
        model = ExportedModel(
            path=str(tmp_path / "weights"),
            framework="mine",
            predictor="counting_predictor:load",
            signature=signature,
        )
        uri = publish(model, str(tmp_path / "counted"))
        for _ in range(3):
            score(uri)
    finally:
        sys.path.remove(str(tmp_path))
    loads = (tmp_path / "counted" / "loads").read_text().split()
    assert len(loads) == len(set(loads)) <= 2


def test_workers_have_the_framework_when_they_start_and_a_killed_daemon_costs_no_rows(linear, lake, tmp_path):
    """Under spark-submit, because the session of the other tests has Spark's own daemon."""
    (tmp_path / "looking.py").write_text(
        "import json, os, pathlib, signal, sys\n"
        "AT_START = 'tensorflow' in sys.modules\n"
        "def load(path):\n"
        "    said = pathlib.Path(os.environ['LOOKS'])\n"
        "    if AT_START and not said.exists():\n"
        "        os.kill(os.getppid(), signal.SIGKILL)\n"
        "    with said.open('a') as looks:\n"
        "        looks.write(json.dumps(AT_START) + '\\n')\n"
        "    import keras\n"
        "    model = keras.models.load_model(path)\n"
        "    return lambda arrays: {'prediction': model(next(iter(arrays.values()))).numpy()}\n"
    )
    (tmp_path / "app.py").write_text("from airflow_hydrogen.runtime.__main__ import main\nmain()\n")
    job = InferenceJob(
        model_uri=linear,
        source=Source.parquet(lake),
        sink=Sink.parquet(str(tmp_path / "scores")),
        report_uri=str(tmp_path / "report.json"),
        keep_columns=["a", "b"],
        predictor="looking:load",
    )
    (tmp_path / "job.json").write_text(jobs.dumps(job))
    environ = {
        **os.environ,
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)]),
        "LOOKS": str(tmp_path / "looks"),
    }
    command = [find_spark_submit("spark-submit", os.environ), "--master", "local[2]"]
    done = subprocess.run(
        [*command, str(tmp_path / "app.py"), str(tmp_path / "job.json")],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = pq.read_table(tmp_path / "scores").to_pandas()
    assert len(found) == 100
    assert np.allclose(found["prediction"], found["a"] + 10 * found["b"])
    looks = [json.loads(line) for line in (tmp_path / "looks").read_text().splitlines()]
    assert looks and all(looks)
    assert not living(lambda process: process.environ().get("LOOKS") == environ["LOOKS"])


# --- the swap -------------------------------------------------------------------------------------------


class OfFrame:
    """A scoring whose scored rows are those of a frame, and which Spark writes."""

    rows = bad_rows = types = schema = through_spark = None

    def __init__(self, frame, rows):
        account = Account(rows_in=rows, rows=rows).dumps()
        accounts = frame.sparkSession.createDataFrame([(account,)], f"{ACCOUNT} string")
        self._frame = frame.select("*").unionByName(accounts, allowMissingColumns=True)

    def is_written_by_workers(self, folder):
        return False

    def require_same_files(self):
        """Its rows are of no files."""

    def frame(self, output, bad_output):
        return self._frame


def replaced(frame, rows, sink, run=None):
    """Put the rows of a frame in place; how many they were."""
    job = InferenceJob(
        model_uri="/models/none", source=Source.parquet("/none"), sink=sink, report_uri="/none.json", run=run
    )
    return sinks.place(frame.sparkSession, OfFrame(frame, rows), job).rows


def test_rows_that_the_driver_does_not_find_are_no_reason_to_replace_a_partition(
    spark, score, linear, tmp_path, monkeypatch
):
    """A path that every host has for itself: the executors' files are not where the driver looks."""
    report, before = score(linear)
    sink = Sink.parquet(str(tmp_path / "scores"), partition={"ds": "2013-01-01"})
    elsewhere = r"the executors wrote 100 rows for '.*/ds=2013-01-01', .* finds 0"
    with monkeypatch.context() as patch:
        patch.setattr(sinks.uris, "spark_uri", lambda uri: f"file://{tmp_path}/another/host{uri}")
        with pytest.raises(RowsLostError, match=elsewhere):
            replaced(spark.range(100), 100, sink)
    accept = TaskFiles.accept
    monkeypatch.setattr(
        TaskFiles, "accept", lambda files, *given: accept(dataclasses.replace(files, folder="/none"), *given)
    )
    with pytest.raises(RowsLostError, match=elsewhere):
        score(linear)
    assert pq.read_table(report.output_uri, partitioning=None).to_pandas().equals(before)
    assert os.listdir(tmp_path / "scores") == ["ds=2013-01-01"]


def test_rows_are_counted_where_they_are_written_even_if_there_are_none(spark, tmp_path):
    sink = Sink.parquet(str(tmp_path / "s"), partition={"ds": "1"})

    def none(batches):
        for batch in batches:
            yield batch.slice(0, 0)

    def all_of(batches):
        yield from batches

    numbers = spark.range(0, 1000, 1, 4)
    assert replaced(numbers.mapInArrow(all_of, "id long"), 1000, sink) == 1000
    adaptive = numbers.repartition(3, "id").groupBy("id").count().mapInArrow(all_of, "id long, count long")
    assert replaced(adaptive, 1000, sink) == 1000
    assert replaced(numbers.mapInArrow(none, "id long"), 0, sink) == 0
    assert pq.read_table(tmp_path / "s" / "ds=1", partitioning=None).num_rows == 0
    assert replaced(numbers.where("false"), 0, sink) == 0


def test_two_tries_at_the_same_time_end_with_the_rows_of_one(spark, tmp_path):
    """The older one is still writing when the newer one begins, ends and is done."""
    sink, run = (
        Sink.parquet(str(tmp_path / "s"), partition={"ds": "1"}),
        Run(dag_id="d", task_id="t", run_id="r"),
    )
    began, go = tmp_path / "began", tmp_path / "go"

    def wait(batches):
        for batch in batches:
            began.touch()
            while not go.exists():
                time.sleep(0.02)
            yield batch

    outcome = []

    def older():
        try:
            outcome.append(replaced(spark.range(0, 750, 1, 1).mapInArrow(wait, "id long"), 750, sink, run))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=older)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not began.exists():
            assert time.monotonic() < deadline, "the older try does not begin"
            time.sleep(0.02)
        assert replaced(spark.range(0, 1000, 1, 1), 1000, sink, run) == 1000
    finally:
        go.touch()
        thread.join()
    assert isinstance(outcome[0], PartitionTakenError), outcome
    assert pq.read_table(tmp_path / "s" / "ds=1", partitioning=None).num_rows == 1000
    assert os.listdir(tmp_path / "s") == ["ds=1"]


# --- rows that cannot be scored -----------------------------------------------------------------------


@pytest.fixture
def picky(tmp_path, spark):
    """A model of `a` (float32) and `n` (int8) that gives `a + n`, and fails on a negative `a`."""
    (tmp_path / "picky_predictor.py").write_text(
        "def load(path):\n"
        "    def predict(arrays):\n"
        "        if (arrays['a'] < 0).any():\n"
        "            raise ValueError('negative\\nin a batch')\n"
        "        return {'p': arrays['a'] + arrays['n']}\n"
        "    return predict\n"
    )
    (tmp_path / "weights").write_text("x")
    spark.sparkContext.addPyFile(str(tmp_path / "picky_predictor.py"))
    signature = Signature(
        (
            InputSpec("a", (ColumnSpec("a", "float32"),), "float32", ()),
            InputSpec("n", (ColumnSpec("n", "int8"),), "int8", ()),
        ),
        (OutputSpec("p", "float32", ()),),
    )
    sys.path.insert(0, str(tmp_path))
    model = ExportedModel(
        path=str(tmp_path / "weights"),
        framework="mine",
        predictor="picky_predictor:load",
        signature=signature,
    )
    yield publish(model, str(tmp_path / "picky"))
    sys.path.remove(str(tmp_path))
    sys.modules.pop("picky_predictor", None)


def bad_rows(path, **changed):
    """50 rows, of which 11 (a null), 22 (beyond int8) and 33 (the model fails) are bad, unless repaired."""
    a, n = [float(number) for number in range(50)], [1] * 50
    a[11], n[22], a[33] = changed.get("a11"), changed.get("n22", 1000), changed.get("a33", -1.0)
    return write(
        path, id=list(range(50)), a=a, n=pa.array(n, pa.int64()), day=[datetime.date(2013, 1, 1)] * 50
    )


FAULTS = {"column 'a': null": 1, "column 'n': beyond int8": 1, "the model failed with ValueError": 1}


@pytest.mark.parametrize("where", [None, "id >= 0"], ids=["read by workers", "read by Spark"])
def test_bad_rows_go_to_a_table_of_their_own_with_the_reason(score, picky, tmp_path, where, spark, capsys):
    source = bad_rows(tmp_path / "rows.parquet")
    report, found = score(
        picky,
        source=Source.parquet(source.uri, where=where),
        on_bad_row="quarantine",
        keep_columns=["id", "day"],
        max_bad_rows=3,
    )
    assert (report.rows_in, report.rows, report.rows_dropped, report.rows_quarantined) == (50, 47, 0, 3)
    assert report.bad_rows == FAULTS
    assert report.quarantine_uri == str(tmp_path / "scores_quarantine" / "ds=2013-01-01")
    good = [number for number in range(50) if number not in (11, 22, 33)]
    assert list(found.columns) == ["id", "day", "p"]
    assert found.sort_values("id")[["id", "p"]].to_numpy().tolist() == [[n, n + 1.0] for n in good]
    bad = pq.read_table(report.quarantine_uri, partitioning=None).sort_by("id").to_pylist()
    day = datetime.date(2013, 1, 1)
    assert bad == [
        {
            "a": None,
            "n": 1,
            "id": 11,
            "day": day,
            "reason": "column 'a': expected float64 without nulls, found null",
        },
        {
            "a": 22.0,
            "n": 1000,
            "id": 22,
            "day": day,
            "reason": "column 'n': expected whole numbers that int8 holds, found 1000",
        },
        {
            "a": -1.0,
            "n": 1,
            "id": 33,
            "day": day,
            "reason": "the model failed with ValueError: negative in a batch",
        },
    ]
    by_spark = spark.read.parquet(str(tmp_path / "scores_quarantine"))
    assert (by_spark.count(), by_spark.columns) == (3, ["a", "n", "id", "day", "reason", "ds"])
    assert sorted(os.listdir(tmp_path / "scores_quarantine")) == ["ds=2013-01-01"], "nothing is left over"
    assert sorted(os.listdir(tmp_path / "scores")) == ["ds=2013-01-01"]
    log = capsys.readouterr().out
    assert f"3 of 50 rows quarantined in {report.quarantine_uri}:\n  1: column " in log


def test_bad_rows_that_are_dropped_are_counted(score, picky, tmp_path):
    report, found = score(picky, source=bad_rows(tmp_path / "rows.parquet"), on_bad_row="drop")
    assert (report.rows_in, report.rows, report.rows_dropped, report.rows_quarantined) == (50, 47, 3, 0)
    assert report.bad_rows == FAULTS and report.quarantine_uri is None
    assert sorted(set(range(50)) - set(found["id"])) == [11, 22, 33]
    assert not (tmp_path / "scores_quarantine").exists()


def test_a_run_without_bad_rows_leaves_none_of_an_earlier_run(score, picky, tmp_path):
    quarantine = Sink.parquet(str(tmp_path / "bad"))
    options = {"on_bad_row": "quarantine", "quarantine": quarantine}
    report, _ = score(picky, source=bad_rows(tmp_path / "rows.parquet"), **options)
    other, _ = score(
        picky,
        source=bad_rows(tmp_path / "rows.parquet"),
        sink=Sink.parquet(str(tmp_path / "scores"), partition={"ds": "2013-01-02"}),
        **options,
    )
    repaired = bad_rows(tmp_path / "rows.parquet", a11=11.0, n22=1, a33=33.0)
    report, _ = score(picky, source=repaired, **options)
    assert (report.rows_in, report.rows, report.rows_quarantined, report.bad_rows) == (50, 50, 0, {})
    table = pq.read_table(report.quarantine_uri, partitioning=None)
    assert (table.num_rows, table.column_names) == (0, ["a", "n", "id", "day", "reason"])
    assert pq.read_table(other.quarantine_uri, partitioning=None).num_rows == 3
    assert sorted(os.listdir(tmp_path / "bad")) == ["ds=2013-01-01", "ds=2013-01-02"]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            2,  # found by the task itself, which ends there
            r"3 of 48 rows so far in one task cannot be scored, more than max_bad_rows=2 allows: column 'a': "
            r"null \(1\), column 'n': beyond int8 \(1\), the model failed with ValueError \(1\)\. Nothing",
        ),
        (0.05, r"3 of 50 rows, a share of 0.06, cannot be scored, more than max_bad_rows=0.05 allows"),
    ],
)
@pytest.mark.parametrize("where", [None, "id >= 0"], ids=["read by workers", "read by Spark"])
def test_more_bad_rows_than_may_be_replace_nothing(score, picky, tmp_path, limit, message, where):
    score(picky, source=bad_rows(tmp_path / "rows.parquet"), on_bad_row="quarantine")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("scores*/ds=*/*")}
    with pytest.raises(BadRowsError, match=message) as caught:
        score(
            picky,
            source=Source.parquet(str(tmp_path / "rows.parquet"), where=where),
            on_bad_row="quarantine",
            max_bad_rows=limit,
        )
    assert not caught.value.retryable
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("scores*/ds=*/*")} == before
    assert os.listdir(tmp_path / "scores") == os.listdir(tmp_path / "scores_quarantine") == ["ds=2013-01-01"]


def test_a_model_that_fails_whatever_the_row_fails_the_job(score, picky, tmp_path):
    source = write(tmp_path / "rows.parquet", a=[-1.0] * 20, n=pa.array([1] * 20))
    with pytest.raises(
        ModelFailedError, match="it scores none of 20 rows.*failed with ValueError: negative in a batch"
    ) as caught:
        score(picky, source=source, on_bad_row="quarantine", batch_rows=1000)
    assert caught.value.retryable
    source = write(tmp_path / "rows.parquet", a=[-1.0] * 50, n=pa.array([1] * 50))
    with pytest.raises(ModelFailedError, match="it scores none of 32 rows one by one"):
        score(picky, source=source, on_bad_row="drop", batch_rows=1000)
    assert not list(tmp_path.glob("scores*/*"))


def test_a_word_that_a_keras_model_does_not_know_is_a_bad_row(score, tmp_path):
    import keras

    known = keras.layers.StringLookup(vocabulary=["a", "b"], num_oov_indices=0, output_mode="one_hot")
    model = keras.Sequential([keras.Input((1,), name="word", dtype="string"), known])
    uri = publish(model, str(tmp_path / "words"), FeatureLayout("columns", (ColumnSpec("word", "string"),)))
    source = write(tmp_path / "rows.parquet", word=["a", "b", None, "what?", "a"])
    report, found = score(uri, source=source, on_bad_row="quarantine")
    assert found["word"].tolist() == ["a", "b", "a"]
    assert [list(row) for row in found["prediction"]] == [[1, 0], [0, 1], [1, 0]]
    assert report.bad_rows == {
        "column 'word': null": 1,
        "the model failed with InvalidArgumentError": 1,
    }
    bad = pq.read_table(report.quarantine_uri, partitioning=None).to_pydict()
    assert bad["word"] == [None, "what?"]
    assert "model failed with InvalidArgumentError: Graph" in bad["reason"][1] and "what?" in bad["reason"][1]


def test_bad_values_alone_leave_an_empty_partition(score, picky, tmp_path):
    source = write(tmp_path / "rows.parquet", a=pa.array([None, None], "float64"), n=pa.array([1, 2]))
    report, found = score(picky, source=source, on_bad_row="quarantine")
    assert (report.rows_in, report.rows, report.rows_quarantined, len(found)) == (2, 0, 2, 0)
    assert list(found.columns) == ["a", "n", "p"]


def test_a_job_that_dies_between_its_two_swaps_is_repaired_by_the_retry(score, picky, tmp_path, monkeypatch):
    """The quarantine is replaced first: rows that are in no new scores are found there."""
    first, before = score(picky, source=bad_rows(tmp_path / "rows.parquet"), on_bad_row="quarantine")
    repaired = bad_rows(tmp_path / "rows.parquet", n22=2)
    commit = swap.Replacement.commit

    def die(replacement, **told):
        if replacement.target == first.output_uri:
            raise KeyboardInterrupt  # as a kill: nothing is swept that an Exception would sweep
        commit(replacement, **told)

    with monkeypatch.context() as patched:
        patched.setattr(swap.Replacement, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            score(picky, source=repaired, on_bad_row="quarantine")
    assert pq.read_table(first.output_uri, partitioning=None).to_pandas().equals(before)
    assert sorted(pq.read_table(first.quarantine_uri, partitioning=None)["id"].to_pylist()) == [11, 33]
    report, found = score(picky, source=repaired, on_bad_row="quarantine")
    assert (report.rows_in, report.rows, report.rows_quarantined) == (50, 48, 2)
    assert set(range(50)) - set(found["id"]) == {11, 33}
    assert sorted(pq.read_table(first.quarantine_uri, partitioning=None)["id"].to_pylist()) == [11, 33]
    assert os.listdir(tmp_path / "scores") == os.listdir(tmp_path / "scores_quarantine") == ["ds=2013-01-01"]


def test_both_partitions_are_replaced_where_folders_cannot_be_exchanged(score, picky, tmp_path, monkeypatch):
    """As on NFS, HDFS and object stores."""
    monkeypatch.setattr(swap, "exchange", lambda *_: False)
    score(picky, source=bad_rows(tmp_path / "rows.parquet"), on_bad_row="quarantine")
    repaired = bad_rows(tmp_path / "rows.parquet", n22=2)
    report, _ = score(picky, source=repaired, on_bad_row="quarantine")
    assert count_rows(report.output_uri) == report.rows == 48
    assert count_rows(report.quarantine_uri) == report.rows_quarantined == 2
    assert os.listdir(tmp_path / "scores") == os.listdir(tmp_path / "scores_quarantine") == ["ds=2013-01-01"]


def test_files_of_tries_that_spark_did_not_accept_are_no_rows(score, picky, tmp_path, monkeypatch):
    accept, folders = TaskFiles.accept, []

    def accept_beside_another(files, names, staged):
        folder = pathlib.Path(files.folder)
        (folder / "part-of-a-lost-try.parquet").write_bytes(next(folder.iterdir()).read_bytes())
        folders.append(folder)
        return accept(files, names, staged)

    monkeypatch.setattr(TaskFiles, "accept", accept_beside_another)
    report, found = score(picky, source=bad_rows(tmp_path / "rows.parquet"), on_bad_row="quarantine")
    assert (report.rows, len(found), report.rows_quarantined) == (47, 47, 3)
    assert len(folders) == 2 and not any(folder.exists() for folder in folders)
    assert pq.read_table(report.quarantine_uri, partitioning=None).num_rows == 3


def test_quarantined_rows_that_the_driver_does_not_find_are_no_reason_to_replace_anything(
    score, picky, tmp_path, monkeypatch
):
    accept = TaskFiles.accept
    monkeypatch.setattr(
        TaskFiles,
        "accept",
        lambda files, *given: accept(files, *given) - (1 if files.purpose == "quarantine" else 0),
    )
    with pytest.raises(RowsLostError, match=r"wrote 3 rows for '.*_quarantine/ds=.*', the driver finds 2"):
        score(picky, source=bad_rows(tmp_path / "rows.parquet"), on_bad_row="quarantine")
    assert not list(tmp_path.glob("scores*/ds=*"))


@pytest.mark.parametrize("on_bad_row", ["fail", "drop"])
def test_rows_that_do_not_add_up_replace_nothing(score, picky, tmp_path, monkeypatch, on_bad_row):
    source = write(tmp_path / "rows.parquet", a=[1.0, 2.0], n=[1, 1])
    plan = application.score
    monkeypatch.setattr(
        application,
        "score",
        lambda *given: dataclasses.replace(scoring := plan(*given), rows=scoring.rows + 1),
    )
    with pytest.raises(RowCountError, match="of 3 rows that were read for .*, 2 were written, 0 dropped and"):
        score(picky, source=source, on_bad_row=on_bad_row)
    assert not list(tmp_path.glob("scores*/ds=*"))


def test_a_column_that_is_called_as_the_reason_is_is_refused_before_any_row_is_read(score, picky, tmp_path):
    source = write(tmp_path / "rows.parquet", a=[1.0], n=[1], reason=["because"])
    with pytest.raises(ColumnCollisionError, match="'reason' is already a column of the source"):
        score(picky, source=source, on_bad_row="quarantine")
    report, _ = score(picky, source=source, on_bad_row="quarantine", keep_columns=[])
    assert report.rows == 1


def test_a_quarantine_that_cannot_be_written_is_found_before_any_row_is_read(score, picky):
    with pytest.raises(UnwritableUriError, match="quarantine '/proc/bad/ds=2013-01-01' cannot be written"):
        score(picky, on_bad_row="quarantine", quarantine=Sink.parquet("/proc/bad"))


# --- what goes wrong -------------------------------------------------------------------------------------


def test_a_uri_without_model(score, tmp_path):
    with pytest.raises(NotAModelError, match="is not a model: it holds no manifest.json"):
        score(str(tmp_path / "nothing"))


def test_a_missing_feature_names_the_columns_found(score, linear, tmp_path):
    with pytest.raises(MissingColumnError, match="feature 'b' not found; the columns are 'a', 'c'"):
        score(linear, source=write(tmp_path / "x.parquet", a=[1.0], c=[1.0]))


@pytest.mark.parametrize(
    ("column", "found"), [(["x"], "string"), ([datetime.date(2013, 1, 1)], "date"), ([[1.0]], "array")]
)
def test_a_feature_of_another_type(score, linear, tmp_path, column, found):
    with pytest.raises(ColumnTypeError, match=f"column 'a': expected .*, found {found}"):
        score(linear, source=write(tmp_path / "x.parquet", a=column, b=[1.0]))


def test_an_output_that_collides_with_a_kept_column(score, linear, tmp_path):
    source = write(tmp_path / "x.parquet", a=[1.0], b=[1.0], prediction=[0.0])
    with pytest.raises(
        ColumnCollisionError, match="output column 'prediction' is already a column of the source"
    ):
        score(linear, source=source)
    _, found = score(linear, source=source, output_columns={"prediction": "p"})
    assert found["p"].tolist() == [11.0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"keep_columns": ["id", "nose"]},
            MissingColumnError,
            "kept column 'nose' not found; the columns are 'id'",
        ),
        (
            {"output_columns": {"q": "p"}},
            InvalidJobError,
            "output_columns names 'q', but the model's outputs are 'prediction'",
        ),
        ({"source": Source.parquet("/no/such/path")}, SourceError, "parquet '/no/such/path' cannot be read"),
        (
            {"source": Source.sql("selec 1", t=Source.csv(__file__))},
            SourceError,
            "sql 'selec 1' cannot be read",
        ),
        ({"sink": Sink.parquet("/proc/scores")}, UnwritableUriError, "sink '/proc/scores' cannot be written"),
        ({"prepare": "json:nothing"}, EntrypointError, "module 'json' has no 'nothing'"),
        ({"predictor": "json:nothing"}, EntrypointError, "module 'json' has no 'nothing'"),
    ],
)
def test_bad_input_is_found_before_any_row_is_read(score, linear, changes, error, message):
    with pytest.raises(error, match=message):
        score(linear, **changes)


def test_rows_of_another_partition_are_refused(score, linear, tmp_path):
    source = write(tmp_path / "x.parquet", a=[1.0], b=[1.0], ds=["2013-01-05"])
    with pytest.raises(
        PartitionValueError, match="partition is '2013-01-01', the source has rows of '2013-01-05'"
    ):
        score(linear, source=source)


def test_the_partitions_own_column_is_left_to_the_folders_name(score, linear, tmp_path):
    source = write(tmp_path / "x.parquet", a=[1.0], b=[1.0], ds=["2013-01-01"])
    _, found = score(linear, source=source)
    assert list(found.columns) == ["a", "b", "prediction"]


def test_the_partitions_own_column_is_known_whatever_its_capital_letters(score, linear, tmp_path):
    source = write(tmp_path / "x.parquet", a=[1.0], b=[1.0], DS=["2013-01-01"])
    _, found = score(linear, source=source)
    assert list(found.columns) == ["a", "b", "prediction"]
    other = write(tmp_path / "y.parquet", a=[1.0], b=[1.0], DS=["2013-01-02"])
    with pytest.raises(PartitionValueError, match="'DS': the sink's partition is '2013-01-01'"):
        score(linear, source=other)


def refused(layer, tmp_path):
    """What is said of a model with this layer; nothing is published."""
    import keras

    with pytest.raises(UnloadableModelError) as caught:
        publish(keras.Sequential([keras.Input((1,)), layer]), str(tmp_path / "refused"), matrix_layout("a"))
    assert not (tmp_path / "refused").exists()
    assert not caught.value.retryable
    return str(caught.value)


def test_a_model_with_a_lambda_is_not_published(tmp_path):
    import keras
    from keras.src.saving.serialization_lib import SafeModeScope

    with SafeModeScope(False):  # as enable_unsafe_deserialization() in main does, and in no scorer
        message = refused(keras.layers.Lambda(lambda x: 2 * x), tmp_path)
    assert "it holds a Python lambda, which Keras does not load in safe mode. Put custom" in message


def test_a_layer_of_the_dag_file_is_not_published(tmp_path, monkeypatch):
    """Its module is there in the rank's process, where it was pickled by value, and nowhere else."""
    import keras

    @keras.saving.register_keras_serializable("dag")
    class Twice(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    Twice.__module__ = "a_dag_file"
    assert "needs the module 'a_dag_file'" in refused(Twice(), tmp_path)
    Twice.__module__ = "__main__"
    assert "dag>Twice was defined in the script itself" in refused(Twice(), tmp_path)


def test_a_model_that_predicts_otherwise_when_it_is_loaded_again_is_not_published(linear):
    folder = pathlib.Path(linear)
    manifest = directory.read_manifest(linear)
    rehearsal.rehearse_keras(folder, manifest, dense([[1.0], [10.0]]))
    with pytest.raises(
        UnloadableModelError, match="it predicts another 'prediction' for the same row, .9.1."
    ):
        rehearsal.rehearse_keras(folder, manifest, dense([[1.0], [20.0]]))


def test_a_model_whose_predictions_cannot_be_repeated_is_published(tmp_path, capsys):
    import keras

    words = keras.layers.StringLookup(vocabulary=["a"], num_oov_indices=0, output_mode="one_hot")
    model = keras.Sequential([keras.Input((1,), name="word", dtype="string"), words])
    publish(model, str(tmp_path / "words"), FeatureLayout("columns", (ColumnSpec("word", "string"),)))
    assert "the model predicts nothing for a made-up row, so that is not compared" in capsys.readouterr().out


@pytest.fixture
def layers_module(tmp_path, monkeypatch):
    """A module of the project's that registers layers."""
    (tmp_path / "project_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('project')\n"
        "class Scale(keras.layers.Layer):\n"
        "    def __init__(self, by, **options):\n"
        "        super().__init__(**options)\n"
        "        self.by = by\n"
        "    def call(self, inputs):\n"
        "        return inputs * self.by\n"
        "    def get_config(self):\n"
        "        return {**super().get_config(), 'by': self.by}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import project_layers

    yield project_layers
    del sys.modules["project_layers"]


def test_a_layer_of_the_projects_is_imported_before_the_model_is_loaded(
    score, tmp_path, layers_module, spark, lake
):
    import keras

    model = keras.Sequential([keras.Input((1,)), layers_module.Scale(3.0)])
    uri = publish(model, str(tmp_path / "scaled"), matrix_layout("a"))
    assert directory.read_manifest(uri).modules == ("project_layers",)
    spark.sparkContext.addPyFile(str(tmp_path / "project_layers.py"))
    report, found = score(uri, keep_columns=["a"])
    assert report.model_version == directory.read_manifest(uri).version
    assert list(report.columns) == ["a", "prediction"]
    assert report.columns["prediction"] == "float"
    assert np.allclose(found["prediction"], 3 * found["a"])


def test_a_model_that_is_published_while_it_scores_scores_no_row(score, linear, lake, tmp_path, monkeypatch):
    """The driver has checked the model; before the workers load it, the URI gets another one."""
    uri = publish(dense([[1.0], [10.0]]), str(tmp_path / "nightly"), matrix_layout("a", "b"))
    plan = planning.plan_columns

    def publish_then_plan(*given):
        publish(dense([[2.0], [20.0]]), uri, matrix_layout("a", "b"))
        return plan(*given)

    monkeypatch.setattr(planning, "plan_columns", publish_then_plan)
    with pytest.raises(
        ModelReplacedError, match="changed while it was in use: version .* run again"
    ) as caught:
        score(uri)
    assert caught.value.retryable
    assert not (tmp_path / "scores").exists() or os.listdir(tmp_path / "scores") == []


def test_an_alias_names_the_model_and_a_retry_scores_with_the_one_of_the_first_try(
    score, linear, lake, tmp_path, monkeypatch
):
    alias = str(tmp_path / "production.alias")
    night = {"run": Run(dag_id="d", task_id="t", run_id="r")}
    with pytest.raises(NotAnAliasError, match="there is no such file"):
        score(alias, **night)
    aliases.set_alias(alias, linear)

    def fails(*given, **named):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(application.sinks, "place", fails)
        with pytest.raises(OSError, match="the disk is full"):
            score(alias, **night)
    other = publish(dense([[3.0], [0.0]]), str(tmp_path / "other"), matrix_layout("a", "b"))
    aliases.set_alias(alias, other)

    report, found = score(alias, **night)
    assert np.allclose(found["prediction"], found["a"] + 10 * found["b"])
    version = directory.read_manifest(linear).version
    assert (report.model_uri, report.model_version, report.model_alias) == (linear, version, alias)
    [file] = pathlib.Path(report.output_uri).glob("*.parquet")
    label = json.loads(pq.read_schema(file).metadata[b"org.apache.spark.sql.parquet.row.metadata"])
    made = {field["name"]: field["metadata"] for field in label["fields"]}["prediction"]
    assert (made[planning.LABEL]["model_uri"], made[planning.LABEL]["model_version"]) == (
        linear,
        version,
    )

    cleared = dataclasses.replace(night["run"], clear_number=1)
    report, found = score(alias, run=cleared)
    assert (report.model_uri, report.model_alias) == (other, alias)
    assert np.allclose(found["prediction"], 3 * found["a"])
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["ds=2013-01-01"]


def test_a_retry_whose_model_is_gone_fails_and_leaves_the_partition(
    score, linear, lake, tmp_path, monkeypatch
):
    alias, night = str(tmp_path / "production.alias"), {"run": Run(dag_id="d", task_id="t", run_id="r")}
    aliases.set_alias(alias, linear)
    _, before = score(alias)
    model = publish(dense([[2.0], [20.0]]), str(tmp_path / "nightly"), matrix_layout("a", "b"))
    aliases.set_alias(alias, model)
    with monkeypatch.context() as patch:
        patch.setattr(planning, "plan_columns", lambda *given: publish_another(model))
        with pytest.raises(OSError, match="the disk is full"):
            score(alias, **night)
    aliases.set_alias(alias, linear)
    with pytest.raises(AliasedModelError, match=r"is there now: set it .* a cleared task takes") as caught:
        score(alias, **night)
    assert not caught.value.retryable
    after = pq.read_table(tmp_path / "scores" / "ds=2013-01-01", partitioning=None).to_pandas()
    assert after.equals(before)


def publish_another(uri):
    publish(dense([[4.0], [40.0]]), uri, matrix_layout("a", "b"))
    raise OSError("the disk is full")


def test_a_model_that_does_not_fit_the_dataset_is_not_published(tmp_path):
    from airflow_hydrogen.contract.errors import ModelSignatureError

    with pytest.raises(
        ModelSignatureError, match=r"has inputs .*, but the dataset gave one matrix of 3 columns"
    ):
        publish(dense([[1.0], [1.0]]), str(tmp_path / "m"), matrix_layout("a", "b", "c"))
    assert not pathlib.Path(tmp_path / "m").exists()


# --- values in conditions and queries ----------------------------------------------------------------

HOSTILE = "x' or reflect('java.lang.System', 'setProperty', 'hydrogen.owned', 'yes') is not null or 'a' = '"


@pytest.fixture
def days(tmp_path):
    """Two days of rows, as Hive partitions them."""
    for day in ("2013-01-01", "2013-01-02"):
        (tmp_path / "days" / f"ds={day}").mkdir(parents=True)
        write(tmp_path / "days" / f"ds={day}" / "part.parquet", a=[1.0, 2.0], carrier=["AA", "it's"])
    return str(tmp_path / "days")


def test_bound_values_are_never_read_as_sql(spark, days):
    java = spark.sparkContext._jvm.java.lang.System
    by_template = Source.parquet(days, where=f"carrier = '{HOSTILE}'")
    assert sources.read(spark, by_template).count() == 4  # what a template in the text does
    assert java.clearProperty("hydrogen.owned") == "yes"
    for source in (
        Source.parquet(days, where="carrier = :carrier -- of the form", where_args={"carrier": HOSTILE}),
        Source.sql(
            "select * from d where carrier = :carrier",
            query_args={"carrier": HOSTILE},
            d=Source.parquet(days),
        ),
    ):
        assert sources.read(spark, source).count() == 0
    assert java.getProperty("hydrogen.owned") is None
    quoted = Source.parquet(days, where="carrier = :carrier", where_args={"carrier": "it's"})
    assert sources.read(spark, quoted).count() == 2


def test_bound_values_prune_partitions_and_are_pushed_down(spark, days):
    def scan(source):
        frame = sources.read(spark, source)
        assert frame.count() == 1
        plan = frame._jdf.queryExecution().executedPlan().toString()
        filters = [
            plan.split(f"{part}: [")[1].split("]")[0] for part in ("PartitionFilters", "PushedFilters")
        ]
        return re.sub(r"#\d+", "", " ".join(filters))

    bound = Source.parquet(
        days,
        where="ds between :first and :last and a > :a",
        where_args={"first": "2013-01-02", "last": "2014-01-01", "a": 1},
    )
    written = Source.parquet(days, where="ds between '2013-01-02' and '2014-01-01' and a > 1")
    assert scan(bound) == scan(written)
    assert "ds >= 2013-01-02" in scan(bound) and "GreaterThan(a,1.0)" in scan(bound)


@pytest.mark.parametrize("values", [{}, {"first": "2013-01-01"}])
def test_names_without_a_value_are_a_source_error(spark, days, values):
    with pytest.raises(SourceError, match=r"UNBOUND_SQL_PARAMETER.* `?last`?"):
        sources.read(spark, Source.parquet(days, where="ds < :last", where_args=values))
    query = Source.sql("select * from d where ds < :last", query_args=values, d=Source.parquet(days))
    with pytest.raises(SourceError, match=r"UNBOUND_SQL_PARAMETER.* `?last`?"):
        sources.read(spark, query)
