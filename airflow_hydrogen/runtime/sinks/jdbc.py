"""A table of a database: rows are staged in a table of their own, and swapped or merged in one transaction.

The name of the staging table holds the place that is written, and a number that grows with each try. It is
also how tries of one place know of each other: a new one drops the tables of older ones. Where the database
keeps one because its tasks still write, that try finds the table of the newer one, and fails all the same.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.errors import (
    BatchesLostError,
    ColumnTypeError,
    DatabaseRefusedError,
    InvalidJobError,
    MergeKeysError,
    MissingColumnError,
    OtherRowsError,
    PartitionTakenError,
    UnwritableUriError,
)
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.contract.streams import Batch
from airflow_hydrogen.runtime.data.databases import Access, opening
from airflow_hydrogen.runtime.data.sources import is_failed_read
from airflow_hydrogen.runtime.sinks import dialects, tables
from airflow_hydrogen.runtime.sinks.connections import Connection, Database, Table, transact
from airflow_hydrogen.runtime.sinks.tables import Types
from airflow_hydrogen.runtime.sinks.targets import Target
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles
from airflow_hydrogen.runtime.spark_errors import spark_errors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_SHORT_TEXT = 255  # characters of a column that an index can hold
_INDEXED_COLUMNS = 3  # more of them are longer than a key of MySQL's may be
_NOTHING = "1 = 0"
_DIGITS = 16  # of the number of a try, in nanoseconds


def require_writable(sink: Sink, access: Access) -> None:
    """Log in, and look at the table where it is there.

    Raises:
        InvalidJobError: no connection, no name of a table, or an address that Spark cannot write.
        UnwritableUriError: the database cannot be reached, or lets nobody in.
        TableMismatchError: the table lacks a column of the partition or of the keys.
    """
    database = _database(sink, access)
    with database.connected() as connection:
        table = connection.table(str(sink.table_name))
        if columns := connection.columns(table):
            target = Target(database, table, columns)
            target.require([*sink.partition, *sink.keys])
            target.require_values(connection, sink.partition)


def require_fits(sink: Sink, access: Access, types: Types, frame: DataFrame, notes: str) -> None:
    """Hold rows of a stream that are yet to be computed against the table; raises what `Rows.stage` does."""
    rows = Rows(sink, None, _database(sink, access), types)
    rows.fitted(frame, tables.beside(frame, notes, of_stream=True), rows.target())


@contextmanager
def placing(
    sink: Sink, run: Run | None, access: Access, types: Types, batch: Batch | None = None
) -> Iterator[Rows]:
    """Begin a try to replace a partition, or to merge rows. At its end nothing is left staged.

    Args:
        sink: where rows go.
        run: the Airflow run, or None.
        access: what opens the sink's connection.
        types: for a partition's columns of a table that is yet to be made.
        batch: of a stream, or None.
    """
    rows = Rows(sink, run, _database(sink, access), types, batch)
    try:
        yield rows
    finally:
        rows.sweep()


class Rows:
    """The rows of one try.

    Args:
        sink: where they go.
        run: the Airflow run, or None.
        database: the sink's.
        types: for a partition's columns where the table does not exist.
        batch: of a stream, or None.
    """

    by_tasks = None  # a folder is what a database does not have

    def __init__(
        self, sink: Sink, run: Run | None, database: Database, types: Types, batch: Batch | None = None
    ) -> None:
        self.name = str(sink)
        self._sink = sink
        self._batch = batch
        self._new_types = types
        self._database = database
        self._dialect = dialects.of(database.url)
        # Runs that merge take nothing from each other, where they share a table; tries of one run do, and
        # those of a stream.
        writer: object = run.work if run and sink.mode == "merge" else ()
        if batch is not None:
            writer = batch.stream
        self._work = (sorted(sink.partition.items()), sink.mode, writer)
        self._prefix = ""
        self._staged: Table | None = None
        self._accepted = _NOTHING
        self._types: dict[str, str] = {}
        self._texts: list[str] = []
        self._position: list[str] = []

    def stage(self, frame: DataFrame, notes: str | None) -> tuple[int, list[str]]:
        """Write the rows to the staging table; see `Placement`.

        Raises:
            ColumnTypeError: the database has no type for a column, or a value of the partition is none of
                its column's type.
            InvalidJobError: a column differs from one of the partition in capitals alone.
            MissingColumnError: a key is no column.
            TableMismatchError: the table that is there does not hold the rows.
            MergeKeysError: a key is null, or stands twice.
            PartitionTakenError: a newer try has begun meanwhile.
            BatchesLostError: the table is gone that has the batches before this one.
            DatabaseRefusedError: with what the database says.
        """
        from airflow_hydrogen.runtime.sinks import attempts  # it imports pandas

        target = self.target()
        if target is None:
            self._require_new()
        beside = tables.beside(frame, notes, of_stream=self._batch is not None)
        self._position = [name for name in beside if name != notes]
        frame = self.fitted(frame, beside, target)
        told = attempts.Attempts(frame.sparkSession.sparkContext)
        numbered = told.numbered(frame)
        self._begin(self._table(), self._column_types(numbered))
        if target:
            self._rehearse(target)
        with self._explained():
            self._write(numbered)
            self._accepted = attempts.condition(self._quote(attempts.ATTEMPT), told.rows)
            found = self._accounts(notes)
            self._require_keys(target)
        return sum(told.rows.values()) - len(found), found

    def count(self) -> int:
        """The rows in the staging table, of attempts that Spark has accepted."""
        with self._explained(), self._database.connected() as connection:
            return connection.count(f"select count(*) from {self._place.quoted} where {self._accepted}")

    def found(self, files: TaskFiles | None, names: Sequence[str]) -> dict[str, int]:
        """Count the rows that are staged, which no task has written into a file; see `Placement`."""
        return {self.name: self.count()}

    def require_owner(self) -> None:
        """Raise PartitionTakenError where a newer try has begun, or has removed what this one has staged."""
        with self._database.connected() as connection:
            self._require_newest(connection)

    def commit(self, *, rows: int, model: str | None) -> None:
        """Put the rows in place; see `Placement`. It may be done twice.

        Raises:
            PartitionTakenError: a newer try has begun.
            OtherRowsError: the partition would hold other rows than these.
            DatabaseRefusedError: with what the database says.
        """
        table = self._table()
        with self._explained():
            transact(
                self._database,
                lambda connection: self._dialect.begin(connection, table),
                lambda connection: self._change(connection, table, rows),
            )

    def sweep(self) -> None:
        """Drop the staging table; where that cannot be done, the next try of the place does it.

        It stays, without rows, while an older try still writes into its own: at its end that one has to learn
        that it is not the newest.
        """
        if self._staged is None:
            return
        try:
            with self._database.connected() as connection:
                there = connection.tables_beside(self._staged, self._prefix)
                older = [table for table in there if table.name < self._staged.name]
                if self._drop_older(connection, older):
                    self._drop(connection, self._staged)
                else:
                    connection.execute(f"delete from {self._staged.quoted}")
        except (DatabaseRefusedError, UnwritableUriError) as error:
            print(f"airflow-hydrogen: {self._staged.quoted} is left to the next try: {error}", flush=True)

    def target(self) -> Target | None:
        """The table, where it is there."""
        with self._database.connected() as connection:
            table = connection.table(str(self._sink.table_name))
            columns = connection.columns(table)
        return Target(self._database, table, columns) if columns else None

    def fitted(self, frame: DataFrame, beside: Sequence[str], target: Target | None) -> DataFrame:
        """The rows with the partition's columns, of types that the table holds."""
        self._require_apart(frame.columns)
        frame = self._placed(frame, target)
        types = self._column_types(frame)
        self._types = {name: type_ for name, type_ in types.items() if name not in beside}
        self._texts = [name for name, type_ in frame.dtypes if type_ == "string"]
        if target:
            target.require_holds(frame.select(*(f"`{name}`" for name in self._types)))
        return frame

    def _table(self) -> Table:
        with self._database.connected() as connection:
            return connection.table(str(self._sink.table_name))

    def _require_new(self) -> None:
        """Raise BatchesLostError where a table is not there that a stream has written already."""
        if self._batch is not None and self._batch.number > 0:
            raise BatchesLostError(self.name, self._batch.number, None)

    @property
    def _place(self) -> Table:
        assert self._staged is not None, "nothing is staged yet"
        return self._staged

    def _quote(self, name: str) -> str:
        return self._database.quote(name)

    def _require_newest(self, connection: Connection) -> None:
        there = connection.tables_beside(self._place, self._prefix)
        newer = [table.quoted for table in there if table.name > self._place.name]
        if newer or self._place not in there:
            owner = f"another try, whose staging table is {newer[-1]}" if newer else None
            raise PartitionTakenError(self.name, owner)

    def _require_apart(self, columns: Sequence[str]) -> None:
        """Raise InvalidJobError where Spark would take a column for one of the partition."""
        for name in self._sink.partition:
            if alike := [other for other in columns if other != name and other.lower() == name.lower()]:
                raise InvalidJobError(
                    f"column {alike[0]!r} of the rows and column {name!r} of the sink's partition differ in "
                    "capitals alone: leave it out with keep_columns or output_columns, or rename it"
                )

    def _placed(self, frame: DataFrame, target: Target | None) -> DataFrame:
        """The rows with the columns of the partition: of the table's types, or those that it is to have."""
        from pyspark.sql import functions

        there = [*frame.columns, *self._sink.partition]
        if missing := [key for key in self._sink.keys if key not in there]:
            raise MissingColumnError("key", missing, there)
        partition = self._sink.partition
        types = target.types(frame.sparkSession, list(partition)) if target else self._new_types
        known = {name: value for name, value in partition.items() if name in types}
        tables.partition_values(frame.sparkSession, known, types)
        for name, value in partition.items():
            constant = functions.lit(value)
            frame = frame.withColumn(name, constant.cast(types[name]) if name in types else constant)
        return frame

    def _column_types(self, frame: DataFrame) -> dict[str, str]:
        """What the database calls the types of columns."""
        found = {}
        for (name, spark_type), java in zip(frame.dtypes, frame._jdf.schema().fields(), strict=True):
            if spark_type == "string" and (value := self._sink.partition.get(name)):
                found[name] = f"varchar({max(_SHORT_TEXT, len(value))})"
                continue
            type_ = self._database.type_of(java.dataType())
            if type_ is None:
                hint = "leave it out with keep_columns or output_columns, or cast it in 'prepare'"
                raise ColumnTypeError(name, "a type that the database has too", spark_type, hint)
            found[name] = self._dialect.column_type(spark_type, type_)
        return found

    def _begin(self, table: Table, types: Mapping[str, str]) -> None:
        """Make the staging table. Those of older tries go, and nobody else's."""
        place = hashlib.sha256(repr((table.catalog, table.schema, table.name, self._work)).encode())
        self._prefix = f"hydrogen_{place.hexdigest()[:12]}_"
        with self._database.connected() as connection:
            older = connection.tables_beside(table, self._prefix)
            names = [found.name for found in older]
            staged = connection.beside(table, next_name(self._prefix, names, secrets.token_hex(3)))
            connection.execute(self._definition(staged, types))
            self._staged = staged
            self._drop_older(connection, older)

    def _definition(self, table: Table, types: Mapping[str, str]) -> str:
        suffix = self._dialect.column_suffix
        columns = ", ".join(f"{self._quote(name)} {type_}{suffix}" for name, type_ in types.items())
        return f"create table {table.quoted} ({columns}){self._dialect.table_options}"

    def _drop_older(self, connection: Connection, older: Sequence[Table]) -> bool:
        """Whether the staging tables of older tries are gone; tasks that still write keep theirs."""
        gone = True
        for table in older:
            try:
                self._drop(connection, table)
            except DatabaseRefusedError as error:
                gone = False
                left = f"{table.quoted} is left to an older try, which may still write, and fails at its end"
                print(f"airflow-hydrogen: {left}: {error}", flush=True)
        return gone

    def _drop(self, connection: Connection, table: Table) -> None:
        """Remove a staging table, unless another try has done so."""
        try:
            connection.drop(table)
        except spark_errors() as error:
            if connection.tables_beside(table, table.name):
                raise self._database.refusal(error) from None

    def _rehearse(self, target: Target) -> None:
        """Let the database check the statements of the commit, while there are no rows."""
        with self._database.connected() as connection:
            connection.begin()
            try:
                for statement in self._statements(connection, target):
                    connection.execute(statement)
            except spark_errors() as error:
                raise target.mismatch(str(self._database.refusal(error))) from None

    def _write(self, frame: DataFrame) -> None:
        writer = frame.write.format("jdbc").mode("append").options(**self._database.options)
        try:
            writer.option("dbtable", self._place.quoted).save()
        except spark_errors() as error:
            if is_failed_read(error) or not self._database.is_refusal(error):
                raise
            raise self._database.refusal(error) from None

    def _accounts(self, notes: str | None) -> list[str]:
        """The notes of tasks; from now on they do not count as rows."""
        if notes is None:
            return []
        column, accepted = self._quote(notes), self._accepted
        self._accepted += f" and {column} is null"
        with self._database.connected() as connection:
            found = connection.query(
                f"select {column} from {self._place.quoted} where {accepted} and {column} is not null"
            )
        return [str(note) for note in found]

    def _require_keys(self, target: Target | None) -> None:
        """Raise MergeKeysError before anything is changed. Keys are equal that are so in the table."""
        if not self._sink.keys:
            return
        rows = f"from {self._place.quoted} where {self._accepted}"
        keys = [self._quote(key) for key in self._sink.keys]
        missing = " or ".join(f"{key} is null" for key in keys)
        with self._database.connected() as connection:
            if target:
                keys = [
                    self._dialect.key(connection, target.table, key, target.column(name))
                    for key, name in zip(keys, self._sink.keys, strict=True)
                ]
            keys += map(self._quote, self._position)
            groups = f"select count(*) as times {rows} group by {', '.join(keys)} having count(*) > 1"
            nulls = connection.count(f"select count(*) {rows} and ({missing})")
            repeated = connection.count(f"select count(*) from ({groups}) repeated")
        if nulls or repeated:
            raise MergeKeysError(self.name, self._sink.keys, nulls, repeated)

    def _change(self, connection: Connection, table: Table, rows: int) -> None:
        """What the transaction does."""
        self._require_newest(connection)
        if not connection.columns(table):
            self._require_new()
            self._create(connection, table)
        target = Target(self._database, table, connection.columns(table))
        where, values = target.partition(self._sink.partition)
        merging = self._sink.mode == "merge"
        if not merging:
            connection.execute(f"delete from {table.quoted} where {where}", values)
        for statement in self._statements(connection, target):
            connection.execute(statement)
        found = (
            rows
            if merging
            else connection.count(f"select count(*) from {table.quoted} where {where}", values)
        )
        if found != rows:
            raise OtherRowsError(self.name, rows, found)

    def _create(self, connection: Connection, table: Table) -> None:
        """Make the table, and an index on what its rows are found by."""
        types = dict(self._types)
        for key in self._sink.keys:
            if key in self._texts and key not in self._sink.partition:
                types[key] = f"varchar({_SHORT_TEXT})"
        connection.execute(self._definition(table, types))
        by = list(self._sink.keys or self._sink.partition)[:_INDEXED_COLUMNS]
        if by:
            index = self._quote(f"hydrogen_{secrets.token_hex(6)}")
            connection.execute(f"create index {index} on {table.quoted} ({', '.join(map(self._quote, by))})")

    def _statements(self, connection: Connection, target: Target) -> list[str]:
        """What brings the staged rows into the table, beside those that are there."""
        held = {name: self._quote(target.column(name).name) for name in self._types}
        staged_keys = {
            key: self._dialect.key(connection, target.table, f"s.{self._quote(key)}", target.column(key))
            for key in self._sink.keys
        }
        staged = self._latest(list(staged_keys.values())) if self._position else self._place.quoted
        these = ", ".join(f"s.{self._quote(name)}" for name in held)
        insert = (
            f"insert into {target.table.quoted} ({', '.join(held.values())}) "
            f"select {these} from {staged} s where {self._accepted}"
        )
        if self._sink.mode != "merge":
            return [insert]
        named, its = self._dialect.target(target.table)
        same = " and ".join(f"{its}.{held[key]} = {value}" for key, value in staged_keys.items())
        insert += f" and not exists (select 1 from {named} where {same})"
        given = [(column, self._quote(name)) for name, column in held.items() if name not in self._sink.keys]
        update = self._dialect.update(named, staged, given, f"{same} and {self._accepted}")
        return [update, insert] if given else [insert]

    def _latest(self, keys: Sequence[str]) -> str:
        """Of the staged rows, the last one of each key by the position of its message."""
        newest_first = ", ".join(f"s.{self._quote(name)} desc" for name in self._position)
        rank = f"row_number() over (partition by {', '.join(keys)} order by {newest_first}) as hydrogen_rank"
        ranked = f"select s.*, {rank} from {self._place.quoted} s where {self._accepted}"
        return f"(select * from ({ranked}) s where hydrogen_rank = 1)"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say why a try fails whose staging table a newer one has dropped under its hands."""
        try:
            yield
        except PartitionTakenError:
            raise
        except Exception as error:
            try:
                self.require_owner()
            except PartitionTakenError as taken:
                raise taken from error
            except (DatabaseRefusedError, UnwritableUriError) as unknown:
                print(f"airflow-hydrogen: nor is it known who writes {self.name}: {unknown}", flush=True)
            raise


def next_name(prefix: str, there: Sequence[str], token: str) -> str:
    """The name of a try's staging table, after all that are there, whatever the clock says.

    Args:
        prefix: of all that have the same place.
        there: tables of other tries.
        token: of this one.
    """
    start, end = len(prefix), len(prefix) + _DIGITS
    newest = max((int(name[start:end], 16) for name in there), default=0)
    return f"{prefix}{max(time.time_ns(), newest + 1):0{_DIGITS}x}_{token}"


def _database(sink: Sink, access: Access) -> Database:
    options = opening(sink, access)
    if options["url"].startswith("jdbc:mariadb:"):
        raise InvalidJobError(
            f"connection {sink.conn_id!r} of the sink has an address jdbc:mariadb://..., for which Spark "
            "writes names as MariaDB does not read them: use a connection of type mariadb, or jdbc:mysql: "
            "with ?permitMysqlScheme"
        )
    return Database(options, str(sink))
