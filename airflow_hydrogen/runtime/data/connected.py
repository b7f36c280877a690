"""Files that a plan on a Spark Connect server reads: named by the server, looked at on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import DatasetChangedError
from airflow_hydrogen.runtime.storage import filesystems

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Found = Mapping[str, tuple[int, int | None]]
"""URI of a file -> its bytes, and when it was changed, in nanoseconds."""

_PATTERN = re.compile(r"[*?{\[\\]")
_PLANS_KEPT = "spark.connect.session.planCache.enabled"
# A table of a catalog, in the text of a plan; what a query or a user calls so has no dot.
_TABLE = re.compile(
    r"^\W*SubqueryAlias ((?:[^\s`.]+|`(?:[^`]|``)+`)(?:\.(?:[^\s`.]+|`(?:[^`]|``)+`))+)$", re.M
)


def refresh_tables(frame: DataFrame) -> None:
    """Have a plan read its tables as they are now.

    A session keeps the files of a table that it has read, as long as it lives: those that have come since
    would be left out.

    Args:
        frame: the plan; what it was resolved to is not used any more.
    """
    connected: Any = frame
    client = connected.sparkSession.client
    text = client.explain_string(connected._plan.to_proto(client), explain_mode="extended").partition(
        "== Analyzed Logical Plan =="
    )[2]
    tables = dict.fromkeys(_TABLE.findall(text.partition("== Optimized Logical Plan ==")[0]))
    if not tables:
        return
    frame.sparkSession.conf.set(_PLANS_KEPT, "false")
    for table in tables:
        frame.sparkSession.catalog.refreshTable(table)


def refresh_files(spark: SparkSession, uri: str) -> None:
    """Have the files of a folder read as they are now, whoever on the server has cached rows of them.

    Args:
        spark: the session.
        uri: as Spark is told it, a pattern too.
    """
    plain = _PATTERN.split(uri, maxsplit=1)[0]
    spark.catalog.refreshByPath(uri if plain == uri else plain[: plain.rfind("/") + 1])


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
    """A client of a store takes long to be made: one for each folder."""
    from pyarrow.fs import FileType

    folders: dict[str, list[str]] = {}
    for uri in files:
        folders.setdefault(uri.rpartition("/")[0], []).append(uri)
    found = {}
    unseen: set[str] = set()
    for folder, named in folders.items():
        store = "/".join(named[0].split("/", 3)[:3])
        if store in unseen:
            continue
        try:
            filesystem, path = filesystems.resolve(folder or "/")
            infos = filesystem.get_file_info(
                [f"{path.rstrip('/')}/{uri.rpartition('/')[2]}" for uri in named]
            )
        except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among these
            unseen.add(store)
            print(f"airflow-hydrogen: changes of {named[0]} are not seen from here: {error}", flush=True)
            continue
        for uri, info in zip(named, infos, strict=True):
            if info.type == FileType.File:
                found[uri] = (info.size, info.mtime_ns)
    return found
