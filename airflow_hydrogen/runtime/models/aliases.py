"""Aliases of models on a store: set at once, looked up by one small read, with all that they have named.

Nothing is locked, since stores have no locks. The file of an alias is replaced as a whole, so that whoever
sets it last wins; what an alias has named is kept in one file for each time that it was set, which nobody
else ever writes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.aliases import SUFFIX, Alias, is_alias
from airflow_hydrogen.contract.errors import AliasedModelError, InvalidUriError, NotAnAliasError
from airflow_hydrogen.runtime.models.directory import find_manifest, hold_model, open_model
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.storage import filesystems

# Airflow's names for the task that a process runs -> ours.
_TASK = {
    "AIRFLOW_CTX_DAG_ID": "dag_id",
    "AIRFLOW_CTX_TASK_ID": "task_id",
    "AIRFLOW_CTX_DAG_RUN_ID": "run_id",
}


@dataclass(frozen=True)
class NamedModel:
    """The model that a URI names.

    Attributes:
        uri: of the model itself.
        version: the one that the alias names; None where there is no alias: whatever lies there.
        alias: the alias, or None.
    """

    uri: str
    version: str | None = None
    alias: str | None = None

    def open(self) -> Manifest:
        """Check that the model is there and whole.

        Returns:
            Its manifest.

        Raises:
            AliasedModelError: the model of the alias is gone, or is another one by now.
            NotAModelError, ModelFormatError, ModelChangedError, ModelReplacedError: it cannot be used.
        """
        if self.alias is None or self.version is None:
            return open_model(self.uri)[0]
        manifest = find_manifest(self.uri)
        if manifest is None or manifest.version != self.version:
            found = manifest.version if manifest else None
            raise AliasedModelError(self.alias, self.uri, self.version, found)
        with hold_model(self.uri, manifest):
            return manifest


def resolve(uri: str) -> NamedModel:
    """The model that a URI names now. Of an alias one small file is read, of a model none.

    Args:
        uri: a model's, or an alias's.

    Raises:
        NotAnAliasError: there is no such alias.
    """
    uri = uris.canonical(uri)
    if not is_alias(uri):
        return NamedModel(uri)
    found = read_alias(uri)
    return NamedModel(found.model_uri, found.model_version, uri)


def read_alias(uri: str) -> Alias:
    """What an alias says.

    Raises:
        NotAnAliasError: there is no such alias.
    """
    found = _find(uri)
    if found is None:
        raise NotAnAliasError(uri)
    return found


def set_alias(uri: str, model_uri: str, *, by: Mapping[str, Any] | None = None) -> Alias:
    """Let an alias name a model from now on.

    Of two who set it at the same time the last one wins, and both are in its history. On HDFS, where a file
    cannot be replaced in one step, let one task at a time set it.

    Args:
        uri: of the alias; its name ends in `.alias`. It is made where there is none.
        model_uri: a published model, or an alias, whose model of now is meant.
        by: who says so, JSON. None: the Airflow task that this process runs, if it runs one.

    Returns:
        What the alias says now; where it has named that very model before, what it said then.

    Raises:
        InvalidUriError: not the name of an alias, or in the folder of the model.
        NotAnAliasError: something else has that name.
        ModelError: there is no whole model.
    """
    uri = uris.canonical(uri)
    if not is_alias(uri):
        raise InvalidUriError(uri, f"is no name of an alias: expected one that ends in {SUFFIX!r}", "alias")
    model = resolve(model_uri)
    if uris.holds(model.uri, uri):
        raise InvalidUriError(
            uri, f"lies in the folder of the model {model.uri}, which the next model there replaces", "alias"
        )
    manifest = model.open()
    before = _find(uri)
    if before is not None:
        _archive(uri, before)  # who said it may have died before that
        if (before.model_uri, before.model_version) == (model.uri, manifest.version):
            return before
    now = Alias(
        model_uri=model.uri,
        model_version=manifest.version,
        set_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        set_by=_task() if by is None else by,
    )
    filesystems.write_bytes(uri, now.dumps().encode())
    _archive(uri, now)
    return now


def history(uri: str) -> Iterator[Alias]:
    """All that an alias has said, the newest first by the clocks of those who said it. Nothing is forgotten.

    Each takes a read when it is asked for.
    """
    current = _find(uri)
    archive = _archive_uri(uri)
    names = {name for name, _size in filesystems.list_files(archive) if not name.startswith(".")}
    named_now = _name(current) if current is not None else ""
    for name in sorted({*names, named_now} - {""}, reverse=True):
        if current is not None and name == named_now:
            yield current
        else:
            entry = uris.join(archive, name)
            yield Alias.loads(entry, filesystems.read_bytes(entry).decode())


def _find(uri: str) -> Alias | None:
    try:
        text = filesystems.read_bytes(uri).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise NotAnAliasError(uri, f"the file cannot be read ({error!r})") from error
    except OSError as error:
        path = uris.local_path(uri)
        if path is not None and path.is_dir():
            raise NotAnAliasError(uri, "it is a folder") from error
        raise
    return Alias.loads(uri, text)


def _archive(uri: str, said: Alias) -> None:
    filesystems.write_bytes(uris.join(_archive_uri(uri), _name(said)), said.dumps().encode())


def _archive_uri(uri: str) -> str:
    return uris.sibling(uri, "history")


def _name(said: Alias) -> str:
    """Of its file in the history: their order is that of time, and no two are the same."""
    digest = hashlib.sha256(said.dumps().encode()).hexdigest()
    return f"{said.set_at.partition('+')[0].replace(':', '')}-{digest[:12]}.json"


def _task() -> dict[str, str]:
    return {name: os.environ[variable] for variable, name in _TASK.items() if variable in os.environ}
