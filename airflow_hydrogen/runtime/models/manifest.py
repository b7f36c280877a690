"""What a model directory says of itself: `manifest.json`, and the signature in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from airflow_hydrogen.contract.errors import ModelFormatError, NotAModelError
from airflow_hydrogen.contract.signatures import FORMAT_VERSION, Signature

HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"
DATA = "data"
EVENTS = "events"


@dataclass(frozen=True)
class FileEntry:
    """One file of the model: path below the model's folder, hash and size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Twin:
    """The same model for another engine, which was found to predict the same before it was published.

    Attributes:
        engine: what runs it: "onnx".
        entry: its file, below the model's folder.
        rows: of the training data, on which both were compared.
        tolerance: how far apart their predictions might be, as a share of the largest of an output.
        difference: how far apart they were.
    """

    engine: str
    entry: str
    rows: int
    tolerance: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a model directory says of itself.

    Attributes:
        framework: "keras", "tensorflow" (SavedModel), "onnx", "torch" (a program of
            torch.export), or a name of the user's, with a predictor.
        entry: the file or folder that the framework loads, below the model's folder.
        signature: inputs with their columns, and outputs.
        files: every file that loading reads.
        predictor: `package.module:function` that loads the model instead of the framework's own loader.
        modules: what is imported before the framework's own loader runs: they register custom layers.
        twins: the same model for other engines.
        metrics: the last line of history.
        entrypoint: what trained it.
        np: ranks that trained it; 0: it was trained elsewhere.
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
    modules: tuple[str, ...] = ()
    twins: tuple[Twin, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    entrypoint: str = ""
    np: int = 1
    job: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, Any] | None = None
    created: str = ""
    format_version: int = FORMAT_VERSION

    @cached_property
    def version(self) -> str:
        """The SHA-256 of `manifest.json`. It holds the files' hashes, so one version is one model."""
        return _sha256(self.dumps())

    def twin(self, engine: str) -> Twin | None:
        """The same model for another engine, where there is one."""
        return next((twin for twin in self.twins if twin.engine == engine), None)

    def dumps(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def loads(cls, uri: str, text: str) -> Manifest:
        """Read the text of `manifest.json`.

        Raises:
            NotAModelError: not JSON, not a manifest, or one of files that are not in the model's folder.
            ModelFormatError: another format version.
        """
        try:
            document = json.loads(text)
            version = document["format_version"]
            if version != FORMAT_VERSION:
                raise ModelFormatError(uri, version, FORMAT_VERSION)
            document["signature"] = Signature.from_dict(document["signature"])
            document["files"] = tuple(FileEntry(**entry) for entry in document["files"])
            document["modules"] = tuple(document.get("modules", ()))
            document["twins"] = tuple(Twin(**twin) for twin in document.get("twins", ()))
            manifest = cls(**document)
            # Of this very text: another version of this package may write the same differently.
            vars(manifest)["version"] = _sha256(text)
            _require_inside(manifest)
            return manifest
        except (ValueError, KeyError, TypeError) as error:
            raise NotAModelError(uri, f"its manifest.json cannot be read ({error!r})") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _require_inside(manifest: Manifest) -> None:
    """Refuse names that lead out of the model's folder, and entries that are none of its files."""
    names = [entry.path for entry in manifest.files]
    entries = [manifest.entry, *(twin.entry for twin in manifest.twins)]
    for name in (*names, *entries):
        path = PurePosixPath(name)
        if (
            name != str(path)
            or "\0" in name
            or path.is_absolute()
            or not {"..", "."}.isdisjoint({name, *path.parts})
        ):
            raise ValueError(f"{name!r} is not the name of a file in the model's folder")
    for entry in entries:
        if not any(f"{name}/".startswith(f"{entry}/") for name in names):
            raise ValueError(f"its entry {entry!r} is none of its files")
