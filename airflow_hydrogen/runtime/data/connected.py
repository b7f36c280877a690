"""Files that a plan on a Spark Connect server reads: named by the server, looked at on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import DatasetChangedError
from airflow_hydrogen.runtime.storage import filesystems

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Found = Mapping[str, tuple[int, int | None]]
"""URI of a file -> its bytes, and when it was changed, in nanoseconds."""


def files_of(frame: DataFrame) -> Found:
    """The files that a plan reads, those of them that this machine sees."""
    return _look(uris.canonical(unquote(uri)) for uri in frame.inputFiles())


class SameFiles:
    """Looks whether files that a plan reads were written anew since this was made.

    Args:
        frame: the plan.
        where: the source, for messages.
    """

    def __init__(self, frame: DataFrame, where: str) -> None:
        self._where, self._before = where, files_of(frame)

    def __call__(self) -> None:
        """Look again.

        Raises:
            DatasetChangedError: with the first of them.
        """
        for uri, now in _look(self._before).items():
            if now != self._before[uri]:
                raise DatasetChangedError(self._where, uri, "it was written anew")


def _look(files: Iterable[str]) -> Found:
    from pyarrow.fs import FileType

    found = {}
    for uri in files:
        filesystem, path = filesystems.resolve(uri)
        info = filesystem.get_file_info(path)
        if info.type == FileType.File:
            found[uri] = (info.size, info.mtime_ns)
    return found
