"""A partition of a Hive table: rows are staged beside the table, and the metastore then names their folder.

Every try has a folder of its own in the partition's, `hydrogen-<time>-<token>`. One change of the metastore
makes it the partition's location, whatever store that is on: readers find the old rows or the new ones.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    FilesLostError,
    InvalidJobError,
    MetastoreRefusedError,
    PartitionTakenError,
    TableMismatchError,
)
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.data.counting import stage
from airflow_hydrogen.runtime.data.sources import quoted
from airflow_hydrogen.runtime.sinks import tables
from airflow_hydrogen.runtime.sinks.staged import StagedFiles, replacing
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors
from airflow_hydrogen.runtime.storage import filesystems, partition_files, swap
from airflow_hydrogen.runtime.storage.swap import Replacement

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructField, StructType

log = logging.getLogger(__name__)

_FORMATS = {
    "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe": "parquet",
    "org.apache.hadoop.hive.ql.io.orc.OrcSerde": "orc",
}
_FOLDER = re.compile(r"hydrogen-(\d{19})-[0-9a-f]{12}")
_NOTE = "_hydrogen.json"
_NO_PARTITION = "PARTITIONS_NOT_FOUND"
_NO_NAME = ("SCHEMA_NOT_FOUND", "PARSE_SYNTAX_ERROR", "REQUIRES_SINGLE_PART_NAMESPACE")
# Hive answers questions by these without a look at the files.
_STATISTICS = ("COLUMN_STATS_ACCURATE", "numRows", "rawDataSize")


@contextmanager
def placing(spark: SparkSession, sink: Sink, run: Run | None) -> Iterator[Rows]:
    """Begin a try to replace a partition of a table.

    Args:
        spark: the session.
        sink: the table.
        run: the Airflow run, or None.

    Raises:
        InvalidJobError: the session has no metastore, or the table cannot be written.
        PartitionTakenError: a newer try has begun meanwhile.
    """
    table = Table(spark, sink)
    place = tables.place(table.location(), sink, run)
    with replacing(place, run, str(sink)) as replacement:
        yield Rows(table, replacement)


class Rows(StagedFiles):
    """The rows of one try.

    Args:
        table: where they go.
        replacement: of the place that they are staged beside.
    """

    by_tasks = None  # rows are fitted to the table by Spark

    def __init__(self, table: Table, replacement: Replacement) -> None:
        super().__init__(str(table.sink), replacement)
        self._table = table
        self._folder = _next_folder(filesystems.list_folders(table.base()), replacement.token)
        self._schema: StructType | None = None

    def stage(self, frame: DataFrame, notes: str | None) -> tuple[int, list[str]]:
        """Write the rows to a hidden neighbour of the table; see `Placement`.

        Raises:
            TableMismatchError: they do not fit the table.
            ColumnTypeError: a value of the partition is none of its column's type.
        """
        frame = self._table.fitted(frame, notes)
        self._schema = (frame if notes is None else frame.drop(notes)).schema
        return stage(frame, self._replacement.staged, notes, self._table.format())

    def count(self) -> int:
        """The rows in the files that were staged."""
        if self._table.format() == "parquet":
            return super().count()
        return _count_orc_rows(self._replacement.staged)

    def commit(self, *, rows: int, model: str | None) -> None:
        """Bring the files into the partition's folder, and name theirs to the metastore.

        Raises:
            FilesLostError: what was brought in is not what was staged.
            MetastoreRefusedError: with what it says, such as that the table is gone.
            PartitionTakenError: a newer try has begun, or has committed.
        """
        try:
            self._put_in_place(rows, model)
        except spark_errors() as error:
            raise MetastoreRefusedError(self.name, root_cause(error)) from error

    def _put_in_place(self, rows: int, model: str | None) -> None:
        assert self._schema is not None, "nothing was staged"
        self.require_owner()
        self._table.make(self._schema)
        base = self._table.base()
        folder = uris.join(base, self._folder)
        note = {"model_uri": model, **tables.label_of(self._schema)}
        note |= {"run": self._replacement.run, "rows": rows}
        try:
            self._bring(folder, note)
            self.require_owner()
            self._table.point(folder)
        except Exception:
            if not self._table.points_to(folder):
                swap.sweep(folder)
            raise
        # A try that was stopped for long after it had looked who owns the partition may be too late: the
        # folder of a newer one is there then, and whole.
        newest = _newest(base)
        if newest != self._folder:
            self._table.point(uris.join(base, newest))
            raise PartitionTakenError(self.name, None)
        _sweep_others(base, self._folder)

    def _bring(self, folder: str, note: Mapping[str, Any]) -> None:
        staged = partition_files.listed_files(self._replacement.staged)
        places = {
            uris.join(self._replacement.staged, name): uris.join(folder, name) for name, _size in staged
        }
        filesystems.transfer_all(places)
        # Last, because it says that the folder is whole; and there is a folder where there are no rows.
        filesystems.write_bytes(uris.join(folder, _NOTE), json.dumps(note, indent=1).encode())
        there = dict(filesystems.list_files(folder))
        if lost := [name for name, size in staged if there.get(name) != size]:
            raise FilesLostError(folder, lost)


def _count_orc_rows(uri: str) -> int:
    """Rows of the ORC files in a folder, from their footers."""
    from pyarrow import orc

    total = 0
    for name, _size in partition_files.listed_files(uri):
        filesystem, path = filesystems.resolve(uris.join(uri, name))
        with filesystem.open_input_file(path) as file:
            total += orc.ORCFile(file).nrows
    return total


def _next_folder(names: Iterable[str], token: str) -> str:
    """A try's folder: by its name later than those that are there, whatever this machine's clock says."""
    there = [int(found[1]) for name in names if (found := _FOLDER.fullmatch(name))]
    return f"hydrogen-{max([time.time_ns(), *(number + 1 for number in there)]):019d}-{token}"


def _newest(base: str) -> str:
    """The newest folder of a partition that is whole."""
    folders = [name for name in filesystems.list_folders(base) if _FOLDER.fullmatch(name)]
    return max(name for name in folders if filesystems.exists(uris.join(base, name, _NOTE)))


def _sweep_others(base: str, own: str) -> None:
    """Remove old rows, and what tries left behind that died; a newer try's folder stays.

    The rows are in place: what cannot be looked for now is left to the next try.
    """
    try:
        folders, files = filesystems.list_folders(base), filesystems.list_files(base)
    except OSError as error:
        log.warning("leftovers in %s stay until the next run writes there: %s", base, error)
        return
    for folder in folders:
        if not (_FOLDER.fullmatch(folder) and folder >= own):
            swap.sweep(uris.join(base, folder))
    for name, _size in files:
        if "/" not in name:
            swap.sweep(uris.join(base, name))


class Table:
    """A table of the metastore, which need not exist, and one partition of it.

    Args:
        spark: the session.
        sink: the table and the partition.

    Raises:
        InvalidJobError: the session has no metastore, or the table is of a kind that cannot be written.
        MetastoreRefusedError: the metastore does not answer.
    """

    def __init__(self, spark: SparkSession, sink: Sink) -> None:
        self.spark, self.sink = spark, sink
        self._spelled: dict[str, str] | None = None
        if spark.conf.get("spark.sql.catalogImplementation", "") != "hive":
            raise InvalidJobError(
                f"sink {sink} needs a Spark with Hive's metastore: spark.sql.catalogImplementation=hive, "
                "which the operators set, and spark.hadoop.hive.metastore.uris"
            )
        state = spark._jsparkSession.sessionState()
        self._catalog = state.catalog()
        try:
            self._identifier = state.sqlParser().parseTableIdentifier(str(sink.table_name))
            self._found = self._metadata()
            self._default = self._catalog.defaultTablePath(self._identifier)
        except spark_errors() as error:
            reason = root_cause(error)
            if any(known in reason for known in _NO_NAME):
                raise InvalidJobError(f"sink {sink} cannot be opened: {reason}") from error
            raise MetastoreRefusedError(str(sink), reason) from error
        if self._found is not None:
            self._require_writable()

    def _metadata(self) -> Any:
        there = self._catalog.tableExists(self._identifier)
        return self._catalog.getTableMetadata(self._identifier) if there else None

    def _require_writable(self) -> None:
        table = self._found
        provider = table.provider().get() if table.provider().isDefined() else ""
        properties = table.properties()
        problem = ""
        if table.tableType().name() == "VIEW":
            problem = "it is a view"
        elif provider == "delta":
            problem = f"it is a Delta table: write it as Sink.delta({self.location()!r})"
        elif self._serde() not in _FORMATS:
            problem = f"its files are neither Parquet nor ORC but {self._serde() or provider}"
        elif properties.contains("transactional") and properties.apply("transactional").lower() == "true":
            problem = "it is transactional (ACID), and its files are Hive's own"
        elif table.bucketSpec().isDefined():
            problem = "it has buckets, into which its rows would have to be sorted"
        elif not table.partitionColumnNames().size():
            problem = "it has no partitions, and a sink replaces one: partition it"
        elif not table.tracksPartitionsInCatalog():
            problem = "the metastore does not know its partitions: run MSCK REPAIR TABLE"
        if problem:
            raise InvalidJobError(f"sink {self.sink} cannot be written: {problem}")
        columns = [column.lower() for column in self._partition_columns()]
        if sorted(columns) != sorted(column.lower() for column in self.sink.partition):
            raise InvalidJobError(
                f"sink {self.sink}: the table is partitioned by {', '.join(columns)}; let partition name "
                "these"
            )

    def _serde(self) -> str:
        serde = self._found.storage().serde()
        return serde.get() if serde.isDefined() else ""

    def format(self) -> str:
        """Of the table's files; a new table has Parquet."""
        return "parquet" if self._found is None else _FORMATS[self._serde()]

    def location(self) -> str:
        """The table's folder."""
        return self._uri_of(self._default if self._found is None else self._found.location())

    def _uri_of(self, location: Any) -> str:
        path = self.spark._jvm.org.apache.hadoop.fs.Path(location)  # type: ignore[union-attr]
        return uris.canonical(path.toString())

    def _schema(self) -> StructType:
        from pyspark.sql.types import StructType

        return StructType.fromJson(json.loads(self._found.schema().json()))

    def _partition_columns(self) -> list[str]:
        if self._found is None:
            return list(self.sink.partition)
        names = self._found.partitionColumnNames()
        return [names.apply(place) for place in range(names.size())]

    def _values(self) -> dict[str, str]:
        """The partition as the metastore spells it. Spark is asked once, which takes a job."""
        if self._spelled is None:
            self._spelled = self._spell()
        return self._spelled

    def _spell(self) -> dict[str, str]:
        """Columns in the table's order, values in their types."""
        from pyspark.sql.types import StringType

        given = {column.lower(): value for column, value in self.sink.partition.items()}
        partition = {column: given[column.lower()] for column in self._partition_columns()}
        if self._found is None:
            return partition
        schema = self._schema()
        types = {column: schema[column].dataType for column in partition}
        if all(type_ == StringType() for type_ in types.values()):
            return partition
        return tables.partition_values(self.spark, partition, types)

    def fitted(self, frame: DataFrame, notes: str | None) -> DataFrame:
        """The rows with the table's names, order and types; see `tables.fitted`."""
        written = [name for name in frame.columns if name != notes]
        tables.require_distinct([*written, *self.sink.partition], str(self.sink))
        self._values()
        if self._found is None:
            return frame
        own = {column.lower() for column in self._partition_columns()}
        fields: list[StructField] = [field for field in self._schema() if field.name.lower() not in own]
        return tables.fitted(frame, fields, str(self.sink), [notes] if notes else [])

    def make(self, schema: StructType) -> None:
        """Make the table where there is none.

        Raises:
            TableMismatchError: somebody else has made another one meanwhile.
        """
        if self._found is not None:
            return
        columns = tables.ddl(self.spark, schema)
        partition = ", ".join(f"{quoted(column)} string" for column in self.sink.partition)
        made = f"create table if not exists {self._name} ({columns}) partitioned by ({partition})"
        try:
            self.spark.sql(f"{made} stored as parquet")
        except spark_errors():
            if self._metadata() is None:  # and not made by another run at the same moment
                raise
        self._found, self._spelled = self._metadata(), None
        self._require_writable()
        rows = self.spark.createDataFrame([], schema)
        if self.fitted(rows, None).schema.simpleString().lower() != schema.simpleString().lower():
            raise TableMismatchError(str(self.sink), ["it was made meanwhile, with other columns"])

    @property
    def _name(self) -> str:
        return str(self._identifier.quotedString())

    def _partition(self) -> Any:
        if self._found is None:
            return None
        spec = self.spark._jvm.PythonUtils.toScalaMap(self._values())  # type: ignore[union-attr]
        try:
            return self._catalog.getPartition(self._identifier, spec)
        except spark_errors() as error:
            if _NO_PARTITION in str(error):
                return None
            raise

    def points_to(self, folder: str) -> bool:
        """Whether a folder is the partition's."""
        found = self._partition() if self._metadata() is not None else None
        return found is not None and uris.spark_uri(self._uri_of(found.location())) == uris.spark_uri(folder)

    def base(self) -> str:
        """The partition's folder, in which each try has one."""
        found = self._partition()
        if found is None:
            return uris.partition_uri(self.location(), self._values())
        location = self._uri_of(found.location())
        folder, _, name = location.rpartition("/")
        base = folder if _FOLDER.fullmatch(name) else location
        if uris.holds(base, self.location()):
            raise InvalidJobError(
                f"sink {self.sink}: the partition lies in {base}, where the whole table does; give it a "
                "folder of its own"
            )
        return base

    def point(self, folder: str) -> None:
        """Make a folder the partition's."""
        spec = ", ".join(
            f"{quoted(column)} = {tables.text(value)}" for column, value in self._values().items()
        )
        location = tables.text(uris.spark_uri(folder))
        found = self._partition()
        if found is None:
            self.spark.sql(f"alter table {self._name} add partition ({spec}) location {location}")
        else:
            self._forget_statistics(found)
            self.spark.sql(f"alter table {self._name} partition ({spec}) set location {location}")
        self.spark.catalog.refreshTable(self._name)

    def _forget_statistics(self, partition: Any) -> None:
        """Take away what was counted of the old rows: it would be said of the new ones."""
        jvm: Any = self.spark._jvm
        parameters = partition.parameters()
        if not (partition.stats().isDefined() or any(parameters.contains(name) for name in _STATISTICS)):
            return
        for name in _STATISTICS:
            parameters = getattr(parameters, "$minus")(name)
        without = partition.copy(
            partition.spec(),
            partition.storage(),
            parameters,
            partition.createTime(),
            partition.lastAccessTime(),
            jvm.scala.Option.empty(),
        )
        self._catalog.alterPartitions(self._identifier, jvm.PythonUtils.toSeq([without]))
