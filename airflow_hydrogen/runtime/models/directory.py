"""The model directory: manifest, signature, publishing at once, verified loading."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import ModelChangedError, ModelReplacedError, NotAModelError
from airflow_hydrogen.runtime.models import copies
from airflow_hydrogen.runtime.models.manifest import CHECKPOINTS, EVENTS, MANIFEST, FileEntry, Manifest
from airflow_hydrogen.runtime.storage import filesystems, swap
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
    """Check the model that lies at a URI now.

    Returns:
        The manifest and a local folder with its files. That of a model elsewhere is a copy, which another
        process may remove an hour after its last use; `hold_model` keeps it for longer.

    Raises:
        NotAModelError, ModelFormatError, ModelChangedError, ModelReplacedError: it cannot be used.
    """
    manifest = read_manifest(uri)
    with hold_model(uri, manifest) as held:
        return manifest, held.folder


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
