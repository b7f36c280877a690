"""Columns of an Iceberg table, by its catalog."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_hydrogen.contract import catalogs
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.schemas import types
from airflow_hydrogen.schemas.types import Columns
from airflow_hydrogen.schemas.unsure import UnsureError

_SAME = ("boolean", "int", "float", "double", "date", "string", "binary")
_OTHERS = {"long": "bigint", "timestamptz": "timestamp", "timestamp": "timestamp_ntz"}
_DECIMAL = re.compile(r"decimal\((\d+), (\d+)\)")


def columns_of(source: Source, client: Mapping[str, Any]) -> Columns:
    """The columns of the newest snapshot, or of the one that the source names.

    Args:
        source: of kind iceberg.
        client: pyiceberg's properties of the catalog.

    Raises:
        UnsureError: there is no pyiceberg here, the catalog does not answer, or which snapshot is read
            depends on Spark's time zone.
    """
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError:
        raise UnsureError("pyiceberg is not installed here") from None
    if source.timestamp is not None:
        raise UnsureError("which snapshot it had at a time, Spark's time zone decides")
    given = dict(client)
    try:
        catalog = load_catalog(given.pop("name", source.conn_id or "default"), **given)
        table = catalog.load_table(str(source.table_name))
        schema = _schema(table, source)
    except Exception as error:
        raise UnsureError(catalogs.masked(f"{type(error).__name__}: {error}", client)) from None
    return types.require_distinct([(field.name, _of(str(field.field_type))) for field in schema.fields])


def _schema(table: Any, source: Source) -> Any:
    current = table.current_snapshot()
    if source.version is None or (current and current.snapshot_id == int(source.version)):
        return table.schema()
    snapshot = table.snapshot_by_id(int(source.version))
    if snapshot is None:
        raise UnsureError(f"it has no snapshot {source.version}")
    return table.schemas()[snapshot.schema_id]


def _of(type_: str) -> str | None:
    """A type of Iceberg's as Spark spells it; None for what is not held against a signature from here."""
    if found := _DECIMAL.fullmatch(type_):
        return f"decimal({found[1]},{found[2]})"
    return type_ if type_ in _SAME else _OTHERS.get(type_)
