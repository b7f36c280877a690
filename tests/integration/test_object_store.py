"""Models and checkpoints on a real object store, which goes away in the middle of a training."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    AliasedModelError,
    OwnershipLostError,
    RankFailedError,
    UriInUseError,
)
from airflow_hydrogen.contract.jobs import Entrypoint, Run, Sink, Source, TrainJob, days
from airflow_hydrogen.contract.pickling import dumps_by_value
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.hooks import report_files
from airflow_hydrogen.runtime.data import staging
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.files import count_rows
from airflow_hydrogen.runtime.models import aliases
from airflow_hydrogen.runtime.models.directory import describe_files, open_model, publish, staging_uri
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.sinks import partitioned
from airflow_hydrogen.runtime.sinks.divided_files import PARTITION, DividedFile
from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles
from airflow_hydrogen.runtime.storage import filesystems, swap
from airflow_hydrogen.runtime.storage.checkpoints import CheckpointStore
from airflow_hydrogen.runtime.storage.owners import Ownership
from airflow_hydrogen.runtime.training import run_training
from airflow_hydrogen.schemas import looks
from airflow_hydrogen.schemas.unsure import UnsureError
from tests.integration.object_store import BUCKET, ObjectStore, object_store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500), pytest.mark.usefixtures("spark")]

CHECKPOINTS = f"s3://{BUCKET}/checkpoints"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    folder = tmp_path / "objects"
    folder.mkdir()
    with object_store(folder) as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., TrainJob]:
    numbers = np.random.default_rng(0).normal(size=(400, 2)).astype("float32")
    table = pa.table({"a": numbers[:, 0], "b": numbers[:, 1], "y": 2 * numbers[:, 0] - numbers[:, 1]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=100)

    def make(main: Callable[..., object], *, np: int, model_uri: str, **arguments: object) -> TrainJob:
        return TrainJob(
            entrypoint=Entrypoint.pickled(dumps_by_value(main), main.__qualname__),
            entrypoint_kwargs=arguments,
            np=np,
            datasets={"train": Source.parquet(str(tmp_path / "rows.parquet"))},
            model_uri=model_uri,
            report_uri=str(tmp_path / "report.json"),
            run=Run(dag_id="d", task_id="t", run_id="r"),
        )

    return make


def fit(
    epochs: int = 2, on_error: str = "raise", more: Sequence[keras.callbacks.Callback] = ()
) -> keras.Model:
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.1)), "mse")
    rows = hydrogen.get_dataset_shard("train").to_tf(50, label="y", features=["b", "a"])
    ours = hydrogen.keras.callbacks(on_checkpoint_error=on_error, tensorboard=False)
    model.fit(rows, epochs=epochs, callbacks=[*ours, *more], verbose=0)
    return model


def test_a_model_is_published_to_the_store_and_replaced(
    store: ObjectStore, make_job: Callable[..., TrainJob]
) -> None:
    uri = f"s3://{BUCKET}/models/line"
    job = make_job(fit, np=-2, model_uri=uri)
    report = run_training(job)
    first, folder = open_model(uri)
    assert (report.model_uri, report.model_version) == (uri, first.version)
    assert (folder / first.entry).exists()
    assert run_training(job).reused, "the same try again"
    assert open_model(uri)[0] == first
    cleared = dataclasses.replace(job, run=dataclasses.replace(job.run, clear_number=1))
    assert not run_training(cleared).reused
    assert open_model(uri)[0].run["clear_number"] == 1
    cleared_entry = open_model(uri)[0].entry
    left = {name.rpartition("/")[0] for name, _size in filesystems.list_files(f"s3://{BUCKET}")}
    folder_of_files = cleared_entry.rpartition("/")[0]
    assert left == {"models/line", f"models/line/{folder_of_files}"}, "nothing staged, no checkpoints"


def test_an_alias_of_the_store_names_a_model_of_the_store(store: ObjectStore, tmp_path: Path) -> None:
    uri, alias = f"s3://{BUCKET}/models/m1", f"s3a://{BUCKET}/models/production.alias"
    for number in range(2):
        staged = tmp_path / f"m{number}"
        staged.mkdir()
        (staged / "model.bin").write_bytes(b"weights %d" % number)
        files = describe_files(staged, ["model.bin"])
        manifest = Manifest(framework="mine", entry="model.bin", signature=Signature((), ()), files=files)
        staging = staging_uri(uri)
        filesystems.upload(staged, staging)
        placed = publish(staging, uri, manifest, keep_checkpoints=False)
        if number:
            with pytest.raises(AliasedModelError, match=f"version {placed.version[:12]} is there now"):
                aliases.resolve(alias).open()
        said = aliases.set_alias(alias, uri)
        assert (said.model_uri, said.model_version) == (uri, placed.version)
        assert aliases.resolve(alias).open() == placed
    assert next(aliases.history(alias)).model_version == placed.version
    assert len(list(aliases.history(alias))) == 2


def fit_while_the_store_goes(folder: str, checkpoints: str, on_error: str) -> keras.Model:
    """The second epoch begins once the store is gone."""
    import pathlib
    import time

    import keras

    class Wait(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            if epoch == 1:
                pathlib.Path(folder, "second").touch()
                while not pathlib.Path(folder, "gone").exists():
                    time.sleep(0.05)

    hydrogen.get_context().checkpoints_uri = checkpoints
    return fit(epochs=3, on_error=on_error, more=[Wait()])


@pytest.mark.parametrize("on_error", ["continue", "raise"])
def test_a_store_that_goes_away_at_a_checkpoint(
    store: ObjectStore,
    make_job: Callable[..., TrainJob],
    tmp_path: Path,
    eventually: Callable[..., None],
    on_error: str,
) -> None:
    job = make_job(
        fit_while_the_store_goes,
        np=-1,
        model_uri=str(tmp_path / "model"),
        folder=str(tmp_path),
        checkpoints=CHECKPOINTS,
        on_error=on_error,
    )

    def go() -> None:
        eventually((tmp_path / "second").exists, "the second epoch", 240)
        store.kill()
        (tmp_path / "gone").touch()

    going = threading.Thread(target=go)
    going.start()
    if on_error == "continue":
        assert run_training(job).epochs == 3
    else:
        with pytest.raises(RankFailedError, match=r"CheckpointError: checkpoint .* could not be written"):
            run_training(job)
    going.join()
    store.start()
    checkpoints = CheckpointStore(f"{CHECKPOINTS}/fit-0", job.fingerprint())
    assert len(checkpoints.steps()) == 1
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.state["epoch"] == 1, "the one before, whole"


HOSTILE = ["T00%3A00", "T00:00", "a b", "a#b", "a?b", "a+b", "a=b", "ü€", "100%", "[a]", "a\"b'", "%2F"]


def test_columns_of_a_folder_of_the_store_are_read_in_place(
    store: ObjectStore, tmp_path: Path, spark: SparkSession
) -> None:
    filesystem, path = filesystems.resolve(f"s3://{BUCKET}/lake/x.parquet")
    pq.write_table(pa.table({"a": [1, 2], "b": [3.0, 4.0], "c": ["x", "y"]}), path, filesystem=filesystem)
    source = Source.parquet(f"s3://{BUCKET}/lake", columns=["b", "a"])
    staged = staging.stage(spark, "train", source, str(tmp_path / "data"), ranks=1)
    assert staged.in_place
    [batch] = DatasetShard(staged.files, shuffle=False).to_batches(4)
    assert batch.to_pydict() == {"b": [3.0, 4.0], "a": [1, 2]}


def test_a_key_is_the_same_for_the_store_for_us_and_for_airflow(store: ObjectStore, tmp_path: Path) -> None:
    for name in HOSTILE:
        uri = f"s3a://{BUCKET}/{name}/report.json"
        report_files.write(uri, name)
        assert filesystems.read_bytes(uri).decode() == name
        assert (tmp_path / "objects" / BUCKET / name / "report.json").read_text() == name
        filesystems.write_bytes(uri, b"{}")
        report_files.delete(uri)
        assert not filesystems.exists(uri)


def test_one_application_owns_a_uri_of_the_store(store: ObjectStore) -> None:
    uri, first = f"s3://{BUCKET}/models/m", {"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": 0}
    with Ownership(uri, "model_uri", first, on_lost=print) as owner:
        with (
            pytest.raises(UriInUseError, match=r"task d.t\[0\] of run r"),
            Ownership(uri, "model_uri", {**first, "map_index": 1}, on_lost=print),
        ):
            pass
        owner.require()
        with Ownership(uri, "model_uri", first, on_lost=print), pytest.raises(OwnershipLostError):
            owner.require()
    assert filesystems.list_files(f"s3://{BUCKET}/models") == []


def test_bad_rows_of_a_task_are_brought_to_their_partition(store: ObjectStore) -> None:
    table = f"s3://{BUCKET}/scored_quarantine"
    target = uris.partition_uri(table, {"ds": "1"})
    schema = pa.schema([("id", pa.int64()), ("reason", pa.string())])
    for ids in ([1, 2], [3], []):
        place = TaskFiles("quarantine", swap.staging_uri(target, swap.new_token()), schema)
        with swap.replacing(target) as kept:
            with TaskFile(place) as file:
                if ids:
                    file.add(pa.record_batch({"id": ids, "reason": ["bad"] * len(ids)}))
            assert place.accept([file.name] if file.name else [], kept.staged) == len(ids)
            kept.commit(rows=len(ids))
        swap.sweep(place.folder)
        assert count_rows(target) == len(ids)
    names = [name for name, _size in filesystems.list_files(table)]
    assert len(names) == 2 and all(name.startswith("ds=1/") for name in names), "the rows and their list"


def test_partitions_of_one_job_are_brought_to_their_folders_on_the_store(store: ObjectStore) -> None:
    sink = Sink.parquet(
        f"s3://{BUCKET}/scored", partition_by=["ds"], partitions=days("2013-01-01", "2013-01-31")
    ).with_partitions()
    schema = pa.schema([("id", pa.int64())])
    for numbers in (range(29), range(1, 30)):
        with partitioned.placing(sink, None) as placement:
            target = placement.by_tasks
            place = target.fitted(TaskFiles("sink", swap.staging_uri(target.place, swap.new_token()), schema))
            with DividedFile(place) as file:
                rows = {"id": [*numbers], PARTITION: pa.array(numbers, pa.int32())}
                file.add(pa.record_batch(rows))
            found = placement.found(place, file.names)
            assert list(found.values()) == [int(number in numbers) for number in range(30)]
            placement.commit(rows=29, model=None)
        swap.sweep(place.folder)
        assert [count_rows(folder) for folder in sink.folders] == [*found.values()]
    listed = [name for name, _size in filesystems.list_files(f"s3://{BUCKET}/scored")]
    assert len(listed) == 60 and {name.partition("/")[0] for name in listed} == {
        f"ds={partition['ds']}" for partition in sink.partitions
    }, "of each day a file and its list, and nothing beside them"


def test_a_source_in_the_store_is_held_against_a_model_there_without_spark(store: ObjectStore) -> None:
    column = {"name": "a", "dtype": "float32"}
    spec = {"name": "x", "columns": [column], "dtype": "float32", "shape": [1]}
    manifest = {"format_version": 1, "signature": {"inputs": [spec], "outputs": []}}
    filesystems.write_bytes(f"s3://{BUCKET}/m/manifest.json", json.dumps(manifest).encode())
    filesystem, path = filesystems.resolve(f"s3://{BUCKET}/lake/ds=1/x.parquet")
    pq.write_table(pa.table({"a": [1, 2]}), path, filesystem=filesystem)

    def look(timeout_s: int) -> looks.Seen:
        source = Source.parquet(f"s3://{BUCKET}/lake")
        return looks.look(f"s3a://{BUCKET}/m", source, None, None, {**os.environ}, timeout_s)

    assert look(60).columns == [("a", "bigint"), ("ds", None)]
    store.kill()
    started = time.monotonic()
    with pytest.raises(UnsureError):
        look(4)
    assert time.monotonic() - started < 8, "a store that does not answer holds up nobody"
    store.start()
