"""A look at a model and a source: in a process of its own, within its time, or not at all."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.schemas import looks
from airflow_hydrogen.schemas.unsure import UnsureError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    signature = {
        "inputs": [
            {"name": "x", "columns": [{"name": "a", "dtype": "float32"}], "dtype": "float32", "shape": [1]}
        ],
        "outputs": [{"name": "p", "dtype": "float32", "shape": [1]}],
    }
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "signature": signature}))
    return folder


@pytest.fixture
def lake(tmp_path: Path) -> Source:
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "x.parquet")
    return Source.parquet(str(tmp_path / "x.parquet"))


def look(model: Path, source: Source | None, snapshot: Path | None = None, timeout_s: int = 60) -> looks.Seen:
    return looks.look(str(model), source, snapshot and str(snapshot), None, {**os.environ}, timeout_s)


def test_a_model_and_a_source_are_seen(model: Path, lake: Source) -> None:
    seen = look(model, lake)
    assert seen.columns == [("a", "double")]
    assert [column.name for column in seen.signature.columns] == ["a"]


def test_what_an_earlier_try_has_opened_is_not_looked_at(model: Path, lake: Source, tmp_path: Path) -> None:
    snapshot = tmp_path / ".scores.snapshot-1.json"
    assert look(model, lake, snapshot).columns
    snapshot.touch()
    with pytest.raises(UnsureError, match="an earlier try of this run has opened it"):
        look(model, lake, snapshot)


def test_a_store_that_hangs_costs_its_time_and_no_more(model: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    (table / "_delta_log").mkdir(parents=True)
    os.mkfifo(table / "_delta_log" / f"{0:020}.json")  # nobody writes into it: it opens never
    started = time.monotonic()
    with pytest.raises(UnsureError, match="did not answer within 2 s"):
        look(model, Source.delta(str(table)), timeout_s=2)
    assert time.monotonic() - started < 4


def test_a_model_that_is_elsewhere_costs_nothing(tmp_path: Path, lake: Source, monkeypatch: Any) -> None:
    monkeypatch.setattr(looks, "_ask", pytest.fail)
    with pytest.raises(UnsureError, match="is not on this machine"):
        look(tmp_path / "nothing", lake)


@pytest.mark.parametrize(
    "source",
    [Source.sql("select 1"), Source.hive("a.b"), Source.table("a.b"), Source.json("/x"), Source.avro("/x")],
)
def test_sources_that_spark_alone_knows(model: Path, source: Source, monkeypatch: Any) -> None:
    monkeypatch.setattr(looks, "_ask", pytest.fail)
    with pytest.raises(UnsureError, match=f"only Spark knows the columns of a {source.kind} source"):
        look(model, source)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"manifest": '{"format_version": 2}', "columns": None}, "format version 2"),
        ({"manifest": "no JSON", "columns": None}, "cannot be read"),
        ({"unsure": "OSError: no route"}, "OSError: no route"),
    ],
)
def test_answers_that_say_nothing_are_left_to_the_driver(
    model: Path, monkeypatch: Any, answer: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(looks, "_ask", lambda *_asked: answer)
    with pytest.raises(UnsureError, match=reason):
        look(model, None)


@pytest.mark.parametrize(
    ("source", "settings", "environment", "same"),
    [
        (Source.parquet("/x"), {"spark.sql.parquet.mergeSchema": "true"}, {}, False),
        (Source.orc("/x"), {"spark.sql.parquet.mergeSchema": "true"}, {}, True),
        (Source.parquet("s3://b/x"), {}, {"AWS_ENDPOINT_URL": "http://store:9000"}, True),
        (Source.parquet("s3a://b/x"), {"spark.hadoop.fs.s3a.endpoint": "store:9000"}, {}, False),
        (Source.parquet("s3a://b/x"), {"spark.hadoop.fs.s3a.bucket.b.endpoint": "store:9000"}, {}, False),
        (Source.parquet("s3a://b/x"), {"spark.hadoop.fs.s3a.bucket.c.endpoint": "store:9000"}, {}, True),
        (
            Source.parquet("s3://b/x"),
            {"spark.hadoop.fs.s3a.endpoint": "store:9000"},
            {"AWS_ENDPOINT_URL": "http://store:9000/"},
            True,
        ),
        (
            Source.parquet("s3://b/x"),
            {"spark.hadoop.fs.s3a.endpoint": "s3.eu-west-1.amazonaws.com"},
            {},
            True,
        ),
        (Source.delta("/x"), {"spark.hadoop.fs.s3a.endpoint": "store:9000"}, {}, True),
    ],
)
def test_settings_that_have_spark_see_something_else(
    source: Source, settings: dict[str, str], environment: dict[str, str], same: bool
) -> None:
    if same:
        looks.require_same_view(source, settings, environment)
    else:
        with pytest.raises(UnsureError):
            looks.require_same_view(source, settings, environment)


def test_hadoops_own_file_may_say_where_s3_is(tmp_path: Path) -> None:
    environment = {"HADOOP_CONF_DIR": str(tmp_path)}
    looks.require_same_view(Source.parquet("s3://b/x"), {}, environment)
    (tmp_path / "core-site.xml").write_text("<name>fs.s3a.endpoint</name>")
    with pytest.raises(UnsureError, match="core-site.xml"):
        looks.require_same_view(Source.parquet("s3://b/x"), {}, environment)
    looks.require_same_view(Source.parquet("/x"), {}, environment)
