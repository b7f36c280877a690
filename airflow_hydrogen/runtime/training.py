"""The training application: check, prepare (parallel), train (gang), publish."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.connect_limits import require_possible
from airflow_hydrogen.contract.errors import HydrogenError
from airflow_hydrogen.contract.jobs import Run, TrainJob
from airflow_hydrogen.contract.reports import TrainReport
from airflow_hydrogen.runtime import versions
from airflow_hydrogen.runtime.data import staging
from airflow_hydrogen.runtime.data.snapshots import Kept
from airflow_hydrogen.runtime.entrypoints import require_same_python, resolve_import_path
from airflow_hydrogen.runtime.gang.slots import require_slots
from airflow_hydrogen.runtime.gang.supervision import GangResult
from airflow_hydrogen.runtime.log_groups import log_group
from airflow_hydrogen.runtime.models import directory
from airflow_hydrogen.runtime.models.manifest import CHECKPOINTS, DATA, EVENTS, Manifest
from airflow_hydrogen.runtime.models.runs import look_at, without_clears, work_of
from airflow_hydrogen.runtime.rank.publishing import Outcome, Published
from airflow_hydrogen.runtime.rank.task import RankTask
from airflow_hydrogen.runtime.runner import HorovodRunner, read_script
from airflow_hydrogen.runtime.session import spark_session
from airflow_hydrogen.runtime.storage import filesystems, s3
from airflow_hydrogen.runtime.storage.owners import Ownership

_SNAPSHOTS = "_SNAPSHOTS.json"


def run_training(job: TrainJob) -> TrainReport:
    """Carry out a training job.

    Args:
        job: what to train; its arguments are checked before any cluster time is spent.

    Returns:
        The report of a success.

    Raises:
        HydrogenError: see the tree in `contract.errors`.
    """
    with s3.using(job.s3):
        return _train_alone(job)


def _train_alone(job: TrainJob) -> TrainReport:
    """Carry out a training job, if no other application works at its URI."""
    if job.connect is not None:
        require_possible(job)
    uri = uris.canonical(job.model_uri)
    prepare = resolve_import_path(job.prepare) if job.prepare else None
    script = _check_entrypoint(job)
    filesystems.require_writable("model_uri", uri)
    ownership = Ownership(uri, "model_uri", work_of(job.run), on_lost=_interrupt)
    try:
        with ownership, _interruptible():
            return _train_at(job, uri, prepare, script, ownership)
    except KeyboardInterrupt:
        if ownership.lost:
            ownership.require()
        raise


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have an interrupt end what runs: a shell has all that it starts in the background ignore it."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt() -> None:
    """Interrupt the main thread by a signal: `_thread.interrupt_main` wakes none that waits for Spark."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def _train_at(
    job: TrainJob, uri: str, prepare: Callable[..., Any] | None, script: str | None, ownership: Ownership
) -> TrainReport:
    """Carry out a training at a model URI that is this application's own."""
    started = time.monotonic()
    there, existing = look_at(uri, job.run, job.fingerprint())
    if existing is not None:
        _remove_working_files(job, uri)  # that try may not have come to it
        print(f"model {uri} was trained by an earlier try of this run: nothing to do", flush=True)
        return TrainReport(
            model_uri=uri,
            model_version=existing.version,
            metrics=existing.metrics,
            np=existing.np,
            reused=True,
            sources={name: data.get("snapshot", {}) for name, data in existing.data.items()},
            versions=existing.versions,
        )
    place = place_of(job.run, there)
    _sweep(uris.join(uri, DATA), place)
    spark = spark_session(job)
    size = -job.np if job.np < 0 else require_slots(spark, job.np, job.gang)
    runner = HorovodRunner(job.np, **job.gang.to_dict())
    runner.warm(spark, job.entrypoint, script)
    try:
        with log_group("Preparation", folded=job.run is not None):
            kept = Kept(uris.join(uri, DATA, place, _SNAPSHOTS), job.run)
            staged = {
                name: staging.stage(
                    spark,
                    name,
                    source,
                    uris.join(uri, DATA, place, name),
                    ranks=size,
                    prepare=prepare,
                    prepare_kwargs=job.prepare_kwargs,
                    access=job.access,
                    kept=kept,
                )
                for name, source in job.datasets.items()
            }
        prepared = time.monotonic()
        for name, dataset in staged.items():
            how = "read in place" if dataset.in_place else "prepared"
            print(f"dataset {name!r}: {dataset.rows:,} rows, {how}", flush=True)
        checkpoints_uri = uris.join(uri, CHECKPOINTS, place)
        gang, outcome, staged_uri = _train(job, runner, uri, size, staged, script, checkpoints_uri)
        trained = time.monotonic()
        version = None
        try:
            ownership.require()
            if outcome.published is not None:
                with log_group("Publishing", folded=job.run is not None):
                    _sweep(uris.join(uri, CHECKPOINTS), place)
                    version = _publish(job, uri, gang.np, staged, outcome, outcome.published, staged_uri)
                print(f"published {outcome.published.framework} model {uri}", flush=True)
        except BaseException:
            filesystems.remove(staged_uri)
            raise
        _remove_working_files(job, uri)
    except HydrogenError as error:
        if not error.retryable:  # a retry would use what is there again, and there will be none
            ownership.require()  # else it is the next try's
            filesystems.remove(uris.join(uri, DATA))
        raise
    history = outcome.history
    train = staged.get("train")
    return TrainReport(
        model_uri=uri if outcome.published is not None else None,
        model_version=version,
        result=outcome.value,
        metrics=_finite(history[-1]) if history else {},
        epochs=len(history),
        np=gang.np,
        rows=train.rows if train else None,
        seconds={
            "prepare": round(prepared - started, 3),
            "train": round(trained - prepared, 3),
            "publish": round(time.monotonic() - trained, 3),
            "total": round(time.monotonic() - started, 3),
        },
        rows_per_second=_rows_per_second(history),
        resumed_from_epoch=outcome.resumed_from_epoch,
        restarts=tuple(gang.restarts),
        sources={name: dataset.snapshot for name, dataset in staged.items()},
        versions=versions.installed(),
    )


def _check_entrypoint(job: TrainJob) -> str | None:
    """Find a wrong entry point on the driver, before any rank starts; returns a script's text."""
    if job.entrypoint.kind == "script":
        return read_script(job.entrypoint.value)
    if job.entrypoint.kind == "import":
        resolve_import_path(job.entrypoint.value)
    else:
        require_same_python(job.entrypoint)
    return None


def place_of(run: Run | None, there: Manifest | None) -> str:
    """The name of the folders with a run's prepared data and checkpoints, below the model's.

    It is the same for all tries, whatever older model lies at the URI, so that a retry goes on. A run that
    has published its model and is cleared gets another one: what it kept is not a place to go on from.

    Args:
        run: the run.
        there: the model at its URI.
    """
    work = work_of(run)
    published = there is not None and without_clears(there.run or {}) == work
    key = json.dumps([work, there.dumps() if there is not None and published else None], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _remove_working_files(job: TrainJob, uri: str) -> None:
    """Remove what nobody needs once a run is done; one that is cleared is to start anew."""
    filesystems.remove(uris.join(uri, DATA))
    if not job.keep_checkpoints:
        filesystems.remove(uris.join(uri, CHECKPOINTS))


def _sweep(uri: str, keep: str) -> None:
    """Remove what other runs left below a folder that is ours."""
    for name in filesystems.list_folders(uri):
        if name != keep:
            filesystems.remove(uris.join(uri, name))


def _train(
    job: TrainJob,
    runner: HorovodRunner,
    uri: str,
    size: int,
    staged: Mapping[str, staging.StagedDataset],
    script: str | None,
    checkpoints_uri: str,
) -> tuple[GangResult, Outcome, str]:
    """Run the gang: what became of it, what rank 0 answers, and the folder with its model."""
    staged_uri = directory.staging_uri(uri)
    task = RankTask(
        entrypoint=job.entrypoint,
        kwargs=job.entrypoint_kwargs,
        args=tuple(job.entrypoint_args),
        script=script,
        datasets={name: dataset.files for name, dataset in staged.items()},
        checkpoints_uri=checkpoints_uri,
        events_uri=uris.join(uri, EVENTS),
        publish_uri=staged_uri,
        exports=tuple(job.exports),
        fingerprint=job.fingerprint(),
        parts=job.parts(),
        s3=job.s3,
    )
    print(f"training {job.entrypoint.name} on {size} ranks", flush=True)
    try:
        result = runner.run_task(task, folded=job.run is not None)
        outcome: Outcome = pickle.loads(result.answer)
    except BaseException:
        filesystems.remove(staged_uri)
        raise
    return result, outcome, staged_uri


def _publish(
    job: TrainJob,
    uri: str,
    size: int,
    staged: Mapping[str, staging.StagedDataset],
    outcome: Outcome,
    published: Published,
    staged_uri: str,
) -> str:
    """Publish the model: its version."""
    manifest = Manifest(
        framework=published.framework,
        entry=published.entry,
        signature=published.signature,
        files=published.files,
        predictor=published.predictor,
        modules=published.modules,
        twins=published.twins,
        metrics=_finite(outcome.history[-1]) if outcome.history else {},
        entrypoint=job.entrypoint.name,
        np=size,
        job=job.fingerprint(),
        data={
            name: {"rows": data.rows, "fingerprint": data.fingerprint, "snapshot": data.snapshot}
            for name, data in staged.items()
        },
        versions=versions.installed(),
        run=dataclasses.asdict(job.run) if job.run else None,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return directory.publish(staged_uri, uri, manifest, keep_checkpoints=job.keep_checkpoints).version


def _finite(line: Mapping[str, float]) -> dict[str, float]:
    """Metrics that JSON can hold."""
    return {name: value for name, value in line.items() if math.isfinite(value)}


def _rows_per_second(history: list[dict[str, float]]) -> float | None:
    """Rows that all ranks read per second, over the epochs that said so."""
    rates = [line["rows_per_second"] for line in history if line.get("rows_per_second")]
    return len(rates) / sum(1 / rate for rate in rates) if rates else None
