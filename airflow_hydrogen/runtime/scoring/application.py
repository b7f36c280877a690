"""The scoring application: check, read, predict in Arrow batches, replace a partition."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.connect_limits import require_possible
from airflow_hydrogen.contract.errors import HydrogenError, InvalidJobError
from airflow_hydrogen.contract.jobs import InferenceJob
from airflow_hydrogen.contract.reports import InferenceReport
from airflow_hydrogen.runtime import versions
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.data import snapshots, sources
from airflow_hydrogen.runtime.data.snapshots import Kept, Opened, Snapshot
from airflow_hydrogen.runtime.entrypoints import resolve_import_path
from airflow_hydrogen.runtime.log_groups import log_group
from airflow_hydrogen.runtime.models import aliases, engines
from airflow_hydrogen.runtime.models.aliases import NamedModel
from airflow_hydrogen.runtime.models.directory import read_manifest
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.predictors import require_modules
from airflow_hydrogen.runtime.scoring import sinks, warming
from airflow_hydrogen.runtime.scoring.planning import Scoring, score
from airflow_hydrogen.runtime.scoring.sinks import Written
from airflow_hydrogen.runtime.scoring.watching import RowCounter, progress_told
from airflow_hydrogen.runtime.session import spark_session
from airflow_hydrogen.runtime.sinks import parquet, placements
from airflow_hydrogen.runtime.spark_errors import original_error
from airflow_hydrogen.runtime.storage import s3

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SOURCE = "the source"
_MODEL = "the model"


def run_inference(job: InferenceJob) -> InferenceReport:
    """Carry out a scoring job.

    Args:
        job: what to score; model, columns and places are checked before any row is read.

    Returns:
        The report of a success.

    Raises:
        HydrogenError: see the tree in `contract.errors`.
    """
    with s3.using(job.s3):
        return _run(job)


def _run(job: InferenceJob) -> InferenceReport:
    started = time.monotonic()
    if job.sink.mode == "merge" and job.on_bad_row == "quarantine" and job.run is None:
        raise InvalidJobError(
            "mode='merge' with on_bad_row='quarantine' needs a run, in whose partition bad rows are kept: "
            "outside Airflow give the job one"
        )
    if job.connect is not None:
        require_possible(job)
    require_writable(job)
    prepare = resolve_import_path(job.prepare) if job.prepare else None
    with _kept(job) as kept:
        model = _named_model(job, kept)
        manifest = usable_model(job, model)
        if model.alias is not None:
            pinned = {"model_uri": model.uri, "model_version": manifest.version}
            kept.note(_MODEL, {"source": model.alias, **pinned})
        job = replace(job, model_uri=model.uri)
        spark = scoring_session(job, manifest)
        warming.warm_workers(spark, _say)
        with log_group("Preparation", folded=job.run is not None):
            opened = _open(spark, job, kept)
            with warming.prepared_apart(spark, job.gpus_per_task):
                frame = sources.prepared(opened.frame, prepare, job.prepare_kwargs)
            label = label_of(manifest, job, opened.snapshot)
            job = replace(job, source=opened.source)
            scoring = score(spark, frame, manifest, job, label)
        print(
            f"scoring {job.source} with {manifest.framework} model {job.model_uri}{ran_by(scoring)}, "
            f"version {manifest.version[:12]}{f', by {model.alias}' if model.alias else ''}",
            flush=True,
        )
        try:
            written = _write(spark, scoring, job)
        except Exception as error:
            original = original_error(error)
            if original is error:
                raise
            raise original from None
    seconds = time.monotonic() - started
    print(f"wrote {written.rows:,} rows to {job.sink}", flush=True)
    say_batch_rows(written)
    for note in written.notes:
        _say(note)
    if written.bad:
        where = "dropped" if job.quarantine_uri is None else f"quarantined in {job.quarantine_uri}"
        print(f"{written.bad.total():,} of {written.rows_in:,} rows {where}:", flush=True)
        for fault, rows in written.bad.most_common():
            print(f"  {rows:,}: {fault}", flush=True)
    return InferenceReport(
        output_uri=job.sink.output,
        model_uri=uris.canonical(job.model_uri),
        model_version=manifest.version,
        model_alias=model.alias,
        engine=scoring.scorer.engine,
        batch_rows=written.rows_of_call(job),
        rows=written.rows,
        rows_in=written.rows_in,
        rows_dropped=written.dropped,
        rows_quarantined=written.quarantined,
        partitions=dict(written.partitions),
        quarantine_uri=job.quarantine_uri,
        bad_rows=dict(written.bad),
        columns={field.name: field.dataType.simpleString() for field in scoring.schema},
        seconds={"total": round(seconds, 3)},
        rows_per_second=written.rows / seconds,
        source=opened.snapshot,
        versions=versions.installed(),
    )


def require_writable(job: InferenceJob) -> None:
    """Find out that sink or quarantine cannot be written, before any work is done.

    Raises:
        HydrogenError: with what to change.
    """
    placements.require_writable(job.sink, job.access)
    if job.quarantine_uri is not None:
        parquet.require_writable("quarantine", job.quarantine_sink)


def manifest_of(job: InferenceJob) -> Manifest:
    """The manifest of the model that scores, before anything is checked.

    Raises:
        ModelError: there is none.
    """
    return read_manifest(_named_model(job, Kept(job.snapshot_uri, job.run)).uri)


def usable_model(job: InferenceJob, model: NamedModel) -> Manifest:
    """The model that is named, found to be whole, and with the code that it needs."""
    manifest = model.open()
    predictor = job.predictor or manifest.predictor
    if predictor:
        resolve_import_path(predictor)
    elif engines.choose(model.uri, manifest, job.engine, None, job.gpus_per_task) != engines.ONNX:
        require_modules(model.uri, manifest)
    return manifest


def _named_model(job: InferenceJob, kept: Kept) -> NamedModel:
    earlier = kept.earlier(_MODEL)
    if earlier is None or earlier["source"] != uris.canonical(job.model_uri):
        return aliases.resolve(job.model_uri)
    return NamedModel(earlier["model_uri"], earlier["model_version"], earlier["source"])


def _open(spark: SparkSession, job: InferenceJob, kept: Kept) -> Opened:
    """The source as the run's first try has found it, or as it is now."""
    opened = snapshots.open_pinned(spark, job.source, job.access, kept.earlier(_SOURCE))
    kept.note(_SOURCE, opened.snapshot)
    return opened


@contextlib.contextmanager
def _kept(job: InferenceJob) -> Iterator[Kept]:
    """What is kept for the run's next try, as long as there may be one."""
    kept = Kept(job.snapshot_uri, job.run)
    try:
        yield kept
    except HydrogenError as error:
        if not error.retryable:
            kept.forget()
        raise
    kept.forget()


def ran_by(scoring: Scoring) -> str:
    """Which engine runs the model, where that is not its own framework's."""
    return " in ONNX Runtime" if scoring.scorer.engine == engines.ONNX else ""


def say_batch_rows(written: Written) -> None:
    """Say how many rows the model got at once, where workers have found that out."""
    if found := written.batch_rows.most_common():
        told = ", ".join(f"{size:,} (for {rows:,} rows)" for size, rows in found)
        print(f"batch_rows='auto': the fastest calls of the model had {told}", flush=True)


def label_of(manifest: Manifest, job: InferenceJob, snapshot: Snapshot) -> dict[str, Any]:
    """What made predictions, for the metadata of their columns."""
    return {
        "model_uri": uris.canonical(job.model_uri),
        "model_version": manifest.version,
        "source": snapshot,
    }


def scoring_session(job: InferenceJob, manifest: Manifest) -> SparkSession:
    """The session for a scoring, whose Python workers have the model's framework when they start."""
    if job.connect is not None:
        return spark_session(job)
    from pyspark import SparkContext

    if SparkContext._active_spark_context is not None:
        return spark_session(job)  # with what it was started with
    preload = warming.plan(job, manifest)
    return spark_session(job, lambda given: warming.settings(given, preload, _say))


def _say(line: str) -> None:
    print(f"airflow-hydrogen: {line}", flush=True)


def _write(spark: SparkSession, scoring: Scoring, job: InferenceJob) -> Written:
    """Score and replace the partition, and say now and then how far it is."""
    with log_group("Scoring: output of Spark and the workers", folded=job.run is not None) as group:

        def say(line: str) -> None:
            group.say(line)
            group.begin()

        if is_connect(spark):
            return sinks.place(spark, scoring, job)
        counter = RowCounter(spark)
        with progress_told(counter, scoring.rows, say):
            return sinks.place(spark, scoring, job, counter)
