"""Spark's types as Arrow's, and what Spark writes of them into Parquet files."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql.types import DataType, StructType

_ROW_METADATA = "org.apache.spark.sql.parquet.row.metadata"
_VERSION = "org.apache.spark.version"
# Types that Spark and Arrow write to Parquet alike.
_PLAIN = (
    *("boolean", "byte", "short", "integer", "long", "float", "double", "decimal", "string", "binary"),
    *("date", "timestamp", "timestamp_ntz"),
)


def arrow_type(type_: DataType) -> pa.DataType:
    """A type of Spark's in Arrow, with timestamps in UTC, as they stand in files."""
    from pyspark.sql.pandas.types import to_arrow_type

    # Spark 4.2 wants to be told; before, UTC is what it takes.
    convert: Any = to_arrow_type
    if "timezone" in inspect.signature(convert).parameters:
        return convert(type_, timezone="UTC")
    return convert(type_)


def is_plain(type_: Any) -> bool:
    """Whether Arrow writes a type of Spark's, in its JSON form, as Spark does."""
    if isinstance(type_, str):
        return type_.partition("(")[0] in _PLAIN
    match type_.get("type"):
        case "array":
            return is_plain(type_["elementType"])
        case "map":
            return is_plain(type_["keyType"]) and is_plain(type_["valueType"])
        case "struct":
            return bool(type_["fields"]) and all(is_plain(item["type"]) for item in type_["fields"])
    return False


def file_metadata(schema: StructType, version: str) -> dict[str, str]:
    """What Spark puts into the footers of the Parquet files that it writes.

    Args:
        schema: of the rows.
        version: Spark's.
    """
    return {_VERSION: version, _ROW_METADATA: schema.json()}


def file_schema(schema: StructType) -> pa.Schema:
    """A schema as Arrow's, in which everything may be null, as in files of Spark's."""
    import pyarrow as pa

    return pa.schema([pa.field(item.name, arrow_type(item.dataType)) for item in schema])
