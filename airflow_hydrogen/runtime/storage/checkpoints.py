"""Checkpoints of a training: saved completely or not at all, verified before they are used.

A checkpoint is a folder `step-00000003` of files and a `checkpoint.json`, written last, which holds their
sizes and sha256. What the files are is the framework's affair: `runtime/keras/checkpoint.py` writes Keras's.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import CheckpointError
from airflow_hydrogen.contract.jobs import describe_changes
from airflow_hydrogen.runtime.storage import filesystems, swap
from airflow_hydrogen.runtime.storage.hashing import sha256_of

MANIFEST = "checkpoint.json"
FORMAT_VERSION = 1

_STEP = re.compile(r"step-(\d{8,})")
_STAGING = ".staging-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be what its `checkpoint.json` says.

    Attributes:
        uri: where it lies.
        step: what it was saved as; a later one has a larger step.
        fingerprint: of the job that saved it.
        parts: hashes of the parts of that job.
        state: what was handed to `save` beside the files.
        files: name -> sha256.
        files_folder: where they lie below `uri`; "" for `uri` itself.
    """

    uri: str
    step: int
    fingerprint: str
    state: Mapping[str, Any]
    files: Mapping[str, str] = field(repr=False)
    parts: Mapping[str, str] = field(repr=False)
    files_folder: str = field(default="", repr=False)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The files in a local folder, for as long as the block lasts. Read only."""
        with _fetched(self.uri) as folder:
            yield folder / self.files_folder


class CheckpointStore:
    """The checkpoints of one training, below one URI.

    One process writes (rank 0); any may read. On a local filesystem a checkpoint is written into a hidden
    neighbour and renamed. Other stores have no such rename: there the files are uploaded first, into a
    folder of their own, and `checkpoint.json` after them, and without it a checkpoint does not count.

    Args:
        uri: the folder: a path, `file://`, or what `storage/filesystems.py` knows. It need not exist.
        fingerprint: the job's, written into every checkpoint.
        parts: hashes of the job's parts, written beside it, so that another job can say what has changed.
    """

    def __init__(self, uri: str, fingerprint: str = "", parts: Mapping[str, str] | None = None) -> None:
        self.uri = uris.canonical(uri)
        self.fingerprint = fingerprint
        self.parts = dict(parts or {})

    def save(self, step: int, write: Callable[[Path], None], state: Mapping[str, Any]) -> Checkpoint:
        """Write one checkpoint; one of the same step is replaced.

        Args:
            step: >= 0, for example the number of epochs that are complete.
            write: writes its files into the empty folder that it is given.
            state: JSON kept beside the files.

        Raises:
            CheckpointError: it could not be written; the earlier ones are untouched.
        """
        if step < 0:
            raise CheckpointError(f"checkpoint step must be >= 0, found {step}")
        target = uris.join(self.uri, f"step-{step:08d}")
        try:
            with self._staging() as folder:
                write(folder)
                files = _describe(folder)
                manifest = {
                    "format_version": FORMAT_VERSION,
                    "step": step,
                    "fingerprint": self.fingerprint,
                    "parts": self.parts,
                    "files": files,
                    "state": dict(state),
                }
                written = self._publish(folder, target, manifest)
        except (OSError, TypeError, ValueError) as error:
            reason = str(error) or repr(error)
            raise CheckpointError(f"checkpoint {target!r} could not be written: {reason}") from error
        return _checkpoint(target, written)

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, newest first. Their files are not looked at."""
        try:
            names = {name.partition("/")[0] for name in self._manifests()}
        except OSError as error:
            raise CheckpointError(f"checkpoints at {self.uri!r} could not be listed: {error}") from error
        found = [_STEP.fullmatch(name) for name in names]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def latest(self, fingerprint: str | None = None) -> Checkpoint | None:
        """The newest intact checkpoint.

        A damaged one is passed over with a warning, and the one before it is taken.

        Args:
            fingerprint: only those of this job; default: the store's own. Checkpoints of another job
                are passed over.

        Returns:
            None if there is none.
        """
        wanted = self.fingerprint if fingerprint is None else fingerprint
        others = 0
        for step in self.steps():
            uri = uris.join(self.uri, f"step-{step:08d}")
            try:
                checkpoint = verify(uri)
            except CheckpointError as error:
                log.warning("%s; trying the one before", error)
                continue
            if checkpoint.fingerprint == wanted:
                return checkpoint
            others += 1
            changes = describe_changes(checkpoint.parts, self.parts)
            log.warning(
                "checkpoint %r is another job's (%s): not resumed",
                uri,
                changes or f"fingerprint {checkpoint.fingerprint!r}, this job has {wanted!r}",
            )
        if others:
            log.warning("no checkpoint at %r is this job's: the training starts from the beginning", self.uri)
        return None

    def prune(self, keep: int) -> None:
        """Remove all but the `keep` newest, and what an interrupted `save` left.

        Raises:
            CheckpointError: `keep` is less than 1, or an old one cannot be removed.
        """
        if keep < 1:
            raise CheckpointError(f"at least one checkpoint must be kept, found keep={keep}")
        root = uris.local_path(self.uri)
        try:
            for step in self.steps()[keep:]:
                filesystems.remove(uris.join(self.uri, f"step-{step:08d}"))
            for leftover in root.glob(f"{_STAGING}*") if root is not None else ():
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError as error:
            raise CheckpointError(f"old checkpoints at {self.uri!r} could not be removed: {error}") from error

    def _manifests(self) -> list[str]:
        root = uris.local_path(self.uri)
        if root is not None:
            return [str(path.relative_to(root)) for path in root.glob(f"step-*/{MANIFEST}")]
        return [name for name, _size in filesystems.list_files(self.uri) if name.endswith(f"/{MANIFEST}")]

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        root = uris.local_path(self.uri)
        if root is None:
            with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-") as folder:
                yield Path(folder)
            return
        root.mkdir(parents=True, exist_ok=True)
        staged = root / f"{_STAGING}{secrets.token_hex(4)}"
        staged.mkdir()
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _publish(self, folder: Path, target: str, manifest: dict[str, Any]) -> dict[str, Any]:
        path = uris.local_path(target)
        if path is not None:
            filesystems.write_bytes(str(folder / MANIFEST), _dumps(manifest))
            if swap.exchange(folder, path):
                return manifest
            (folder / MANIFEST).unlink()
        # Beside the files of a checkpoint of the same step, which counts until it is overwritten.
        manifest = {**manifest, "folder": f"files-{secrets.token_hex(6)}"}
        text = _dumps(manifest)
        filesystems.upload(folder, uris.join(target, manifest["folder"]))
        there = dict(filesystems.list_files(uris.join(target, manifest["folder"])))
        for name, description in manifest["files"].items():
            if there.get(name) != description["bytes"]:
                raise OSError(f"file {name!r} was not stored whole")
        filesystems.write_bytes(uris.join(target, MANIFEST), text)
        for name, _size in filesystems.list_files(target):
            if name != MANIFEST and name.partition("/")[0] != manifest["folder"]:
                filesystems.remove(uris.join(target, name))
        return manifest


def _dumps(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1).encode()


def verify(uri: str) -> Checkpoint:
    """The checkpoint at a URI.

    Raises:
        CheckpointError: a file is missing or is not what `checkpoint.json` says.
    """
    with _fetched(uri) as folder:
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            version, expected = manifest["format_version"], dict(manifest["files"])
            checkpoint = _checkpoint(uri, manifest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"checkpoint {uri!r} has no readable {MANIFEST}: {error!r}") from error
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {uri!r} has format version {version!r}, expected {FORMAT_VERSION}"
            )
        for name, description in expected.items():
            path = folder / checkpoint.files_folder / name
            if not path.is_file():
                raise CheckpointError(f"checkpoint {uri!r} is damaged: file {name!r} is missing")
            size = path.stat().st_size
            if size != description["bytes"]:
                expected_bytes = description["bytes"]
                raise CheckpointError(
                    f"checkpoint {uri!r} is damaged: file {name!r} has {size} bytes, "
                    f"expected {expected_bytes}"
                )
            if sha256_of(path) != description["sha256"]:
                raise CheckpointError(f"checkpoint {uri!r} is damaged: file {name!r} has another sha256")
        return checkpoint


def _checkpoint(uri: str, manifest: Mapping[str, Any]) -> Checkpoint:
    files = {name: str(description["sha256"]) for name, description in manifest["files"].items()}
    return Checkpoint(
        uri=uri,
        step=int(manifest["step"]),
        fingerprint=str(manifest["fingerprint"]),
        state=manifest["state"],
        files=files,
        parts=dict(manifest["parts"]),
        files_folder=str(manifest.get("folder", "")),
    )


@contextmanager
def _fetched(uri: str) -> Iterator[Path]:
    path = uris.local_path(uri)
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-") as folder:
        try:
            filesystems.download(uri, Path(folder))
        except OSError as error:
            raise CheckpointError(f"checkpoint {uri!r} could not be read: {error}") from error
        yield Path(folder)


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }
