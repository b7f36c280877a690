"""The model directory: manifest, signature, publishing at once, verified loading."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract.errors import ModelChangedError, ModelFormatError, NotAModelError
from airflow_hydrogen.runtime import filesystems
from airflow_hydrogen.runtime.columns import ColumnSpec

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"
EVENTS = "events"

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True)
class InputSpec:
    """One input tensor of the model and the columns that fill it, in order.

    Attributes:
        name: the input's name in the model.
        columns: what fills it: several columns side by side in a matrix, or one column.
        dtype: numpy's name of the element type, or "string".
        shape: of one row: () for a scalar, (32,) for a vector of 32.
    """

    name: str
    columns: tuple[ColumnSpec, ...]
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OutputSpec:
    """One output tensor: `shape` is that of one row, () or (1,) for a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]

    @property
    def columns(self) -> list[ColumnSpec]:
        """Every column that the model reads, once, in the order of the inputs."""
        found = {column.name: column for spec in self.inputs for column in spec.columns}
        return list(found.values())

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Signature:
        """Read the JSON form."""
        return cls(
            inputs=tuple(
                InputSpec(
                    name=spec["name"],
                    columns=tuple(ColumnSpec(**column) for column in spec["columns"]),
                    dtype=spec["dtype"],
                    shape=tuple(spec["shape"]),
                )
                for spec in document["inputs"]
            ),
            outputs=tuple(
                OutputSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in document["outputs"]
            ),
        )


@dataclass(frozen=True)
class FileEntry:
    """One file of the model: path below the model's folder, hash and size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a model directory says of itself.

    Attributes:
        framework: "keras", "tensorflow" (SavedModel), or a name of the user's, with a predictor.
        entry: the file or folder that the framework loads, below the model's folder.
        signature: inputs with their columns, and outputs.
        files: every file that loading reads.
        predictor: `package.module:function` that loads the model instead of the framework's own loader.
        metrics: the last line of history.
        entrypoint: what trained it.
        np: ranks that trained it.
        job: fingerprint of the job.
        data: for each dataset its rows and a hash of the source files' names and sizes.
        versions: package -> version.
        run: the Airflow run, or None.
        created: UTC time, ISO 8601.
    """

    framework: str
    entry: str
    signature: Signature
    files: tuple[FileEntry, ...]
    predictor: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    entrypoint: str = ""
    np: int = 1
    job: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, Any] | None = None
    created: str = ""
    format_version: int = FORMAT_VERSION

    def dumps(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def loads(cls, uri: str, text: str) -> Manifest:
        """Read the text of `manifest.json`.

        Raises:
            NotAModelError: not JSON, or not a manifest.
            ModelFormatError: another format version.
        """
        try:
            document = json.loads(text)
            version = document["format_version"]
            if version != FORMAT_VERSION:
                raise ModelFormatError(uri, version, FORMAT_VERSION)
            document["signature"] = Signature.from_dict(document["signature"])
            document["files"] = tuple(FileEntry(**entry) for entry in document["files"])
            return cls(**document)
        except (ValueError, KeyError, TypeError) as error:
            raise NotAModelError(uri, f"its manifest.json cannot be read ({error!r})") from error


def find_manifest(uri: str) -> Manifest | None:
    """The manifest at a URI, or None where there is no complete model."""
    try:
        return read_manifest(uri)
    except NotAModelError:
        return None


def read_manifest(uri: str) -> Manifest:
    """The manifest at a URI.

    Raises:
        NotAModelError: none there, or it cannot be read.
        ModelFormatError: another format version.
    """
    try:
        text = filesystems.read_bytes(filesystems.join(uri, MANIFEST)).decode()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        raise NotAModelError(uri) from None
    return Manifest.loads(uri, text)


def open_model(uri: str) -> tuple[Manifest, Path]:
    """Verify a model and bring it to this machine.

    Args:
        uri: the model's folder. A local one is used where it lies; others are copied to a temporary
            folder, once per process.

    Returns:
        The manifest and the local folder.

    Raises:
        NotAModelError, ModelFormatError, ModelChangedError: it cannot be used.
    """
    manifest = read_manifest(uri)
    folder = filesystems.local_path(uri)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="airflow-hydrogen-model-"))
        filesystems.download(uri, folder)
    _verify(uri, manifest, folder)
    return manifest, folder


def describe_files(folder: Path, names: Iterable[str]) -> tuple[FileEntry, ...]:
    """Hash files below a folder; a name may be a folder, which stands for all of its files."""
    entries = []
    for name in names:
        path = folder / name
        files = sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]
        for file in files:
            entries.append(FileEntry(file.relative_to(folder).as_posix(), _sha256(file), file.stat().st_size))
    return tuple(entries)


def staging_uri(model_uri: str) -> str:
    """Where a model is put together before it is published: a hidden neighbour, other for each attempt."""
    return filesystems.sibling(model_uri, f"publish-{secrets.token_hex(6)}")


def publish(staged_uri: str, model_uri: str, manifest: Manifest, *, keep_checkpoints: bool) -> None:
    """Make a staged model the model at a URI, completely or not at all.

    On a local filesystem the folders are exchanged at once. On an object store, which cannot do that, the
    old manifest goes first and the new one comes last: in between there is no model, never half of one.

    Args:
        staged_uri: folder with the framework's files and the history.
        model_uri: where readers look; its events stay, its checkpoints if asked for.
        manifest: written last.
        keep_checkpoints: keep what training left in `checkpoints/`.
    """
    kept = [EVENTS, *([CHECKPOINTS] if keep_checkpoints else [])]
    staged, target = filesystems.local_path(staged_uri), filesystems.local_path(model_uri)
    if staged is not None and target is not None:
        for name in kept:
            if (target / name).is_dir():
                (target / name).rename(staged / name)
        filesystems.write_bytes(str(staged / MANIFEST), manifest.dumps().encode())
        filesystems.replace_folder(staged, target)
        return
    filesystems.remove(filesystems.join(model_uri, MANIFEST))
    filesystems.move(staged_uri, model_uri)
    if not keep_checkpoints:
        filesystems.remove(filesystems.join(model_uri, CHECKPOINTS))
    filesystems.write_bytes(filesystems.join(model_uri, MANIFEST), manifest.dumps().encode())


def _verify(uri: str, manifest: Manifest, folder: Path) -> None:
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise ModelChangedError(uri, entry.path, "is missing")
        size = path.stat().st_size
        if size != entry.size:
            raise ModelChangedError(uri, entry.path, f"has {size} bytes, its manifest says {entry.size}")
        if _sha256(path) != entry.sha256:
            raise ModelChangedError(uri, entry.path, "has another sha256 than its manifest says")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
