"""Columns of a Delta table by its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.schemas import delta
from airflow_hydrogen.schemas.unsure import UnsureError


def metadata(*names: str, **configuration: str) -> dict[str, Any]:
    fields = [{"name": name, "type": "double", "nullable": True, "metadata": {}} for name in names]
    schema = json.dumps({"type": "struct", "fields": fields})
    return {"metaData": {"schemaString": schema, "configuration": configuration}}


def commit(table: Path, version: int, *actions: dict[str, Any]) -> None:
    log = table / "_delta_log"
    log.mkdir(exist_ok=True)
    (log / f"{version:020}.json").write_text("\n".join(map(json.dumps, actions)))


def checkpoint(table: Path, name: str, *rows: dict[str, Any]) -> None:
    of = pa.struct([("schemaString", pa.string()), ("configuration", pa.map_(pa.string(), pa.string()))])
    column = pa.array([row.get("metaData") for row in rows], of)
    pq.write_table(pa.table({"metaData": column}), table / "_delta_log" / name)


def names(table: Path, **pinned: Any) -> list[str]:
    return [name for name, _ in delta.columns_of(Source.delta(str(table), **pinned))]


def test_the_newest_schema_counts_or_that_of_the_version(tmp_path: Path) -> None:
    commit(tmp_path, 0, {"protocol": {}}, metadata("a"))
    commit(tmp_path, 1, {"add": {}})
    commit(tmp_path, 2, metadata("a", "b"))
    commit(tmp_path, 3, {"add": {}})
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path, version=1) == ["a"]
    assert names(tmp_path, version=2) == ["a", "b"]


def test_a_checkpoint_stands_for_the_commits_that_are_gone(tmp_path: Path) -> None:
    commit(tmp_path, 11, {"add": {}})
    checkpoint(tmp_path, f"{10:020}.checkpoint.{1:010}.{2:010}.parquet", {})
    with pytest.raises(UnsureError, match="does not say what version 10 has changed"):
        names(tmp_path)
    checkpoint(tmp_path, f"{10:020}.checkpoint.{2:010}.{2:010}.parquet", {}, metadata("a", x="y"))
    assert names(tmp_path) == ["a"]


def test_types_are_spelled_as_in_sql(tmp_path: Path) -> None:
    fields = [
        {"name": "n", "type": "long"},
        {"name": "price", "type": "decimal(10,2)"},
        {"name": "list", "type": {"type": "array", "elementType": "integer", "containsNull": True}},
        {"name": "map", "type": {"type": "map", "keyType": "string", "valueType": "short"}},
        {"name": "who", "type": {"type": "struct", "fields": [{"name": "x", "type": "byte"}]}},
        {"name": "vector", "type": {"type": "udt", "class": "x.Vector"}},
    ]
    commit(tmp_path, 0, {"metaData": {"schemaString": json.dumps({"fields": fields})}})
    assert delta.columns_of(Source.delta(str(tmp_path))) == [
        ("n", "bigint"),
        ("price", "decimal(10,2)"),
        ("list", "array<int>"),
        ("map", "map<string,smallint>"),
        ("who", "struct<x:tinyint>"),
        ("vector", None),
    ]


def test_a_log_that_does_not_say_it_all_is_left_to_delta(tmp_path: Path) -> None:
    commit(tmp_path, 0, metadata("a"))
    with pytest.raises(UnsureError, match="Delta says"):
        names(tmp_path, timestamp="2013-01-01")
    with pytest.raises(UnsureError, match="version 7"):
        names(tmp_path, version=7)
    commit(tmp_path, 1, metadata("a", **{"delta.coordinatedCommits.commitCoordinator-preview": "x"}))
    with pytest.raises(UnsureError, match="a catalog's"):
        names(tmp_path)
    staged = tmp_path / "_delta_log" / "_staged_commits"
    staged.mkdir()
    assert names(tmp_path, version=0) == ["a"]
    (staged / f"{2:020}.x.json").touch()
    with pytest.raises(UnsureError, match="a catalog's"):
        names(tmp_path, version=0)
