"""Publish a model that was trained elsewhere: bring it, try it, publish it.

As a program: `python -m airflow_hydrogen.runtime.publication JOB_FILE`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import ModelSignatureError, UnpublishableModelError
from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.contract.publications import (
    EXPECTED,
    KERAS,
    ONNX,
    SAVED_MODEL,
    TORCH,
    PublishJob,
    PublishReport,
    framework_of,
)
from airflow_hydrogen.contract.reports import Failure
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.runtime import versions
from airflow_hydrogen.runtime.models import aliases, directory, onnx_file
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.runs import look_at, work_of
from airflow_hydrogen.runtime.rank import foreign
from airflow_hydrogen.runtime.rank.foreign import Foreign
from airflow_hydrogen.runtime.rank.publishing import KERAS_FILE, SAVED_MODEL_FOLDER
from airflow_hydrogen.runtime.storage import filesystems, s3
from airflow_hydrogen.runtime.storage.owners import Ownership

_ONNX_FOLDER = "onnx"  # weights that lie beside the file have names of their own
_SAVED_MODEL = "saved_model.pb"
_FILES = {KERAS: KERAS_FILE, TORCH: "model.pt2"}


def publish_model(
    model: str | os.PathLike[str],
    model_uri: str,
    *,
    columns: Sequence[Any] | Mapping[str, Any] | str,
    outputs: Sequence[str] | None = None,
    example: Mapping[str, Any] | None = None,
    alias: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Publish a model that was trained elsewhere, so that it is scored as one that was trained here.

    Before anything is published the model is loaded in a fresh process, as a scorer does it, and scores rows.

    Args:
        model: an ONNX file (`.onnx`), a program of torch.export (`.pt2`), the folder of a TensorFlow
            SavedModel or a `.keras` file: a path or a URI.
        model_uri: where it is published; the model that lies there is replaced, at once, and a folder that
            holds other things is refused.
        columns: the columns that fill the model's one input, in their order, as in `["temp", "wind"]`; or
            input -> column or columns, as in `{"x": ["temp", "wind"], "carrier": "carrier"}`. A column of
            lists that shares an input with others is `{"name": "pixels", "width": 784}`.
        outputs: which of the model's outputs become columns; None: all. Not of a `.keras` file.
        example: column -> value of one real row, which is scored in place of made-up rows that the model may
            refuse.
        alias: an alias that names the model once it is published, such as `s3://models/late/production.alias`.
        metrics: what is known of the model, such as `{"auc": 0.91}`; they stand in its manifest.

    Returns:
        The model's URI.

    Raises:
        InvalidJobError: an argument that cannot work.
        UnpublishableModelError: the model cannot be scored as it is; with what it takes and gives.
        UriInUseError: something else works at `model_uri`.
        NotAnAliasError: something else has the name of the alias.
    """
    job = PublishJob(
        model=os.fspath(model),
        model_uri=model_uri,
        columns=columns,
        outputs=outputs,
        example=example,
        alias=alias,
        metrics=metrics or {},
    )
    return str(run_publication(job).model_uri)


def run_publication(job: PublishJob) -> PublishReport:
    """Carry out a publication.

    Args:
        job: what to publish.

    Returns:
        The report of a success.

    Raises:
        HydrogenError: as `publish_model` does.
    """
    started = time.monotonic()
    with s3.using(job.s3):
        uri = uris.canonical(job.model_uri)
        filesystems.require_writable("model_uri", uri)
        if job.alias is not None and filesystems.exists(job.alias):
            aliases.read_alias(job.alias)
        with Ownership(uri, "model_uri", work_of(job.run), on_lost=_nothing) as ownership:
            _there, earlier = look_at(uri, job.run, _fingerprint(job))
            manifest = earlier or _publish(job, uri, ownership)
            alias = None
            if job.alias is not None:
                if earlier is not None and _has_named(job.alias, uri, earlier, job.run):
                    said = aliases.read_alias(job.alias)
                else:
                    ownership.require()
                    said = aliases.set_alias(job.alias, uri, by=work_of(job.run) or None)
                is_named = (said.model_uri, said.model_version) == (uri, manifest.version)
                alias = uris.canonical(job.alias) if is_named else None
    return PublishReport(
        model_uri=uri,
        model_version=manifest.version,
        alias=alias,
        framework=manifest.framework,
        inputs={
            spec.name: {
                "columns": [column.name for column in spec.columns],
                "dtype": spec.dtype,
                "shape": list(spec.shape),
            }
            for spec in manifest.signature.inputs
        },
        outputs={
            spec.name: {"dtype": spec.dtype, "shape": list(spec.shape)} for spec in manifest.signature.outputs
        },
        metrics=manifest.metrics,
        reused=earlier is not None,
        seconds={"total": round(time.monotonic() - started, 3)},
    )


def _has_named(alias: str, uri: str, model: Manifest, run: Run | None) -> bool:
    """Whether an earlier try has set the alias: what it names since then is somebody else's wish."""
    return any(
        (said.model_uri, said.model_version, said.set_by) == (uri, model.version, work_of(run))
        for said in aliases.history(alias)
    )


def _publish(job: PublishJob, uri: str, ownership: Ownership) -> Manifest:
    framework = framework_of(job.model)
    foreign.require_installed(job.model, framework)
    staged_uri = directory.staging_uri(uri)
    try:
        with _local(staged_uri) as folder:
            entry = _bring(job.model, framework, folder)
            signature = foreign.examine(
                Foreign(job.model, framework, folder, entry, job.columns, job.outputs, job.example)
            )
            manifest = _manifest(job, framework, entry, signature, folder)
        ownership.require()
        return directory.publish(staged_uri, uri, manifest, keep_checkpoints=False)
    except BaseException:
        filesystems.remove(staged_uri)
        raise


@contextmanager
def _local(staged_uri: str) -> Iterator[Path]:
    """The staging folder, or one of this machine that becomes it."""
    local = uris.local_path(staged_uri)
    if local is not None:
        local.mkdir(parents=True)
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-publish-") as name:
        yield Path(name)
        filesystems.upload(Path(name), staged_uri)


def _bring(model: str, framework: str, folder: Path) -> str:
    """Copy a model and the files that it needs: its entry below the folder.

    Raises:
        UnpublishableModelError: there is none.
    """
    try:
        names = [name for name, _size in filesystems.list_files(model)]
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among these
        # Of a store that does not answer now there is an OSError.
        retryable = isinstance(error, OSError)
        raise UnpublishableModelError(model, f"it cannot be read: {error}", retryable=retryable) from error
    if framework == SAVED_MODEL:
        if _SAVED_MODEL not in names:
            raise UnpublishableModelError(model, _no_folder(names))
        for name in names:
            _copy(uris.join(model, name), folder / SAVED_MODEL_FOLDER / name)
        return SAVED_MODEL_FOLDER
    own = uris.parse(model).path.rpartition("/")[2]
    if names != [own]:
        found = "it is a folder" if names else "there is no such file"
        raise UnpublishableModelError(model, f"{found}; expected a file")
    if framework != ONNX:
        _copy(model, folder / _FILES[framework])
        return _FILES[framework]
    entry = f"{_ONNX_FOLDER}/{own}"
    _copy(model, folder / entry)
    try:
        for name in onnx_file.external_files(onnx_file.read(folder / entry)):
            _copy(f"{uris.canonical(model).rpartition('/')[0]}/{name}", folder / _ONNX_FOLDER / name)
    except ModelSignatureError as error:
        raise UnpublishableModelError(model, str(error)) from None
    except FileNotFoundError as error:
        raise UnpublishableModelError(
            model, f"its weights lie in other files, and one of them is not there: {error}"
        ) from None
    return entry


def _no_folder(names: Sequence[str]) -> str:
    expected = f"expected {EXPECTED}, with {_SAVED_MODEL} in it"
    if not names:
        return f"there is nothing; {expected}"
    inside = [name for name in names if name.endswith((".onnx", ".keras", ".pt2", f"/{_SAVED_MODEL}"))]
    return f"{expected}; found {', '.join(map(repr, (inside or names)[:5]))} in it"


def _copy(source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    filesystems.download_file(source, target)


def _manifest(job: PublishJob, framework: str, entry: str, signature: Signature, folder: Path) -> Manifest:
    files = directory.describe_files(folder, [entry.partition("/")[0]])
    return Manifest(
        framework=framework,
        entry=entry,
        signature=signature,
        files=files,
        metrics=dict(job.metrics),
        np=0,  # nothing was trained here
        job=_fingerprint(job),
        versions=versions.installed(),
        run=dataclasses.asdict(job.run) if job.run else None,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _fingerprint(job: PublishJob) -> str:
    return hashlib.sha256(json.dumps(job.parts(), sort_keys=True).encode()).hexdigest()


def _nothing() -> None:
    """Who owns the URI is asked again before anything is published."""


def main(job_file: Path) -> int:
    """Run the job of a file and write its report: 0 when it succeeded, 1 when the report holds a failure."""
    job = PublishJob.loads(job_file.read_text())
    try:
        report = run_publication(job)
    except Exception as error:
        traceback.print_exc()
        report = PublishReport(failure=Failure.of(error))
    if job.report_uri is not None:
        filesystems.write_bytes(job.report_uri, report.dumps().encode())
    return 0 if report.failure is None else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
