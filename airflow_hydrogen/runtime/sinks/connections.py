"""The driver's own connection to a database, by the JDBC driver that Spark's tasks use as well."""

from __future__ import annotations

import datetime
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from airflow_hydrogen.contract.errors import DatabaseRefusedError, InvalidJobError, UnwritableUriError
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors

T = TypeVar("T")

_PART = re.compile(r'"((?:[^"]|"")+)"|`((?:[^`]|``)+)`|([^."`]+)')
_SECRET = re.compile("(?i)password|secret|token|access.?key|passphrase")
_DATE, _TIMESTAMPS = 91, (93, 2014)
_TRIES = 5
_PASSING = ("08", "40", "55P03", "57P0")  # a lost connection, a conflict, a lock, a server that restarts
_CHARACTERS = (1, 12, -1, -15, -9, -16)  # of java.sql.Types: CHAR, VARCHAR, LONGVARCHAR, and national ones
_SWEEP_TIMEOUT_S = 20


class Parameter(NamedTuple):
    """A bound value: its text, and what java.sql.Types calls its type."""

    text: str
    type: int


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: as the database spells it.
        type: its number in java.sql.Types.
        type_name: what the database calls it.
        size: of characters, or digits.
        needed: it must be given a value.
    """

    name: str
    type: int
    type_name: str
    size: int
    needed: bool

    @property
    def is_text(self) -> bool:
        """Whether it holds characters."""
        return self.type in _CHARACTERS


@dataclass(frozen=True)
class Table:
    """Where a table is: catalog and schema as the driver's metadata name them, and how statements do."""

    catalog: str | None
    schema: str | None
    name: str
    quoted: str


class Database:
    """A database that a sink names.

    Args:
        options: of Spark's JDBC writer that open it.
        sink: how messages call the sink.
    """

    def __init__(self, options: Mapping[str, str], sink: str) -> None:
        from pyspark import SparkContext  # which Spark Connect's client alone does not have

        SparkContext._ensure_initialized()
        jvm: Any = SparkContext._jvm
        self._jvm = jvm
        self.options = dict(options)
        self.sink = sink
        self.url = self.options["url"]
        self.dialect: Any = jvm.org.apache.spark.sql.jdbc.JdbcDialects.get(self.url)

    def quote(self, name: str) -> str:
        """A name of a column or table as statements write it."""
        return str(self.dialect.quoteIdentifier(name))

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """A connection, each statement of which is a transaction of its own.

        Raises:
            UnwritableUriError: there is none.
            DatabaseRefusedError: it does not do what the block tells it.
        """
        try:
            java = self._open()
        except spark_errors() as error:
            raise UnwritableUriError("sink", self.sink, self._reason(error)) from None
        try:
            yield Connection(java, self)
        except spark_errors() as error:
            raise self.refusal(error) from None
        finally:
            self._close(java)

    def type_of(self, spark_type: Any) -> str | None:
        """What the database calls a type of Spark's, given as Java's object; None where it has none."""
        jdbc = self._jvm.org.apache.spark.sql.execution.datasources.jdbc
        try:
            return str(jdbc.JdbcUtils.getJdbcType(spark_type, self.dialect).databaseTypeDefinition())
        except spark_errors():
            return None

    def date(self, text: str) -> Any:
        """A date as drivers take it; a ValueError where it is none, or Spark would find none in it."""
        found = datetime.date.fromisoformat(text)
        if str(found) != text:
            raise ValueError(f"{text!r} is not written as '{found}'")
        return self._jvm.java.sql.Date.valueOf(text)

    def timestamp(self, text: str) -> Any:
        """A time as drivers take it; a ValueError where it is none, or has an offset."""
        found = datetime.datetime.fromisoformat(text)
        if found.tzinfo is not None:
            raise ValueError(f"{text!r} has an offset")
        return self._jvm.java.sql.Timestamp.valueOf(str(found))

    def refusal(self, error: Exception) -> DatabaseRefusedError:
        """What the database has said, for messages: without anything secret."""
        return DatabaseRefusedError(self.sink, self._reason(error), self._state(error) or "")

    def is_refusal(self, error: Exception) -> bool:
        """Whether it is the database that has caused an error of Spark's."""
        return self._state(error) is not None

    def _state(self, error: Exception) -> str | None:
        java: Any = getattr(error, "_origin", None) or getattr(error, "java_exception", None)
        sql = self._jvm.java.lang.Class.forName("java.sql.SQLException")
        while java is not None:
            if sql.isInstance(java):
                return "40001" if java.getErrorCode() == 1205 else str(java.getSQLState() or "")
            java = java.getCause()
        return None

    def _reason(self, error: Exception) -> str:
        text = root_cause(error).replace(self.url, "its address")
        for name, value in self.options.items():
            if _SECRET.search(name) and value:
                text = text.replace(value, "***")
        return text

    def _open(self) -> Any:
        jdbc = self._jvm.org.apache.spark.sql.execution.datasources.jdbc
        given = self._jvm.PythonUtils.toScalaMap({**self.options, "dbtable": "none"})
        return self.dialect.createConnectionFactory(jdbc.JDBCOptions(given)).apply(-1)

    def _close(self, java: Any) -> None:
        """End what is open; where the server is gone, so is the connection."""
        try:
            if not java.getAutoCommit():
                java.rollback()
            java.close()
        except spark_errors() as error:
            print(
                f"airflow-hydrogen: a connection of {self.sink} ends with: {self._reason(error)}", flush=True
            )


class Connection:
    """An open connection.

    Args:
        java: the driver's.
        database: where it leads.
    """

    def __init__(self, java: Any, database: Database) -> None:
        self._java = java
        self._database = database

    def refusal(self, reason: str, state: str) -> DatabaseRefusedError:
        """An error for what the database does not say as one."""
        return DatabaseRefusedError(self._database.sink, reason, state)

    def begin(self, isolation: int | None = None) -> None:
        """Begin a transaction, which is undone unless it is committed.

        Args:
            isolation: as java.sql.Connection numbers them; None: as it is.
        """
        if isolation is not None:
            self._java.setTransactionIsolation(isolation)
        self._java.setAutoCommit(False)

    def commit(self) -> None:
        """End the transaction."""
        self._java.commit()

    def execute(self, sql: str, values: Sequence[Parameter] = (), timeout_s: int = 0) -> int:
        """Run a statement; how many rows it has changed."""
        statement = self._java.prepareStatement(sql)
        try:
            if timeout_s:
                statement.setQueryTimeout(timeout_s)
            self._bind(statement, values)
            return int(statement.executeUpdate())
        finally:
            statement.close()

    def query(self, sql: str, values: Sequence[Parameter] = ()) -> list[str | None]:
        """The first column of what a query answers, as text."""
        statement = self._java.prepareStatement(sql)
        try:
            self._bind(statement, values)
            answer = statement.executeQuery()
            found = []
            while answer.next():
                found.append(answer.getString(1))
            return found
        finally:
            statement.close()

    def count(self, sql: str, values: Sequence[Parameter] = ()) -> int:
        """The one number that a query answers."""
        return int(self.query(sql, values)[0] or 0)

    def table(self, name: str) -> Table:
        """Where the table of a sink is: unquoted names are folded as the database folds them.

        Raises:
            InvalidJobError: it is no name of a table.
        """
        parts = [self._folded(part) for part in split(name)]
        metadata = self._java.getMetaData()
        catalog, schema = self._java.getCatalog(), None
        if metadata.supportsSchemasInDataManipulation():
            schema = self._java.getSchema() if len(parts) == 1 else parts[-2]
            shown = [*parts[:-2], schema, parts[-1]] if schema else parts
            catalog = parts[0] if len(parts) == 3 else catalog
        else:
            catalog = parts[-2] if len(parts) > 1 else catalog
            shown = [catalog, parts[-1]] if catalog else parts
        return Table(catalog, schema, parts[-1], ".".join(map(self._database.quote, shown)))

    def beside(self, table: Table, name: str) -> Table:
        """A table of another name in the same schema."""
        qualifier = table.quoted[: -len(self._database.quote(table.name))]
        return Table(table.catalog, table.schema, name, qualifier + self._database.quote(name))

    def columns(self, table: Table) -> list[Column]:
        """The columns of a table; none where it is not there."""
        found = self._java.getMetaData().getColumns(table.catalog, table.schema, table.name, "%")
        columns = []
        while found.next():
            # "_" and "%" in a name stand for other characters too.
            if found.getString("TABLE_NAME") != table.name or not _same(
                found.getString("TABLE_SCHEM"), table
            ):
                continue
            columns.append(
                Column(
                    name=found.getString("COLUMN_NAME"),
                    type=found.getInt("DATA_TYPE"),
                    type_name=found.getString("TYPE_NAME"),
                    size=found.getInt("COLUMN_SIZE"),
                    needed=found.getInt("NULLABLE") == 0
                    and found.getString("COLUMN_DEF") is None
                    and "YES" not in (found.getString("IS_AUTOINCREMENT"), _generated(found)),
                )
            )
        return columns

    def tables_beside(self, table: Table, prefix: str) -> list[Table]:
        """Tables of the same schema whose names begin so."""
        found = self._java.getMetaData().getTables(table.catalog, table.schema, f"{prefix}%", None)
        names = set()
        while found.next():
            name = str(found.getString("TABLE_NAME"))
            if name.startswith(prefix) and _same(found.getString("TABLE_SCHEM"), table):
                names.add(name)
        return [self.beside(table, name) for name in sorted(names)]

    def drop(self, table: Table) -> None:
        """Remove a table, unless somebody keeps it busy."""
        self.execute(f"drop table {table.quoted}", timeout_s=_SWEEP_TIMEOUT_S)

    def _bind(self, statement: Any, values: Sequence[Parameter]) -> None:
        for number, (text, type_) in enumerate(values, 1):
            # Not all drivers make a date of a text.
            if type_ == _DATE:
                statement.setDate(number, self._database.date(text))
            elif type_ in _TIMESTAMPS:
                statement.setTimestamp(number, self._database.timestamp(text))
            else:
                statement.setObject(number, text, type_)

    def _folded(self, part: tuple[str, bool]) -> str:
        name, quoted = part
        metadata = self._java.getMetaData()
        if quoted:
            return name
        if metadata.storesLowerCaseIdentifiers():
            return name.lower()
        return name.upper() if metadata.storesUpperCaseIdentifiers() else name


def split(name: str) -> list[tuple[str, bool]]:
    """The parts of `schema.table`, and which of them are quoted.

    Raises:
        InvalidJobError: it is no name of a table.
    """
    parts, at = [], 0
    while found := _PART.match(name, at):
        double, back, plain = found.groups()
        text = double.replace('""', '"') if double else back.replace("``", "`") if back else plain.strip()
        parts.append((text, plain is None))
        at = found.end()
        if at == len(name) and len(parts) <= 3 and all(text for text, _ in parts):
            return parts
        if name[at : at + 1] != ".":
            break
        at += 1
    raise InvalidJobError(
        f"table of the sink must be a name such as 'scores' or 'schema.scores', with quotes where a part has "
        f"dots or capitals of its own, found {name!r}"
    )


def transact(
    database: Database,
    begin: Callable[[Connection], None],
    work: Callable[[Connection], T],
) -> T:
    """Do something in one transaction, and again where others, or a lost connection, have ended it.

    What is done must come to the same when it is done twice: a connection may be lost before the answer to a
    commit that was carried out.

    Args:
        database: where.
        begin: begins the transaction.
        work: what is done in it.

    Raises:
        DatabaseRefusedError, UnwritableUriError: at last.
    """
    for failed in range(1, _TRIES + 1):
        try:
            with database.connected() as connection:
                begin(connection)
                result = work(connection)
                connection.commit()
                return result
        except (DatabaseRefusedError, UnwritableUriError) as error:
            # A server that has ended a connection starts again, or another one takes its place.
            is_passing = (
                error.state.startswith(_PASSING) if isinstance(error, DatabaseRefusedError) else failed > 1
            )
            if failed == _TRIES or not is_passing:
                raise
            print(f"airflow-hydrogen: {error}; trying again", flush=True)
            time.sleep(random.uniform(0.5, 1.0) * 2 ** (failed - 1))  # so that two do not meet again
    raise AssertionError("the last try returns or raises")


def _same(schema: str | None, table: Table) -> bool:
    return table.schema is None or schema == table.schema


def _generated(found: Any) -> str | None:
    """Whether the database computes a column; older drivers do not say."""
    names = [found.getMetaData().getColumnLabel(n + 1) for n in range(found.getMetaData().getColumnCount())]
    return found.getString("IS_GENERATEDCOLUMN") if "IS_GENERATEDCOLUMN" in names else None
