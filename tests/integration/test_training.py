"""The training application: prepare on Spark, train as a gang, publish."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import time
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.errors import PySparkException

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.contract.errors import (
    EmptyDatasetError,
    EntrypointError,
    NotEnoughSlotsError,
    RankFailedError,
    SchemaMismatchError,
    SourceError,
    UnwritableUriError,
)
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.jobs import Entrypoint, Run, Source, TrainJob
from airflow_hydrogen.contract.pickling import dumps_by_value
from airflow_hydrogen.runtime.data import sources, staging
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.files import list_dataset
from airflow_hydrogen.runtime.data.recipes import changes, recipe
from airflow_hydrogen.runtime.models.directory import open_model
from airflow_hydrogen.runtime.storage.checkpoints import CheckpointStore
from airflow_hydrogen.runtime.storage.partition_files import FileList, list_name
from airflow_hydrogen.runtime.training import place_of, run_training

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("spark")]


@pytest.fixture
def lake(tmp_path):
    """1,000 rows of y = 2a - b in two files."""
    numbers = np.random.default_rng(0).normal(size=(1000, 2)).astype("float32")
    table = pa.table({"a": numbers[:, 0], "b": numbers[:, 1], "y": 2 * numbers[:, 0] - numbers[:, 1]})
    folder = tmp_path / "lake"
    folder.mkdir()
    for index in range(2):
        pq.write_table(table.slice(500 * index, 500), folder / f"{index}.parquet", row_group_size=100)
    return str(folder)


@pytest.fixture
def make_job(tmp_path, lake):
    def make(main, **changes):
        fields = {
            "entrypoint": main
            if isinstance(main, Entrypoint)
            else Entrypoint.pickled(dumps_by_value(main), main.__qualname__),
            "np": 2,
            "datasets": {"train": Source.parquet(lake)},
            "model_uri": str(tmp_path / "model"),
            "report_uri": str(tmp_path / "report.json"),
            "run": Run(dag_id="d", task_id="t", run_id="r"),
        }
        return TrainJob(**{**fields, **changes})

    return make


def count_rows():
    """No framework: how many rows and steps this rank sees."""
    shard = hydrogen.get_dataset_shard("train")
    rows = [batch.num_rows for batch in shard.to_batches(64)]
    hydrogen.report({"epoch": 0, "rows": sum(rows)})
    return {"rows": sum(rows), "steps": len(rows), "columns": shard.schema.names}


def fit(epochs=3):
    import keras

    keras.utils.set_random_seed(7)
    rows = hydrogen.get_dataset_shard("train").to_tf(50, label="y", features=["b", "a"])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.1)), "mse")
    model.fit(rows, epochs=epochs, callbacks=hydrogen.keras.callbacks(), verbose=0)
    return model


def test_a_keras_model_is_published_with_all_that_its_manifest_says(make_job, lake, tmp_path):
    report = run_training(make_job(fit, exports=("onnx",)))
    assert report.model_uri == str(tmp_path / "model")
    assert (report.epochs, report.np, report.rows) == (3, 2, 1000)
    assert report.metrics["loss"] < 2
    assert report.rows_per_second > 0
    assert set(report.seconds) == {"prepare", "train", "publish", "total"}

    manifest, folder = open_model(report.model_uri)
    assert sorted(os.listdir(folder)) == [
        *("events", "history.jsonl", "manifest.json", "model.keras", "model.onnx")
    ]
    [twin] = manifest.twins
    assert (twin.engine, twin.entry, twin.rows) == ("onnx", "model.onnx", 1000)
    assert twin.difference < twin.tolerance
    [given] = manifest.signature.inputs
    assert ([column.name for column in given.columns], given.dtype, given.shape) == (
        ["b", "a"],
        "float32",
        (2,),
    )
    assert [(spec.name, spec.shape) for spec in manifest.signature.outputs] == [("prediction", (1,))]
    assert manifest.metrics == report.metrics
    assert manifest.run["run_id"] == "r"
    assert manifest.data["train"]["rows"] == 1000
    assert manifest.entrypoint == "fit"
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == [0, 1, 2]
    assert {"loss", "seconds", "rows_per_second"} <= set(history[0])
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []

    started = time.monotonic()
    again = run_training(make_job(fit, exports=("onnx",)))
    assert again.reused
    assert again.metrics == report.metrics
    assert again.model_version == report.model_version == manifest.version
    assert again.sources["train"]["source"] == report.sources["train"]["source"]
    assert time.monotonic() - started < 2


def test_a_cleared_run_trains_again_and_replaces_the_model(make_job):
    run_training(make_job(fit))
    cleared = Run(dag_id="d", task_id="t", run_id="r", clear_number=1)
    report = run_training(make_job(fit, run=cleared))
    assert not report.reused
    assert report.resumed_from_epoch is None
    assert open_model(report.model_uri)[0].run["clear_number"] == 1


def test_a_result_that_is_no_model_is_reported_and_leaves_nothing(make_job, tmp_path):
    report = run_training(make_job(count_rows))
    assert report.model_uri is None
    assert report.result == {"rows": 500, "steps": 8, "columns": ["a", "b", "y"]}
    assert report.metrics == {"epoch": 0, "rows": 500}
    assert not (tmp_path / "model" / "data").exists()


def test_parquet_that_fits_is_read_in_place_and_the_rest_is_prepared(make_job, lake, capsys):
    run_training(make_job(count_rows))
    assert "dataset 'train': 1,000 rows, read in place" in capsys.readouterr().out
    filtered = Source.parquet(lake, where="a > 0")
    report = run_training(make_job(count_rows, datasets={"train": filtered}))
    assert "rows, prepared" in capsys.readouterr().out
    kept = pq.read_table(lake, columns=["a"]).to_pandas().query("a > 0")
    assert report.rows == len(kept)


@pytest.mark.parametrize("kind", ["csv", "json", "sql"])
def test_other_sources(make_job, lake, tmp_path, kind):
    frame = pq.read_table(lake).to_pandas().head(100)
    if kind == "csv":
        frame.to_csv(tmp_path / "rows.csv", index=False)
        source = Source.csv(str(tmp_path / "rows.csv"))
    elif kind == "json":
        frame.to_json(tmp_path / "rows.json", orient="records", lines=True)
        source = Source.json(str(tmp_path / "rows.json"))
    else:
        source = Source.sql("select l.* from l join l r using (a) limit 100", l=Source.parquet(lake))
    report = run_training(make_job(count_rows, datasets={"train": source}))
    assert report.rows == 100
    assert sorted(report.result["columns"]) == ["a", "b", "y"]


def test_prepare_runs_on_spark(make_job, tmp_path, monkeypatch):
    (tmp_path / "my_prepare.py").write_text(
        "def double(spark, frame, name):\n    return frame.selectExpr('*', f'a * 2 as {name}')\n"
        "def wrong(spark, frame):\n    return 5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    report = run_training(make_job(count_rows, prepare="my_prepare:double", prepare_kwargs={"name": "twice"}))
    assert report.result["columns"] == ["a", "b", "y", "twice"]
    with pytest.raises(
        EntrypointError, match="'my_prepare:wrong' returned a int, prepare must return a DataFrame"
    ):
        run_training(make_job(count_rows, prepare="my_prepare:wrong"))


def test_fewer_row_groups_than_ranks_works(make_job, tmp_path):
    pq.write_table(pa.table({"a": [1.0, 2.0, 3.0]}), tmp_path / "small.parquet")
    report = run_training(
        make_job(count_rows, datasets={"train": Source.parquet(str(tmp_path / "small.parquet"))})
    )
    assert report.result["rows"] == 2


def test_np_below_zero_trains_on_the_drivers_machine(make_job):
    assert run_training(make_job(count_rows, np=-1)).result["rows"] == 1000


def test_a_script_is_trained_with_its_arguments(make_job, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import sys, pathlib\npathlib.Path(sys.argv[1]).write_text('ran')\n")
    job = make_job(Entrypoint.parse(str(script)), entrypoint_args=[str(tmp_path / "mark")], np=1)
    assert run_training(job).result is None
    assert (tmp_path / "mark").read_text() == "ran"


# --- what is read, and what is prepared again --------------------------------------------------------------

_FOLDERS = st.sampled_from(["", "sub/", "ds=1/", "ds=2/", "_x/", ".y/", "_e=1/", "_metadata_/", "sub/ds=1/"])
_NAMES = st.sampled_from(
    ["p0.parquet", "p1", "_SUCCESS", ".p.crc", "a=b.parquet", "_c=d", "_metadata", "x._COPYING_", "a b%20#c"]
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.tuples(_FOLDERS, _NAMES, st.booleans()), min_size=1, max_size=5))
def test_the_files_of_a_dataset_are_those_that_spark_lists(spark, tmp_path_factory, found):
    root = tmp_path_factory.mktemp("layout")
    for folder, name, is_empty in found:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(b"" if is_empty else b"x")
    try:
        frame = spark.read.schema("a long").parquet(str(root))
        paths = [unquote(uri).partition(f"{root}/")[2] for uri in frame.inputFiles()]
    except PySparkException:  # folders that Spark refuses to read together: it is left to Spark to say so
        assert list_dataset(str(root)).partitioned
        return
    # Spark lists empty files and summaries, and reads no rows from them.
    data = [path for path in paths if path.rpartition("/")[2] != "_metadata"]
    listing = list_dataset(str(root))
    assert [file.name for file in listing.files] == sorted(
        path for path in data if (root / path).stat().st_size
    )
    assert listing.partitioned == any("=" in path.rpartition("/")[0] for path in data)


@pytest.fixture
def stage(spark, tmp_path, lake):
    def run(source=None, **changes):
        source = source or Source.parquet(lake, where="a < 99")
        return staging.stage(spark, "train", source, str(tmp_path / "data"), **{"ranks": 1, **changes})

    return run


def test_rows_are_prepared_again_when_what_decides_them_changed(stage, lake, tmp_path, monkeypatch, capsys):
    def said(*given, **named):
        stage(*given, **named)
        return capsys.readouterr().out.strip()

    module = tmp_path / "recipe_prepare.py"
    module.write_text("import recipe_helper\ndef f(spark, frame, n=1):\n    return frame\n")
    helper = tmp_path / "recipe_helper.py"
    helper.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    prepare = importlib.import_module("recipe_prepare").f
    again = "dataset 'train': prepared again: "
    assert said() == ""
    assert said() == "dataset 'train': using the 1,000 rows that an earlier try prepared"
    assert said(Source.parquet(lake, where="a < 98")) == f"{again}the source's where changed"
    assert f"{again}prepare changed; prepare_kwargs changed; prepare's code in recipe_helper changed" in said(
        Source.parquet(lake, where="a < 98"), prepare=prepare
    )
    helper.write_text("x = 1\n")
    changed = said(Source.parquet(lake, where="a < 98"), prepare=prepare)
    assert changed == f"{again}prepare's code in recipe_helper changed"
    changed = said(Source.parquet(lake, where="a < 98"), prepare=prepare, prepare_kwargs={"n": 2})
    assert changed == f"{again}prepare_kwargs changed"

    query = "select * from l where a < (select max(a) from m)"
    tables = {"l": Source.parquet(lake), "m": Source.parquet(f"{lake}/0.parquet")}
    assert "the source's query changed" in said(Source.sql(query, **tables))
    assert "using the" in said(Source.sql(query, **tables))
    os.utime(f"{lake}/0.parquet", ns=(1, 1))
    assert said(Source.sql(query, **tables)) == f"{again}the source's files changed"

    (data,) = (tmp_path / "data").iterdir()
    assert "a <" not in (data / "_STAGED.json").read_text()
    [first, *_] = [file.name for file in list_dataset(str(data)).files]
    (data / first).unlink()
    assert "rows were written and" in said(Source.sql(query, **tables))


def test_what_a_try_that_was_killed_has_written_is_no_part_of_the_next_ones_rows(stage, tmp_path):
    killed = tmp_path / "data" / "killed"
    killed.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1.0], "b": [1.0], "y": [1.0]}), killed / "part-0.parquet")
    assert stage().rows == 1000
    assert not killed.exists()
    assert stage().rows == 1000, "and what is whole is used again"
    (whole,) = (tmp_path / "data").iterdir()
    (whole / "_STAGED.json").write_text("{")
    assert stage().rows == 1000
    assert not whole.exists(), "what something has damaged is prepared again"


@pytest.mark.parametrize(
    "of",
    [
        lambda lake: Source.parquet(lake, where="a < :most", where_args={"most": 99}),
        lambda lake: Source.sql("select * from l", l=Source.parquet(lake)),
    ],
)
def test_prepare_finds_the_views_that_it_makes(spark, lake, of):
    def prepare(spark, frame):
        frame.createOrReplaceTempView("rows_to_prepare")
        return spark.sql("select * from rows_to_prepare")

    assert sources.prepared(sources.read(spark, of(lake)), prepare, {}).count() == 1000


def test_rows_that_come_from_no_files_are_never_used_again(spark, lake):
    source = Source.parquet(lake)
    frame = sources.read(spark, source)
    mixed = frame.union(spark.sql("select * from values (1, 2, 3), (4, 5, 6)"))
    assert changes({}, recipe(mixed, source, None, {}, 1))[0] == "the source's files cannot be known"
    known = recipe(frame.join(frame.groupBy("a").count(), "a"), source, None, {}, 1)
    assert changes(known, known) == []


def test_sorted_rows_are_shuffled_when_they_are_staged(spark, stage, tmp_path):
    pq.write_table(pa.table({"y": np.repeat([0.0, 1.0], 20_000)}), tmp_path / "sorted.parquet")
    staged = stage(Source.parquet(str(tmp_path / "sorted.parquet"), where="y >= 0"))
    assert staged.rows == 40_000
    shard = DatasetShard(staged.files, shuffle=False)
    means = [np.mean(batch.column("y").to_numpy()) for batch in shard.to_batches(100)]
    assert np.std(means) <= 1.3 * 0.5 / np.sqrt(100)


def test_a_file_that_lacks_a_column_is_read_as_spark_reads_it(stage, lake, capsys):
    one = pa.array([1.0], pa.float32())
    pq.write_table(pa.table({"a": one, "b": one}), f"{lake}/2.parquet")
    staged = stage(Source.parquet(lake))
    assert not staged.in_place
    assert staged.rows == 1001
    assert "column 'y' is not in '2.parquet', and float in the first file" in capsys.readouterr().out


def test_a_type_that_spark_cannot_read_is_named_with_its_file(stage, lake):
    pq.write_table(pa.table({"a": ["x"], "b": [1.0], "y": [1.0]}), f"{lake}/2.parquet")
    with pytest.raises(SchemaMismatchError, match=r"column 'a' is string in '2\.parquet', and float in the"):
        stage(Source.parquet(lake))


def test_where_a_list_of_ours_lies_spark_reads_its_files(stage, spark, lake, tmp_path):
    table = tmp_path / "table"
    for day in ("1", "2"):
        (table / f"ds={day}").mkdir(parents=True)
        for name in ("old.parquet", "new.parquet"):
            shutil.copy(f"{lake}/0.parquet", table / f"ds={day}" / name)
    size = (table / "ds=2" / "new.parquet").stat().st_size
    chosen = FileList((("new.parquet", size),))
    (table / "ds=2" / list_name(1, "ab")).write_bytes(chosen.dumps())
    frame = sources.read(spark, Source.parquet(str(table)))
    assert {row.ds: row["count"] for row in frame.groupBy("ds").count().collect()} == {1: 1000, 2: 500}
    assert stage(Source.parquet(str(table / "ds=2"))).rows == 500


def test_options_and_patterns_are_left_to_spark(stage, lake):
    shutil.copytree(lake, f"{lake}/sub")
    deep = Source(kind="parquet", uri=lake, options={"recursiveFileLookup": "true"})
    assert stage(deep).rows == 2000
    assert stage(Source.parquet(f"{lake}/[0].parquet")).rows == 500


# --- what goes wrong -------------------------------------------------------------------------------------


def never_called():
    raise AssertionError("the gang must not start")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"np": 3},
            NotEnoughSlotsError,
            "needs np=3 processes at the same time, but the cluster has 2 task slots",
        ),
        (
            {"datasets": {"train": Source.parquet("/no/such/path")}},
            SourceError,
            "parquet '/no/such/path' cannot be read",
        ),
        ({"prepare": "no_such_module:f"}, EntrypointError, "'no_such_module:f' does not import"),
        ({"entrypoint": Entrypoint.parse("json:nothing")}, EntrypointError, "module 'json' has no 'nothing'"),
        ({"entrypoint": Entrypoint.parse("json:__name__")}, EntrypointError, "is not callable: it is a str"),
        ({"entrypoint": Entrypoint.parse("gone.py")}, EntrypointError, "'gone.py' cannot be read"),
        ({"model_uri": "/proc/model"}, UnwritableUriError, "model_uri '/proc/model' cannot be written"),
    ],
)
def test_bad_input_fails_before_the_gang_starts(make_job, changes, error, message):
    with pytest.raises(error, match=message):
        run_training(make_job(never_called, **changes))


def test_a_callable_of_another_python_is_refused(make_job):
    pickled = Entrypoint.pickled(dumps_by_value(never_called), "main")
    other = Entrypoint(kind="callable", value=pickled.value, name="main", python="3.1")
    with pytest.raises(EntrypointError, match=r"was pickled by Python 3\.1 and cannot be read by Python 3"):
        run_training(make_job(other))


def test_no_rows_is_found_before_the_gang_starts(make_job, lake):
    with pytest.raises(EmptyDatasetError, match="dataset 'train' has no rows .*where a > 1000"):
        run_training(make_job(never_called, datasets={"train": Source.parquet(lake, where="a > 1000")}))


def test_a_column_that_is_not_there_names_those_found(make_job):
    def main():
        hydrogen.get_dataset_shard("train").to_tf(8, label="late")

    with pytest.raises(
        RankFailedError, match="label 'late' not found; the columns are 'a', 'b', 'y'"
    ) as caught:
        run_training(make_job(main))
    assert not caught.value.retryable


def test_nulls_in_a_feature_reach_the_driver_as_such(make_job, tmp_path):
    pq.write_table(pa.table({"a": [1.0, None], "y": [1.0, 2.0]}), tmp_path / "nulls.parquet")

    def main():
        list(hydrogen.get_dataset_shard("train").to_tf(8, label="y"))

    job = make_job(main, datasets={"train": Source.parquet(str(tmp_path / "nulls.parquet"))}, np=1)
    with pytest.raises(
        RankFailedError, match="NullValueError: column 'a': expected float64 without nulls"
    ) as caught:
        run_training(job)
    assert not caught.value.retryable


def test_a_dataset_that_the_job_does_not_have(make_job):
    def main():
        hydrogen.get_dataset_shard("test")

    with pytest.raises(RankFailedError, match="the job has no dataset 'test'; it has 'train'"):
        run_training(make_job(main))


def test_a_result_that_is_neither_model_nor_json(make_job):
    def main():
        return {1, 2}

    with pytest.raises(RankFailedError, match="the return value of main must be JSON"):
        run_training(make_job(main))


def fit_with_luck(flag):
    """Fails after two epochs where there is no such file."""
    import keras

    def end(epoch, logs):
        if epoch == 1 and not os.path.exists(flag):
            raise RuntimeError("no luck")

    keras.utils.set_random_seed(7)
    rows = hydrogen.get_dataset_shard("train").to_tf(50, label="y", features=["b", "a"])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.1)), "mse")
    callbacks = [*hydrogen.keras.callbacks(), keras.callbacks.LambdaCallback(on_epoch_end=end)]
    model.fit(rows, epochs=3, callbacks=callbacks, verbose=0)
    return model


def test_a_failed_training_keeps_the_older_model_and_its_retry_goes_on(make_job, tmp_path):
    run_training(make_job(fit, run=Run(dag_id="d", task_id="t", run_id="last night")))
    before = (tmp_path / "model" / "manifest.json").read_text()
    job = make_job(fit_with_luck, entrypoint_kwargs={"flag": str(tmp_path / "flag")})
    with pytest.raises(RankFailedError, match="no luck"):
        run_training(job)
    assert (tmp_path / "model" / "manifest.json").read_text() == before
    open_model(str(tmp_path / "model"))
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    (kept,) = (tmp_path / "model" / "checkpoints").iterdir()
    assert kept.name == place_of(job.run, None), "they belong to the run, whoever's model lies there"
    (tmp_path / "flag").touch()
    report = run_training(job)
    assert (report.resumed_from_epoch, report.epochs) == (2, 3)
    assert (tmp_path / "model" / "manifest.json").read_text() != before
    assert not (tmp_path / "model" / "checkpoints").exists()


# --- losses and checkpoints that go wrong --------------------------------------------------------------


def diverge():
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.SGD(1e6)), "mse")
    rows = hydrogen.get_dataset_shard("train").to_tf(50, label="y", features=["b", "a"])
    model.fit(rows, epochs=50, callbacks=hydrogen.keras.callbacks(tensorboard=False), verbose=0)
    return model


def test_a_loss_that_is_no_number_fails_at_once_and_publishes_nothing(make_job, tmp_path, capsys):
    job = make_job(diverge, np=-1, gang=GangOptions(max_restarts=3))
    with pytest.raises(RankFailedError, match=r"NonFiniteLossError: loss is (nan|inf) in epoch \d+: lower"):
        run_training(job)
    assert "giving up: main raised" in capsys.readouterr().out
    assert not (tmp_path / "model" / "manifest.json").exists()


def fit_until_the_disk_is_full(disk, on_error):
    import contextlib
    import pathlib

    import keras

    class Fill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                with (
                    open(pathlib.Path(disk, "filler"), "wb", buffering=0) as stream,
                    contextlib.suppress(OSError),
                ):
                    while True:
                        stream.write(b"x" * 4096)

    hydrogen.get_context().checkpoints_uri = f"{disk}/checkpoints"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.1)), "mse")
    rows = hydrogen.get_dataset_shard("train").to_tf(50, label="y", features=["b", "a"])
    ours = hydrogen.keras.callbacks(on_checkpoint_error=on_error, tensorboard=False)
    model.fit(rows, epochs=3, callbacks=[*ours, Fill()], verbose=0)
    return model


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 256 kB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("on_error", ["continue", "raise"])
def test_a_full_disk_at_a_checkpoint(make_job, small_disk, on_error):
    job = make_job(
        fit_until_the_disk_is_full, np=-1, entrypoint_kwargs={"disk": str(small_disk), "on_error": on_error}
    )
    if on_error == "continue":
        assert run_training(job).epochs == 3
    else:
        with pytest.raises(
            RankFailedError, match=r"CheckpointError: .* could not be written: .*No space left"
        ):
            run_training(job)
    store = CheckpointStore(f"{small_disk}/checkpoints/fit-0", job.fingerprint())
    latest = store.latest()
    assert latest is not None
    assert latest.state["epoch"] == 1, "the one before, whole"
    assert len(store.steps()) == 1
    assert not list((small_disk / "checkpoints" / "fit-0").glob(".staging-*"))
