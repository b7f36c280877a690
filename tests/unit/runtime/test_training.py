"""What belongs to a run at a model's URI."""

from __future__ import annotations

import dataclasses
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import (
    InvalidUriError,
    NonFiniteLossError,
    OwnershipLostError,
    SharedModelUriError,
)
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.jobs import Entrypoint, Run, TrainJob
from airflow_hydrogen.contract.signatures import MANIFEST, Signature
from airflow_hydrogen.runtime import training
from airflow_hydrogen.runtime.data.files import DataFile, DatasetFiles
from airflow_hydrogen.runtime.data.staging import StagedDataset
from airflow_hydrogen.runtime.gang.supervision import GangResult
from airflow_hydrogen.runtime.models import runs
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.runs import refuse_shared_uri
from airflow_hydrogen.runtime.rank.publishing import Outcome, Published
from airflow_hydrogen.runtime.storage import owners
from airflow_hydrogen.runtime.storage.owners import Owner, Process
from airflow_hydrogen.runtime.training import place_of

RUN = Run(dag_id="d", task_id="t", run_id="r", map_index=1)


def model_of(run: Run | None) -> Manifest:
    return Manifest(
        framework="keras",
        entry="model.keras",
        signature=Signature((), ()),
        files=(),
        run=dataclasses.asdict(run) if run else None,
    )


def cleared(run: Run, times: int) -> Run:
    return dataclasses.replace(run, clear_number=times)


def test_a_retry_finds_its_checkpoints_whatever_older_model_lies_at_the_uri():
    last_night = model_of(dataclasses.replace(RUN, run_id="yesterday"))
    assert place_of(RUN, last_night) == place_of(RUN, None)
    assert place_of(RUN, last_night) != place_of(dataclasses.replace(RUN, run_id="yesterday"), None)


def test_a_failed_run_that_is_cleared_goes_on_and_a_finished_one_starts_anew():
    assert place_of(cleared(RUN, 1), None) == place_of(RUN, None)
    again = place_of(cleared(RUN, 1), model_of(RUN))
    assert again != place_of(RUN, None)
    # The retries after that clear see the model of before it too, and go on.
    assert place_of(cleared(RUN, 1), model_of(RUN)) == again
    assert place_of(cleared(RUN, 2), model_of(cleared(RUN, 1))) not in (again, place_of(RUN, None))


def test_outside_of_airflow_a_finished_training_starts_anew_too():
    assert place_of(None, None) == place_of(None, model_of(RUN))
    assert place_of(None, model_of(None)) != place_of(None, None)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (dataclasses.replace(RUN, map_index=0), r"task t\[0\]"),
        (dataclasses.replace(RUN, task_id="u", map_index=-1), "task u "),
    ],
)
def test_a_sweep_with_one_uri_is_refused_and_told_what_to_write(other, name):
    with pytest.raises(SharedModelUriError, match=name) as refused:
        refuse_shared_uri("s3://models/r", model_of(other), RUN)
    assert "{{ ti.map_index }}" in str(refused.value)
    assert not refused.value.retryable


@pytest.mark.parametrize(
    "there", [None, model_of(None), model_of(RUN), model_of(dataclasses.replace(RUN, run_id="s"))]
)
def test_older_models_of_others_and_ones_own_are_replaced(there):
    refuse_shared_uri("s3://models/latest", there, RUN)


def job_at(path: Path) -> TrainJob:
    return TrainJob(
        entrypoint=Entrypoint.parse("json:dumps"),
        np=1,
        model_uri=str(path / "model"),
        report_uri=str(path / "report.json"),
        run=RUN,
        gang=GangOptions(fork=False),
    )


def take_over(path: Path) -> None:
    successor = Owner("theirs", {}, Process("another machine", 1, "1", "far"), at=time.time()).dumps()
    file = path / ".model.owner.json"
    while not file.exists() or file.read_bytes() != successor:
        file.write_bytes(successor)
        time.sleep(0.05)  # a renewal that had begun before is written over it by now


def test_what_a_try_left_that_died_right_after_it_published_is_removed_by_the_next(tmp_path, monkeypatch):
    for left in ("model/data/p/train/x", "model/checkpoints/p/x", ".model.publish-0123456789ab/x"):
        (tmp_path / left).mkdir(parents=True)
    for name in (MANIFEST, "model.keras"):
        (tmp_path / "model" / name).touch()
    monkeypatch.setattr(runs, "finished_model", lambda *_: model_of(RUN))
    assert training.run_training(job_at(tmp_path)).reused
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["model", MANIFEST, "model.keras"])


def test_a_folder_that_holds_other_things_is_left_alone(tmp_path):
    """A training sweeps `data/` of earlier runs before it begins, and replaces the folder at its end."""
    (tmp_path / "model" / "data" / "flights").mkdir(parents=True)
    with pytest.raises(InvalidUriError, match="holds data/flights: a model takes the place of all"):
        training.run_training(job_at(tmp_path))
    assert (tmp_path / "model" / "data" / "flights").is_dir()


@pytest.mark.parametrize(
    "run", [{**dataclasses.asdict(RUN), "of_a_later_version": 1}, {"pipeline": "nightly"}]
)
def test_a_model_whose_run_is_told_otherwise_is_anothers(run):
    there = dataclasses.replace(model_of(None), run=run)
    assert place_of(RUN, there) == place_of(RUN, None)
    refuse_shared_uri("s3://models/latest", there, RUN)


@pytest.mark.parametrize("end", ["result", "model", "failure"])
def test_one_that_has_lost_its_uri_leaves_the_next_ones_files_alone(tmp_path, monkeypatch, end):
    staged = tmp_path / ".model.publish-0123456789ab"
    theirs = [tmp_path / "model" / "data" / "p" / "x", tmp_path / "model" / "checkpoints" / "p" / "x"]

    def train(*_: object) -> tuple[GangResult, Outcome, str]:
        take_over(tmp_path)
        for folder in theirs:
            folder.mkdir(parents=True)
        if end == "failure":
            raise NonFiniteLossError("loss", float("nan"), "after epoch 0")
        staged.mkdir()
        published = Published("keras", "model.keras", Signature((), ()), ()) if end == "model" else None
        return GangResult(b"", 1), Outcome(published, None, [], None), str(staged)

    monkeypatch.setattr(training, "spark_session", lambda job: None)
    monkeypatch.setattr(training, "require_slots", lambda *_: 1)
    monkeypatch.setattr(training, "_train", train)
    with pytest.raises(OwnershipLostError):
        training.run_training(job_at(tmp_path))
    assert all(folder.exists() for folder in theirs)
    assert not staged.exists()


@pytest.mark.parametrize(
    "handler", [signal.default_int_handler, signal.SIG_IGN], ids=["", "in the background of a shell"]
)
def test_one_that_has_lost_its_uri_ends_while_it_waits_for_spark(tmp_path, monkeypatch, handler):
    before = signal.signal(signal.SIGINT, handler)
    monkeypatch.setattr(owners, "BEAT_S", 0.01)
    here, spark = socket.socketpair()
    late = threading.Timer(20, spark.sendall, [b"done"])

    def wait_for_spark(*_: object) -> None:
        late.start()
        take_over(tmp_path)
        here.recv(4)

    monkeypatch.setattr(training, "_train_at", wait_for_spark)
    try:
        with here, spark, pytest.raises(OwnershipLostError, match="far"):
            training.run_training(job_at(tmp_path))
        assert late.is_alive(), "it ended before Spark answered"
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
        late.cancel()
        late.join()


def test_the_manifest_keeps_what_was_trained_on_apart_from_what_its_source_held(monkeypatch):
    """A database counts its rows before a condition leaves some out."""
    published: list[Manifest] = []

    def publish(staged_uri, uri, manifest, **options):
        published.append(manifest)
        return manifest

    monkeypatch.setattr(training.directory, "publish", publish)
    files = DatasetFiles("/data", (DataFile("0.parquet", 10, 0, (60,), (9,)),), {}, ())
    snapshot = {"source": "jdbc shop: orders where late", "rows": 100}
    staged = {"train": StagedDataset(files, "ef", False, snapshot)}
    job = TrainJob(entrypoint=Entrypoint.parse("a:b"), np=1, model_uri="/m", report_uri="/r")
    made = Published("keras", "model.keras", Signature((), ()), ())
    training._publish(job, "/m", 1, staged, Outcome(None, None, [], None), made, "/staged")
    assert published[0].data == {"train": {"rows": 60, "fingerprint": "ef", "snapshot": snapshot}}
