"""The model directory: manifest, signature, publishing at once, verified loading."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    FilesLostError,
    InvalidUriError,
    ModelChangedError,
    ModelReplacedError,
    NotAModelError,
)
from airflow_hydrogen.contract.signatures import MANIFEST
from airflow_hydrogen.runtime.models import copies
from airflow_hydrogen.runtime.models.manifest import CHECKPOINTS, DATA, EVENTS, FileEntry, Manifest
from airflow_hydrogen.runtime.storage import filesystems, swap
from airflow_hydrogen.runtime.storage.hashing import sha256_of

_STAGING = re.compile(r"publish-[0-9a-f]{12}")
# What there is in the folder of a model before its first manifest: of runs, and of a publication that died.
_OF_A_RUN = re.compile(r"[0-9a-f]{12}")
_BROUGHT = re.compile(r"files-[0-9a-f]{12}")
_SHOWN = 3


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
    """Check the model that lies at a URI now.

    Returns:
        The manifest and a local folder with its files. That of a model elsewhere is a copy, which another
        process may remove an hour after its last use; `hold_model` keeps it for longer.

    Raises:
        NotAModelError, ModelFormatError, ModelChangedError, ModelReplacedError: it cannot be used.
    """
    while True:
        manifest = read_manifest(uri)
        try:
            with hold_model(uri, manifest) as held:
                return manifest, held.folder
        except ModelReplacedError:
            continue  # another one was published while this one was looked at


@dataclass(frozen=True)
class HeldModel:
    """One version of a model on this machine.

    Attributes:
        uri: where it was published.
        manifest: its manifest.
        folder: its files, which were found to be what the manifest says.
        identities: which files these were.
    """

    uri: str
    manifest: Manifest
    folder: Path
    identities: Sequence[tuple[int, ...] | None]

    def require_untouched(self) -> None:
        """Raise ModelChangedError where other files lie there by now: those were loaded, maybe."""
        for entry, before, now in zip(
            self.manifest.files, self.identities, _identities(self.manifest, self.folder), strict=True
        ):
            if before != now:
                raise ModelChangedError(self.uri, entry.path, "was written while it was read")


@contextmanager
def hold_model(uri: str, manifest: Manifest) -> Iterator[HeldModel]:
    """Bring one version of a model to this machine and keep it for as long as the block lasts.

    Args:
        uri: the model's folder. A local one is used where it lies; of others this host has one copy.
        manifest: of the version that is wanted, whatever lies at the URI by now.

    Raises:
        ModelReplacedError: the files are not there any more, because another model was published.
        ModelChangedError: that model is still the one that is published, but a file was damaged.
    """
    folder = uris.local_path(uri)
    with ExitStack() as stack:
        with pinned(uri, manifest):
            if folder is not None:
                # Looked at before they are read: a folder that takes the place of this one has others.
                identities = _identities(manifest, folder)
                _verify(uri, manifest, folder)
            else:
                folder = stack.enter_context(
                    copies.hold(
                        manifest.version,
                        fetch=lambda folder: _download(uri, manifest, folder),
                        verify=lambda folder: _verify(uri, manifest, folder),
                    )
                )
                identities = _identities(manifest, folder)
        yield HeldModel(uri, manifest, folder, identities)


@contextmanager
def pinned(uri: str, manifest: Manifest) -> Iterator[None]:
    """Tell an error in the block that comes of another model at the URI from one of this model.

    Raises:
        ModelReplacedError: in the place of any other error, where another model, or none, is published now.
    """
    try:
        yield
    except Exception as error:
        now = find_manifest(uri)
        if now is None or now.version != manifest.version:
            raise ModelReplacedError(uri, manifest.version, now.version if now else None) from error
        raise


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


def sweep_staging(model_uri: str) -> None:
    """Remove what was put together for a model and not published, because its application was killed.

    Nobody else may work at the URI.
    """
    for left in filesystems.list_siblings(model_uri, _STAGING):
        filesystems.remove(left)


def require_replaceable(model_uri: str) -> None:
    """Find out that a folder holds other things than a model, all of which a publication would remove.

    What is hidden does not count.

    Raises:
        InvalidUriError: naming some of them.
    """
    found = [name for name, _ in filesystems.list_names(model_uri) if not name.startswith(".")]
    if MANIFEST in found and not _is_another_manifest(model_uri):
        return
    others = [
        name for name in found if name not in (CHECKPOINTS, DATA, EVENTS) and not _BROUGHT.fullmatch(name)
    ]
    for folder in {CHECKPOINTS, DATA} & set(found):
        inner = [name for name, _ in filesystems.list_names(uris.join(model_uri, folder))]
        others += [f"{folder}/{name}" for name in inner if not _OF_A_RUN.fullmatch(name)]
    if others:
        shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        raise InvalidUriError(
            model_uri,
            f"is a folder without a model that holds {shown}: a model takes the place of all that is there. "
            "Name a folder of its own",
            "model_uri",
        )


def _is_another_manifest(model_uri: str) -> bool:
    """Whether `manifest.json` is that of something else. One that cannot be read may be a model's."""
    try:
        return "format_version" not in json.loads(filesystems.read_bytes(uris.join(model_uri, MANIFEST)))
    except (ValueError, TypeError, FileNotFoundError):
        return False


def publish(staged_uri: str, model_uri: str, manifest: Manifest, *, keep_checkpoints: bool) -> Manifest:
    """Make a staged model the model at a URI, completely or not at all.

    On a local filesystem the folders are exchanged at once. Where that cannot be done, on object stores
    above all, the new files get a folder of their own below the model's, the manifest that names them
    takes the place of the old one in one step, and the old files are removed after that.

    Args:
        staged_uri: folder with the framework's files and the history.
        model_uri: where readers look; its events stay, its checkpoints if asked for.
        manifest: written last. Its paths are those of the staged folder.
        keep_checkpoints: keep what training left in `checkpoints/`.

    Returns:
        The manifest as it lies at the URI.

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
            return manifest
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
        twins=tuple(dataclasses.replace(twin, entry=f"{inner}/{twin.entry}") for twin in manifest.twins),
        files=tuple(dataclasses.replace(entry, path=f"{inner}/{entry.path}") for entry in manifest.files),
    )
    filesystems.write_bytes(uris.join(model_uri, MANIFEST), placed.dumps().encode())
    for name, _size in filesystems.list_files(model_uri):
        if name != MANIFEST and name.partition("/")[0] not in (inner, *kept):
            filesystems.remove(uris.join(model_uri, name))
    filesystems.remove(staged_uri)
    return placed


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without links
        shutil.copy2(source, target)


def _download(uri: str, manifest: Manifest, folder: Path) -> None:
    for entry in manifest.files:
        path = folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            filesystems.download_file(uris.join(uri, entry.path), path)
        except FileNotFoundError:
            raise ModelChangedError(uri, entry.path, "is missing") from None


def _identities(manifest: Manifest, folder: Path) -> list[tuple[int, ...] | None]:
    """Which files lie under the names of the manifest; None for one that is not there."""
    found: list[tuple[int, ...] | None] = []
    for entry in manifest.files:
        try:
            file = (folder / entry.path).stat()
            found.append((file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns))
        except (FileNotFoundError, NotADirectoryError):
            found.append(None)
    return found


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
