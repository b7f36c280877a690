"""What is made of a model once for a host, and mapped by all processes of one user that score with it.

It is kept as copies of models are (`copies`). Nobody writes into a file that is mapped: files are made aside,
get their place by one rename, and are removed by their names, so that whoever has mapped them keeps them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract.errors import ModelChangedError, UnwritableUriError
from airflow_hydrogen.runtime.models import copies
from airflow_hydrogen.runtime.models.directory import HeldModel

SHARED_BYTES = 2**25
"""From how many bytes on weights are shared: fewer are little of a process's memory."""

REFUSED_S = 3600.0
"""For how long nothing is made again where that has failed, in seconds: a full disk may have been why."""

CAN_SHARE = sys.platform == "linux"

_NOTE = "copy.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # hosts may have one temporary folder


@contextmanager
def hold(held: HeldModel, kind: str, make: Callable[[Path], str | None]) -> Iterator[Path | None]:
    """A folder with what was made of a model, which is not removed for as long as the block lasts.

    Args:
        held: the model.
        kind: of what is made, with the versions of all that makes it.
        make: fills an empty folder, or returns why nothing can be made of this model.

    Returns:
        The folder. None where nothing can be made, and each process has weights of its own, which is said.

    Raises:
        ModelChangedError: the model was written while it was read.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(
                copies.hold(
                    f"{held.manifest.version}-{kind}-{_BOOT.read_text().strip()}",
                    fetch=lambda folder: _fetch(held, folder, make),
                    verify=lambda folder: _verify(held.uri, folder),
                )
            )
            refusal = _noted(held.uri, folder)["refusal"]
        except (OSError, UnwritableUriError) as error:  # there is no room for it: scoring needs none
            refusal = str(error)
        if refusal is not None:
            print(f"airflow-hydrogen: this Python worker has weights of its own: {refusal}", flush=True)
        yield folder if refusal is None else None


def _fetch(held: HeldModel, folder: Path, make: Callable[[Path], str | None]) -> None:
    # In a folder of its own: when this process is killed, one that it has started lives for a moment longer.
    with tempfile.TemporaryDirectory(dir=folder) as name:
        refusal = make(Path(name))
        held.require_untouched()
        for file in Path(name).iterdir() if refusal is None else ():
            file.chmod(0o400)
            file.rename(folder / file.name)
    files = {file.name: _identity(file) for file in folder.iterdir()}
    note = {"files": files, "refusal": refusal, "made": time.time()}
    (folder / _NOTE).write_text(json.dumps(note))


def _verify(uri: str, folder: Path) -> None:
    note = _noted(uri, folder)
    if note["refusal"] is not None and time.time() - note["made"] > REFUSED_S:
        raise ModelChangedError(uri, _NOTE, "says why nothing was made, which may be otherwise by now")
    for name, identity in note["files"].items():
        if not (folder / name).is_file() or _identity(folder / name) != identity:
            raise ModelChangedError(uri, name, "was written or removed after it was made for this host")


def _identity(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _noted(uri: str, folder: Path) -> dict[str, Any]:
    """Which files a folder has, and why it has none."""
    try:
        note: dict[str, Any] = json.loads((folder / _NOTE).read_text())
    except (FileNotFoundError, ValueError):
        raise ModelChangedError(uri, _NOTE, "is missing, or cannot be read") from None
    return note
