"""Columns of Parquet, ORC and CSV files, and when they are left to Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.schemas import files
from airflow_hydrogen.schemas.unsure import UnsureError


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"a": [1.0]}), path)


def test_names_and_types_of_parquet(tmp_path: Path) -> None:
    parquet(
        tmp_path / "x.parquet",
        a=[1.0],
        small=pa.array([1], pa.uint8()),
        word=pa.array(["x"]).dictionary_encode(),
        image=pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0], pa.float32()), 2),
        price=pa.array([1], pa.decimal128(10, 2)),
        raw=[b"x"],
        who=[{"name": "x", "age": 1}],
        at=pa.array([0], pa.timestamp("ns")),
    )
    assert files.columns_of(Source.parquet(str(tmp_path))) == [
        ("a", "double"),
        ("small", "smallint"),
        ("word", "string"),
        ("image", "array<float>"),
        ("price", "decimal(10,2)"),
        ("raw", None),
        ("who", "struct<name:string,age:bigint>"),
        ("at", None),
    ]


@pytest.mark.parametrize("changed", [{"b": [1]}, {"a": ["x"]}])
def test_a_schema_of_sparks_that_somebody_left_in_another_file_is_left_to_it(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    spark = '{"type":"struct","fields":[{"name":"a","type":"long","nullable":true,"metadata":{}}]}'
    metadata = {"org.apache.spark.sql.parquet.row.metadata": spark}
    source = Source.parquet(str(tmp_path / "x.parquet"))
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), tmp_path / "x.parquet")
    assert files.columns_of(source) == [("a", "bigint")]
    pq.write_table(pa.table(changed).replace_schema_metadata(metadata), tmp_path / "x.parquet")
    with pytest.raises(UnsureError, match="left Spark's schema in it"):
        files.columns_of(source)


def test_partition_folders_are_columns_whose_types_spark_finds(tmp_path: Path) -> None:
    for day in ("1", "2"):
        parquet(tmp_path / f"ds={day}" / "hour%3A=0" / "x.parquet", a=[1.0], ds=["x"])
    expected = [("a", "double"), ("ds", None), ("hour:", None)]
    assert files.columns_of(Source.parquet(str(tmp_path))) == expected
    inner = files.columns_of(Source.parquet(str(tmp_path / "ds=1")))
    assert inner == [("a", "double"), ("ds", "string"), ("hour:", None)]
    one = files.columns_of(Source.parquet(str(tmp_path / "ds=1" / "hour%3A=0" / "x.parquet")))
    assert one == [("a", "double"), ("ds", "string")]


def test_orc(tmp_path: Path) -> None:
    orc.write_table(pa.table({"n": pa.array([1], pa.int8()), "s": ["x"], "l": [[1]]}), tmp_path / "x.orc")
    expected = [("n", "tinyint"), ("s", "string"), ("l", "array<bigint>")]
    assert files.columns_of(Source.orc(str(tmp_path))) == expected


@pytest.mark.parametrize(("text", "options"), [("a,b\n1,2\n", {}), ("a;b\r\n1;2", {"sep": ";"}), ("a,b", {})])
def test_the_header_of_csv(tmp_path: Path, text: str, options: dict[str, str]) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode())
    assert files.columns_of(Source.csv(str(tmp_path), **options)) == [("a", None), ("b", None)]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a,b\n", {"header": "false"}),
        ("a,b\n", {"comment": "#"}),
        ('"a",b\n', {}),
        ("a,,b\n", {}),
        ("a, b\n", {}),
        ("\na,b\n", {}),
        ("\ufeffa,b\n", {}),
        ("a,A\n", {}),
        ("a||b\n", {"sep": "||"}),
    ],
)
def test_other_headers_are_left_to_spark(tmp_path: Path, text: str, options: dict[str, str]) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UnsureError):
        files.columns_of(Source.csv(str(tmp_path), **options))


def test_files_that_differ_are_left_to_spark(tmp_path: Path) -> None:
    for number in range(20):
        parquet(tmp_path / f"{number:02}.parquet")
    assert files.columns_of(Source.parquet(str(tmp_path))) == [("a", "double")]
    parquet(tmp_path / "99.parquet", a=[1.0], b=[1.0])
    with pytest.raises(UnsureError, match="its files differ in their columns"):
        files.columns_of(Source.parquet(str(tmp_path)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("_metadata", "says which of its files or columns count"),
        ("_hydrogen_files-00000001-aa.json", "says which of its files or columns count"),
        ("copies/x.parquet", "is no partition"),
    ],
)
def test_what_has_spark_read_other_files_is_left_to_it(tmp_path: Path, other: str, message: str) -> None:
    parquet(tmp_path / "x.parquet")
    parquet(tmp_path / other)
    with pytest.raises(UnsureError, match=message):
        files.columns_of(Source.parquet(str(tmp_path)))


def test_hidden_and_empty_files_are_no_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet")
    parquet(tmp_path / ".y.parquet", b=[1])
    parquet(tmp_path / "_temporary" / "z.parquet", b=[1])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "empty.parquet").touch()
    assert files.columns_of(Source.parquet(str(tmp_path))) == [("a", "double")]


@pytest.mark.parametrize("uri", ["{}/*.parquet", "{}/nothing"])
def test_patterns_and_empty_places_are_left_to_spark(tmp_path: Path, uri: str) -> None:
    parquet(tmp_path / "x.parquet")
    with pytest.raises(UnsureError):
        files.columns_of(Source.parquet(uri.format(tmp_path)))


def test_names_that_differ_in_capitals_are_left_to_spark(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", a=[1], A=[1])
    with pytest.raises(UnsureError, match="capitals"):
        files.columns_of(Source.parquet(str(tmp_path)))
