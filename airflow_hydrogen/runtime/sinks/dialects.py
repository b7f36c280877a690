"""What databases do not agree on, beside what Spark's own dialects know."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from airflow_hydrogen.runtime.sinks.connections import Column, Connection, Table

_READ_COMMITTED = 2  # as java.sql.Connection numbers them
_REPEATABLE_READ = 4
_SERIALIZABLE = 8
_DAY_S = 86_400

_Pairs = Sequence[tuple[str, str]]


class AnyDatabase:
    """A database of which nothing more is known: its own isolation keeps transactions apart.

    Attributes:
        table_options: behind the columns of a table that is made.
        column_suffix: behind the type of such a column.
    """

    table_options = ""
    column_suffix = ""

    def begin(self, connection: Connection, table: Table) -> None:
        """Begin the transaction that changes a table; no other one may change it meanwhile."""
        connection.begin(_SERIALIZABLE)

    def column_type(self, spark_type: str, found: str) -> str:
        """The type of a column for a type of Spark's.

        Args:
            spark_type: as Spark's SQL calls it.
            found: what Spark's dialect makes of it.
        """
        return found

    def equals(self, column: str, held: Column) -> tuple[str, int]:
        """The condition that a column holds a bound value, and how often that has to be bound."""
        return f"{column} = ?", 1

    def key(self, connection: Connection, table: Table, staged: str, held: Column) -> str:
        """A staged key as it is compared with a column of a table, and with other keys of its kind."""
        return staged

    def target(self, table: Table) -> tuple[str, str]:
        """How a statement names the table that it changes, and how its columns begin."""
        return table.quoted, table.quoted

    def update(self, target: str, staged: str, columns: _Pairs, where: str) -> str:
        """The statement that gives rows the values of those that are staged.

        Args:
            target: the table, as `target` names it.
            staged: the other one, which `where` calls `s`.
            columns: those that get a value, and those that hold it, quoted.
            where: which row belongs to which.
        """
        matching = f"from {staged} s where {where}"
        given = ", ".join(f"{column} = (select s.{value} {matching})" for column, value in columns)
        return f"update {target} set {given} where exists (select 1 {matching})"


class PostgreSQL(AnyDatabase):
    """PostgreSQL: an advisory lock, which ends with the transaction, keeps changes of a table apart."""

    def begin(self, connection: Connection, table: Table) -> None:
        connection.begin(_READ_COMMITTED)  # a snapshot from before the lock would not show what was done
        key = int.from_bytes(_digest(table)[:8], "big", signed=True)
        connection.query(f"select pg_advisory_xact_lock({key})")

    def target(self, table: Table) -> tuple[str, str]:
        return f"{table.quoted} t", "t"

    def update(self, target: str, staged: str, columns: _Pairs, where: str) -> str:
        given = ", ".join(f"{column} = s.{value}" for column, value in columns)
        return f"update {target} set {given} from {staged} s where {where}"


class MySQL(AnyDatabase):
    """MySQL and MariaDB: a named lock, which ends with the connection."""

    table_options = " character set utf8mb4"
    column_suffix = " null"  # some versions make a TIMESTAMP that is not

    def begin(self, connection: Connection, table: Table) -> None:
        connection.execute("set session sql_mode = concat(@@sql_mode, ',STRICT_ALL_TABLES')")
        name = f"hydrogen_{_digest(table).hex()[:40]}"
        while (answer := connection.query(f"select get_lock('{name}', {_DAY_S})")) != ["1"]:
            if answer != ["0"]:  # and not because the time is over
                raise connection.refusal("get_lock() has failed, as when somebody kills the query", "70100")
            print("airflow-hydrogen: another try has been changing the table for a day", flush=True)
        connection.begin(_REPEATABLE_READ)

    def column_type(self, spark_type: str, found: str) -> str:
        # TIMESTAMP ends in 2038, and has no fractions of a second.
        return "datetime(6)" if spark_type.startswith("timestamp") else found

    def equals(self, column: str, held: Column) -> tuple[str, int]:
        if not held.is_text:
            return f"{column} = ?", 1
        # "A" equals "a", and "a " too, in most collations. The first condition can use an index.
        exact = f"hex(convert({column} using utf8mb4)) = hex(convert(? using utf8mb4))"
        return f"{column} = ? and {exact}", 2

    def key(self, connection: Connection, table: Table, staged: str, held: Column) -> str:
        if not held.is_text:
            return staged
        where = f"table_schema = {_text(table.catalog)} and table_name = {_text(table.name)}"
        [found] = connection.query(
            "select concat(character_set_name, ' ', collation_name) from information_schema.columns where "
            f"{where} and column_name = {_text(held.name)}"
        )
        # Columns of two collations are not compared.
        characters, collation = str(found).split(" ")
        return f"convert({staged} using {characters}) collate {collation}"

    def target(self, table: Table) -> tuple[str, str]:
        return f"{table.quoted} t", "t"

    def update(self, target: str, staged: str, columns: _Pairs, where: str) -> str:
        given = ", ".join(f"t.{column} = s.{value}" for column, value in columns)
        return f"update {target} join {staged} s on {where} set {given}"


def of(url: str) -> AnyDatabase:
    """What is known of the database at a JDBC URL."""
    kinds = {"jdbc:postgresql:": PostgreSQL, "jdbc:mysql:": MySQL}
    return next((kind for prefix, kind in kinds.items() if url.startswith(prefix)), AnyDatabase)()


def _digest(table: Table) -> bytes:
    return hashlib.sha256(repr((table.catalog, table.schema, table.name)).encode()).digest()


def _text(value: str | None) -> str:
    escaped = str(value).replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
