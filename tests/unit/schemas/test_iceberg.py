"""Columns of a table in a real catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.schemas.iceberg import columns_of
from airflow_hydrogen.schemas.unsure import UnsureError


@pytest.fixture
def lake(tmp_path: Path) -> dict[str, str]:
    return {"type": "sql", "uri": f"sqlite:///{tmp_path}/c.db", "warehouse": tmp_path.as_uri()}


@pytest.fixture
def table(lake: dict[str, str]) -> Any:
    import pyarrow as pa
    from pyiceberg.catalog import load_catalog

    columns = {
        "id": pa.int64(),
        "n": pa.int32(),
        "a": pa.float32(),
        "b": pa.float64(),
        "name": pa.string(),
        "day": pa.date32(),
        "at": pa.timestamp("us", "UTC"),
        "local": pa.timestamp("us"),
        "price": pa.decimal128(9, 2),
        "ok": pa.bool_(),
        "many": pa.list_(pa.int32()),
    }
    catalog = load_catalog("default", **lake)
    catalog.create_namespace("db")
    return catalog.create_table("db.t", schema=pa.schema(list(columns.items())))


def test_columns_are_those_of_the_catalog_in_sparks_spelling(table: Any, lake: dict[str, str]) -> None:
    import pyarrow as pa

    source = Source.iceberg("db.t", catalog=lake)
    expected = [
        ("id", "bigint"),
        ("n", "int"),
        ("a", "float"),
        ("b", "double"),
        ("name", "string"),
        ("day", "date"),
        ("at", "timestamp"),
        ("local", "timestamp_ntz"),
        ("price", "decimal(9,2)"),
        ("ok", "boolean"),
        ("many", None),
    ]
    assert columns_of(source, lake) == expected
    table.append(pa.Table.from_pylist([{"id": 1}], table.schema().as_arrow()))
    first = table.current_snapshot().snapshot_id
    with table.update_schema() as update:
        update.rename_column("id", "number")
    table.append(pa.Table.from_pylist([{"number": 2}], table.schema().as_arrow()))
    assert columns_of(source, lake)[0] == ("number", "bigint")
    assert columns_of(Source.iceberg("db.t", catalog=lake, snapshot=first), lake) == expected


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"table": "db.nothing"}, "NoSuchTableError"),
        ({"timestamp": "2013-07-01"}, "Spark's time zone decides"),
        ({"snapshot": 7}, "no snapshot 7"),
    ],
)
def test_what_cannot_be_told_is_left_to_the_driver(
    table: Any, lake: dict[str, str], asked: dict[str, Any], reason: str
) -> None:
    source = Source.iceberg(asked.pop("table", "db.t"), catalog=lake, **asked)
    with pytest.raises(UnsureError, match=reason):
        columns_of(source, lake)
