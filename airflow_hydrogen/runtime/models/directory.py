"""The model directory: manifest, signature, publishing at once, verified loading."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import ModelChangedError, NotAModelError
from airflow_hydrogen.runtime.models.manifest import CHECKPOINTS, EVENTS, MANIFEST, FileEntry, Manifest
from airflow_hydrogen.runtime.storage import filesystems, swap
from airflow_hydrogen.runtime.storage.hashing import sha256_of

_READ_BYTES = 1024 * 1024


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
    folder = uris.local_path(uri)
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
            entries.append(
                FileEntry(file.relative_to(folder).as_posix(), sha256_of(file), file.stat().st_size)
            )
    return tuple(entries)


def staging_uri(model_uri: str) -> str:
    """Where a model is put together before it is published: a hidden neighbour, other for each attempt."""
    return uris.sibling(model_uri, f"publish-{secrets.token_hex(6)}")


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
    staged, target = uris.local_path(staged_uri), uris.local_path(model_uri)
    if staged is not None and target is not None:
        for name in kept:
            if (target / name).is_dir():
                (target / name).rename(staged / name)
        filesystems.write_bytes(str(staged / MANIFEST), manifest.dumps().encode())
        swap.replace_folder(staged, target)
        return
    filesystems.remove(uris.join(model_uri, MANIFEST))
    filesystems.move(staged_uri, model_uri)
    if not keep_checkpoints:
        filesystems.remove(uris.join(model_uri, CHECKPOINTS))
    filesystems.write_bytes(uris.join(model_uri, MANIFEST), manifest.dumps().encode())


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
