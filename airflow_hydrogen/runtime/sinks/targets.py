"""A table of a database that is there already: whether it holds what is to be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.errors import TableMismatchError
from airflow_hydrogen.runtime.sinks import dialects
from airflow_hydrogen.runtime.sinks.connections import Column, Connection, Database, Parameter, Table
from airflow_hydrogen.runtime.spark_errors import spark_errors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType

_INTEGERS = ("tinyint", "smallint", "int", "bigint")
_NUMBERS = ("float", "double", "decimal")
_TIMES = ("timestamp", "timestamp_ntz")


class Target:
    """A table, and its columns.

    Args:
        database: where it is.
        table: its name.
        columns: that it has, at least one.
    """

    def __init__(self, database: Database, table: Table, columns: Sequence[Column]) -> None:
        self.table = table
        self._database = database
        self._columns = columns

    def column(self, name: str) -> Column:
        """The column of a name, or else the one that differs in capitals alone.

        Raises:
            TableMismatchError: there is none.
        """
        if (found := self._find(name)) is None:
            raise self.mismatch(f"it has no column {name!r}")
        return found

    def mismatch(self, *problems: str) -> TableMismatchError:
        """An error about this table."""
        return TableMismatchError(f"{self._database.sink}: table {self.table.quoted}", problems)

    def require(self, names: Sequence[str]) -> None:
        """Raise TableMismatchError where columns are missing."""
        if missing := [name for name in names if self._find(name) is None]:
            raise self.mismatch(*(f"it has no column {name!r}" for name in missing))

    def partition(self, values: Mapping[str, str]) -> tuple[str, list[Parameter]]:
        """The condition for the rows of a partition, and what is bound in it."""
        dialect = dialects.of(self._database.url)
        conditions: list[str] = []
        bound: list[Parameter] = []
        for name, value in values.items():
            column = self.column(name)
            condition, times = dialect.equals(self._database.quote(column.name), column)
            conditions.append(condition)
            bound += [Parameter(value, column.type)] * times
        return " and ".join(conditions) or "1 = 1", bound

    def require_values(self, connection: Connection, values: Mapping[str, str]) -> None:
        """Raise TableMismatchError where columns of the partition cannot hold its values."""
        where, bound = self.partition(values)
        unfit: tuple[type[Exception], ...] = (*spark_errors(), ValueError)
        try:
            connection.query(f"select 1 from {self.table.quoted} where 1 = 0 and {where}", bound)
        except unfit as error:
            named = ", ".join(f"{name}={value!r}" for name, value in values.items())
            reason = error if isinstance(error, ValueError) else self._database.refusal(error)
            raise self.mismatch(f"its columns cannot be compared with {named} ({reason})") from None

    def types(self, spark: SparkSession, names: Sequence[str]) -> dict[str, DataType]:
        """What Spark makes of columns that are there.

        Raises:
            TableMismatchError: of one, nothing.
        """
        if not names:
            return {}
        quoted = ", ".join(self._database.quote(self.column(name).name) for name in names)
        reader = spark.read.format("jdbc").options(**self._database.options)
        try:
            found = reader.option("query", f"select {quoted} from {self.table.quoted} where 1 = 0").load()
        except spark_errors() as error:
            raise self.mismatch(str(self._database.refusal(error))) from None
        return {name: field.dataType for name, field in zip(names, found.schema, strict=True)}

    def require_holds(self, frame: DataFrame) -> None:
        """Raise TableMismatchError with all that is wrong, where the table cannot hold a frame's rows."""
        problems = [f"it has no column {name!r}" for name in frame.columns if self._find(name) is None]
        written = {name: found for name in frame.columns if (found := self._find(name)) is not None}
        held = self.types(frame.sparkSession, list(written))
        for name, type_ in held.items():
            if not fits(frame.schema[name].dataType, type_):
                problems.append(
                    f"column {name!r} is {written[name].type_name}, which does not hold "
                    f"{frame.schema[name].dataType.simpleString()}"
                )
        given = [column.name for column in written.values()]
        problems += [
            f"column {column.name!r} must not be null, has no default, and is not written"
            for column in self._columns
            if column.needed and column.name not in given
        ]
        if problems:
            raise self.mismatch(*problems)

    def _find(self, name: str) -> Column | None:
        exact = [column for column in self._columns if column.name == name]
        alike = [column for column in self._columns if column.name.casefold() == name.casefold()]
        return next(iter([*exact, *alike]), None)


def fits(written: DataType, held: DataType) -> bool:
    """Whether a column holds values of a type, all of them or with an error of the database.

    Floats may lose digits in a narrower or decimal column, which somebody has chosen to be so.

    Args:
        written: type of the values.
        held: type that Spark reads of the column.
    """
    from pyspark.sql.types import ArrayType

    if isinstance(written, ArrayType) or isinstance(held, ArrayType):
        return (
            isinstance(written, ArrayType)
            and isinstance(held, ArrayType)
            and fits(written.elementType, held.elementType)
        )
    new, there = (type_.simpleString().partition("(")[0] for type_ in (written, held))
    if new in _INTEGERS:
        return there in (*_INTEGERS, *_NUMBERS, "string")
    if new in _NUMBERS:
        return there in (*_NUMBERS, "string")
    if new == "date" or new in _TIMES:
        return there in (*_TIMES, "string") or there == new
    return new == there or {new, there} <= {"string", "varchar", "char"}
