"""Everything that decides the rows of a prepared dataset, part by part.

What an earlier try has prepared is used again only if every part is as it was. The parts are kept as
hashes, so that a marker beside the data holds no argument's value, and by name, so that the log can say
which changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_hydrogen.contract.errors import DatasetChangedError, SourceError
from airflow_hydrogen.contract.jobs import Source
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.data import connected
from airflow_hydrogen.runtime.data.code import source_hashes
from airflow_hydrogen.runtime.data.connected import SameFiles
from airflow_hydrogen.runtime.data.files import Listing
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# How `sources.stage` lays rows out. A new number makes older tries' data be prepared again.
_LAYOUT_VERSION = 2
_FILES = "the source's files"
_CODE = "prepare's code"
# How the rows are laid out, but not which they are.
_LAYOUT = ("the layout's version", "the number of ranks")
_UNKNOWN = ""
_DELTA = "org.apache.spark.sql.delta."
# Spark sets it by itself, to a folder below where the driver was started.
_WAREHOUSE = "spark.sql.warehouse.dir"

_STATUS = re.compile(r"path=(.*?); isDirectory=.*?; length=(\d+);.*?; modification_time=(\d+);")

Recipe = dict[str, str]


class PlanFiles(NamedTuple):
    """The files that a plan reads.

    Attributes:
        digest: hash of their names, sizes and times of change.
        number: how many; those of Delta tables are not counted.
        size: bytes of these.
    """

    digest: str
    number: int
    size: int


def recipe(
    frame: DataFrame,
    source: Source,
    prepare: Callable[..., Any] | None,
    prepare_kwargs: Mapping[str, Any],
    ranks: int,
) -> Recipe:
    """Name of a part -> its hash; an empty one where a part cannot be known.

    Args:
        frame: what is going to be written: its plan says which files it reads.
        source: the job's source.
        prepare, prepare_kwargs: the user's function.
        ranks: size of the gang.
    """
    settings = {
        key: value
        for key, value in _settings(frame.sparkSession)
        if key.startswith("spark.sql.") and key != _WAREHOUSE
    }
    parts: dict[str, Any] = {
        "the layout's version": _LAYOUT_VERSION,
        "the number of ranks": ranks,
        "Spark's SQL settings": settings,
        **{f"the source's {field}": value for field, value in source.to_dict().items()},
        _FILES: None if (found := files_of(frame)) is None else found.digest,
    }
    if prepare is not None:
        name = f"{prepare.__module__}:{getattr(prepare, '__qualname__', type(prepare).__qualname__)}"
        hashes = source_hashes(prepare.__module__)
        parts["prepare"] = name
        parts["prepare_kwargs"] = prepare_kwargs
        parts |= (
            {_CODE: None}
            if hashes is None
            else {f"{_CODE} in {module}": digest for module, digest in hashes.items()}
        )
    return {name: _UNKNOWN if part is None else _hash(part) for name, part in parts.items()}


def _settings(spark: SparkSession) -> Iterable[tuple[str, str]]:
    if is_connect(spark):
        return [(str(key), str(value)) for key, value in spark.conf.getAll.items()]
    return spark.sparkContext.getConf().getAll()


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Why rows that were prepared by one recipe are not those of another; nothing if they are. Pure."""
    unknown = [f"{name} cannot be known" for name, part in now.items() if part == _UNKNOWN]
    names = dict.fromkeys([*now, *before])
    changed = [name for name in names if now.get(name) != before.get(name)]
    return [*unknown, *(f"{name} changed" for name in changed if now.get(name) != _UNKNOWN)]


def fingerprint(recipe: Mapping[str, str]) -> str:
    """One hash of all that decides which rows there are."""
    return _hash({name: part for name, part in recipe.items() if name not in _LAYOUT})


def of_files(listing: Listing, columns: Sequence[str] | None = None) -> str:
    """The fingerprint of files, or of some of their columns, that are read as they lie."""
    return _hash(listing.files if columns is None else [listing.files, columns])


def _hash(part: object) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()


def files_of(frame: DataFrame) -> PlanFiles | None:
    """All files that a plan reads, with sizes and times of change; None where it reads something else too.

    What is no file (a table of a database, rows that `prepare` made itself) has nothing by which to see
    that it changed. A Delta table's version says which files it is made of.
    """
    if is_connect(frame):
        return _files_on_connect(frame)
    found: set[str] = set()
    for leaf in _leaves(frame):
        kind = leaf.getClass().getSimpleName()
        if kind in ("OneRowRelation", "Range"):
            continue
        if kind != "LogicalRelation" or (location := _location(leaf)) is None:
            return None
        if (table := _delta_table(location)) is not None:
            found.add(f"{table.path} version={table.version}")
            continue
        if (files := _listed(frame, location)) is None:
            return None
        found.update(files)
    lengths = [int(length) for status in found for length in re.findall(r"; length=(\d+);", status)]
    return PlanFiles(_hash(sorted(found)), len(lengths), sum(lengths))


def _files_on_connect(frame: DataFrame) -> PlanFiles | None:
    """Those that the server names; of a plan that reads no files it names none."""
    found = connected.files_of(frame)
    if not found:
        return None
    listed = sorted((uri, size, changed) for uri, (size, changed) in found.items())
    return PlanFiles(_hash(listed), len(listed), sum(size for _, size, _ in listed))


def same_files(frame: DataFrame, where: str) -> Callable[[], None]:
    """What is to be called once a frame has been read: see `require_same_files`.

    Args:
        frame: what is going to be read.
        where: the source, for messages.
    """
    if is_connect(frame):
        return SameFiles(frame, where)
    return partial(require_same_files, frame, where)


def require_same_files(frame: DataFrame, where: str) -> None:
    """Look whether files that Spark has read were written anew under their names while it read.

    Then some rows may be of the old files and some of the new ones. Files that have come since were not
    read, and of those that are gone Spark had all rows, or has failed. Delta never writes a file twice.

    Args:
        frame: what was read; its plan lists its files anew.
        where: the source, for messages.

    Raises:
        DatasetChangedError: with the first of them.
        SourceError: the files cannot be listed any more.
    """
    for location, asked in _scans(frame):
        if _delta_table(location) is not None:
            continue
        before = _by_path(frame, location, asked)
        try:
            location.refresh()
            now = _by_path(frame, location, asked)
        except spark_errors() as error:
            if re.search("FileNotFoundException|PATH_NOT_FOUND", str(error)):
                continue  # a folder that was read is gone
            reason = f"whether its files have changed meanwhile is not known: {root_cause(error)}"
            raise SourceError(where, reason) from error
        for path, seen in before.items():
            if now.get(path, seen) != seen:
                raise DatasetChangedError(where, path, "it was written anew")


def _scans(frame: DataFrame) -> Iterator[tuple[Any, list[Any]]]:
    """The lists of files that a plan reads, and what it asks of the partitions of each."""
    execution, jvm = frame._jdf.queryExecution(), frame.sparkSession._jvm
    subqueries = jvm.org.apache.spark.sql.catalyst.expressions.SubqueryExpression  # type: ignore[union-attr]
    for leaf in _sequence(execution.sparkPlan().collectLeaves()):
        if leaf.getClass().getSimpleName() == "FileSourceScanExec":
            asked = _sequence(leaf.partitionFilters())
            yield leaf.relation().location(), [part for part in asked if not subqueries.hasSubquery(part)]
    for plan in _sequence(execution.optimizedPlan().subqueriesAll()):
        for leaf in _sequence(plan.collectLeaves()):
            is_relation = leaf.getClass().getSimpleName() == "LogicalRelation"
            if is_relation and (location := _location(leaf)) is not None:
                yield location, []


def _leaves(frame: DataFrame) -> list[Any]:
    """What a plan reads, its subqueries included."""
    plan = frame._jdf.queryExecution().optimizedPlan()
    plans = [plan, *_sequence(plan.subqueriesAll())]
    return [leaf for part in plans for leaf in _sequence(part.collectLeaves())]


def _listed(frame: DataFrame, location: Any) -> list[str] | None:
    """The files of a relation, each with path, length and modification_time; None where nobody lists them."""
    if location.getClass().getSimpleName() == "CatalogFileIndex":  # of Hive: no partition was left out
        location = location.filterPartitions(frame.sparkSession._jvm.PythonUtils.toSeq([]))  # type: ignore[union-attr]
    if location.getClass().getSimpleName() != "InMemoryFileIndex":
        return None
    # One call for all files.
    statuses = str(location.allFiles().mkString("\n"))
    return re.sub(r"access_time=\d+", "", statuses).splitlines()


def _by_path(frame: DataFrame, location: Any, asked: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """Path -> length and time of change of the files in the partitions that a plan asks for."""
    sequence = frame.sparkSession._jvm.PythonUtils.toSeq  # type: ignore[union-attr]
    # One call for all files.
    statuses = str(location.listFiles(sequence(list(asked)), sequence([])).mkString("\n"))
    return {path: (length, changed) for path, length, changed in _STATUS.findall(statuses)}


class DeltaTable(NamedTuple):
    """A Delta table as a plan reads it."""

    path: str
    version: int


def table_version(frame: DataFrame) -> int | None:
    """The version of the one Delta table that a frame reads; None where it reads something else."""
    plan = frame._jdf.queryExecution().analyzed()
    while plan.getClass().getSimpleName() == "SubqueryAlias":
        plan = plan.child()
    if plan.getClass().getSimpleName() != "LogicalRelation":  # a view, for example
        return None
    location = _location(plan)
    table = None if location is None else _delta_table(location)
    return None if table is None else table.version


def _location(leaf: Any) -> Any:
    """The list of files of a relation that is made of files; None where it is made of something else."""
    relation = leaf.relation()
    kind = relation.getClass().getName()
    # Delta's own is a nameless subclass.
    is_of_files = kind.endswith(".HadoopFsRelation") or kind.startswith(_DELTA)
    return relation.location() if is_of_files else None


def _delta_table(location: Any) -> DeltaTable | None:
    if not location.getClass().getName().startswith(_DELTA):
        return None
    return DeltaTable(str(location.path()), int(location.version()))


def _sequence(items: Any) -> list[Any]:
    return [items.apply(place) for place in range(items.size())]
