"""The model directory: manifest, signature, publishing at once, verified loading."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from airflow_hydrogen.contract.errors import FilesLostError, ModelChangedError, NotAModelError
from airflow_hydrogen.runtime.models.manifest import CHECKPOINTS, EVENTS, MANIFEST, FileEntry, Manifest
from airflow_hydrogen.runtime.storage import filesystems, swap, uris
from airflow_hydrogen.runtime.storage.hashing import sha256_of


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
        text = filesystems.read_bytes(uris.join(uri, MANIFEST)).decode()
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
    while True:
        try:
            return manifest, _verified(uri, manifest)
        except ModelChangedError:
            newer = read_manifest(uri)
            if newer == manifest:
                raise
            manifest = newer  # another model was published there while this one was looked at


def describe_files(folder: Path, names: Iterable[str]) -> tuple[FileEntry, ...]:
    """Hash files below a folder; a name may be a folder, which stands for all of its files."""
    entries = []
    for name in names:
        path = folder / name
        files = sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]
        for file in files:
            entries.append(
                FileEntry(file.relative_to(folder).as_posix(), sha256_of(file), file.stat().st_size)
            )
    return tuple(entries)


def staging_uri(model_uri: str) -> str:
    """Where a model is put together before it is published: a hidden neighbour, other for each attempt."""
    return uris.sibling(model_uri, f"publish-{secrets.token_hex(6)}")


def publish(staged_uri: str, model_uri: str, manifest: Manifest, *, keep_checkpoints: bool) -> None:
    """Make a staged model the model at a URI, completely or not at all.

    On a local filesystem the folders are exchanged at once. Where that cannot be done, on object stores
    above all, the new files get a folder of their own below the model's, the manifest that names them
    takes the place of the old one in one step, and the old files are removed after that.

    Args:
        staged_uri: folder with the framework's files and the history.
        model_uri: where readers look; its events stay, its checkpoints if asked for.
        manifest: written last. Its paths are those of the staged folder.
        keep_checkpoints: keep what training left in `checkpoints/`.

    Raises:
        FilesLostError: what was brought in is not what was staged; the old model is untouched.
    """
    kept = [EVENTS, *([CHECKPOINTS] if keep_checkpoints else [])]
    staged, target = uris.local_path(staged_uri), uris.local_path(model_uri)
    if staged is not None and target is not None:
        for name in kept:
            if (target / name).is_dir() and not (staged / name).exists():
                # Not moved: they would be lost with a process that dies before the exchange.
                shutil.copytree(target / name, staged / name, copy_function=_link)
        filesystems.write_bytes(str(staged / MANIFEST), manifest.dumps().encode())
        if swap.exchange(staged, target):
            return
    inner = f"files-{secrets.token_hex(6)}"
    for name, _size in filesystems.list_files(staged_uri):
        if name != MANIFEST and name.partition("/")[0] not in kept:
            filesystems.transfer(uris.join(staged_uri, name), uris.join(model_uri, inner, name))
    sizes = dict(filesystems.list_files(uris.join(model_uri, inner)))
    if lost := [entry.path for entry in manifest.files if sizes.get(entry.path) != entry.size]:
        raise FilesLostError(model_uri, lost)
    placed = dataclasses.replace(
        manifest,
        entry=f"{inner}/{manifest.entry}",
        files=tuple(dataclasses.replace(entry, path=f"{inner}/{entry.path}") for entry in manifest.files),
    )
    filesystems.write_bytes(uris.join(model_uri, MANIFEST), placed.dumps().encode())
    for name, _size in filesystems.list_files(model_uri):
        if name != MANIFEST and name.partition("/")[0] not in (inner, *kept):
            filesystems.remove(uris.join(model_uri, name))
    filesystems.remove(staged_uri)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without links
        shutil.copy2(source, target)


def _verified(uri: str, manifest: Manifest) -> Path:
    """The local folder of a model, or of a temporary copy, once its files are those of the manifest."""
    folder = uris.local_path(uri)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="airflow-hydrogen-model-"))
        for entry in manifest.files:
            try:
                filesystems.download_file(uris.join(uri, entry.path), folder / entry.path)
            except FileNotFoundError:
                raise ModelChangedError(uri, entry.path, "is missing") from None
    _verify(uri, manifest, folder)
    return folder


def _verify(uri: str, manifest: Manifest, folder: Path) -> None:
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise ModelChangedError(uri, entry.path, "is missing")
        size = path.stat().st_size
        if size != entry.size:
            raise ModelChangedError(uri, entry.path, f"has {size} bytes, its manifest says {entry.size}")
        if sha256_of(path) != entry.sha256:
            raise ModelChangedError(uri, entry.path, "has another sha256 than its manifest says")
