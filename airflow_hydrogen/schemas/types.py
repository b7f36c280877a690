"""Types of files and databases as Spark's SQL spells them; None where only Spark knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.schemas.unsure import UnsureError

if TYPE_CHECKING:
    import pyarrow as pa

Columns = list[tuple[str, str | None]]

# As Spark's JSON calls them -> as its SQL does. Others are called the same.
_OF_JSON = {"long": "bigint", "integer": "int", "short": "smallint", "byte": "tinyint"}
# Arrow's names. Binary is missing: a setting of Spark's has it read as strings.
_OF_ARROW = {
    "bool": "boolean",
    "int8": "tinyint",
    "int16": "smallint",
    "int32": "int",
    "int64": "bigint",
    "uint8": "smallint",
    "uint16": "int",
    "uint32": "bigint",
    "uint64": "decimal(20,0)",
    "float": "float",
    "double": "double",
    "string": "string",
    "large_string": "string",
    "string_view": "string",
    "date32[day]": "date",
    "timestamp[us, tz=UTC]": "timestamp",
    "timestamp[ms, tz=UTC]": "timestamp",
    "timestamp[us]": "timestamp_ntz",
    "timestamp[ms]": "timestamp_ntz",
}


def of_spark_json(text: str) -> Columns:
    """The columns of a schema as Spark writes it into Delta's log and Parquet's footers."""
    return [(field["name"], _of_json(field["type"])) for field in json.loads(text)["fields"]]


def _of_json(type_: Any) -> str | None:
    if isinstance(type_, str):
        return _OF_JSON.get(type_, type_)
    if type_["type"] == "array":
        return _around("array", [_of_json(type_["elementType"])])
    if type_["type"] == "map":
        return _around("map", [_of_json(type_["keyType"]), _of_json(type_["valueType"])])
    if type_["type"] == "struct":
        return _struct([(field["name"], _of_json(field["type"])) for field in type_["fields"]])
    return None  # of the user's own


def of_arrow(type_: pa.DataType) -> str | None:
    """What Spark reads where a file's Arrow type is this one."""
    import pyarrow as pa

    if isinstance(type_, pa.BaseExtensionType):
        return of_arrow(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return of_arrow(type_.value_type)
    if pa.types.is_decimal128(type_):
        return f"decimal({type_.precision},{type_.scale})"
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return _around("array", [of_arrow(type_.value_type)])
    if pa.types.is_map(type_):
        return _around("map", [of_arrow(type_.key_type), of_arrow(type_.item_type)])
    if pa.types.is_struct(type_):
        return _struct([(field.name, of_arrow(field.type)) for field in type_])
    return _OF_ARROW.get(str(type_))


def require_distinct(columns: Columns) -> Columns:
    """The columns, whose names differ in more than capitals: Spark resolves them without regard to these."""
    if len({name.lower() for name, _ in columns}) < len(columns):
        raise UnsureError("its columns' names differ in capitals alone")
    return columns


def _around(kind: str, inner: Sequence[str | None]) -> str | None:
    known = [name for name in inner if name is not None]
    return f"{kind}<{','.join(known)}>" if len(known) == len(inner) else None


def _struct(fields: Sequence[tuple[str, str | None]]) -> str | None:
    known: Mapping[str, str] = {name: type_ for name, type_ in fields if type_ is not None}
    if len(known) < len(fields):
        return None
    return f"struct<{','.join(f'{name}:{type_}' for name, type_ in known.items())}>"
