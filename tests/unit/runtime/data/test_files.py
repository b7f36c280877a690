"""The one list of files and row groups."""

from __future__ import annotations

import datetime
import pickle
import subprocess
import sys
import threading
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import (
    DatasetChangedError,
    MissingColumnError,
    SchemaMismatchError,
    SourceError,
)
from airflow_hydrogen.runtime.data import files as module
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.files import (
    DataFile,
    DatasetFiles,
    ListedFile,
    as_spark_lists,
    list_dataset,
    read_footers,
)
from airflow_hydrogen.runtime.data.footers import ColumnBytes
from airflow_hydrogen.runtime.storage.partition_files import FileList, list_name


def write(path, *, group=1 << 20, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"a": [1, 2, 3]}), path, row_group_size=group)


def names(folder):
    return [file.name for file in list_dataset(str(folder)).files]


def test_files_in_plain_subfolders_are_not_rows_of_the_folder(tmp_path):
    write(tmp_path / "p0.parquet")
    write(tmp_path / "old" / "p1.parquet")
    assert names(tmp_path) == ["p0.parquet"]
    assert DatasetShard(str(tmp_path)).total_rows == 3


def test_partition_folders_are_told_from_plain_ones(tmp_path):
    write(tmp_path / "ds=1" / "p0.parquet")
    listing = list_dataset(str(tmp_path))
    assert listing.partitioned
    assert names(tmp_path) == ["ds=1/p0.parquet"]
    assert not list_dataset(str(tmp_path / "ds=1")).partitioned


def test_one_file_is_a_dataset_and_nothing_is_none(tmp_path):
    write(tmp_path / "rows")
    assert DatasetShard(str(tmp_path / "rows")).total_rows == 3
    assert list_dataset(str(tmp_path / "none")).files == ()


def test_where_a_list_of_ours_lies_its_files_are_the_rows(tmp_path):
    for name in ("old.parquet", "new.parquet"):
        write(tmp_path / name)
    chosen = FileList((("new.parquet", (tmp_path / "new.parquet").stat().st_size),))
    (tmp_path / list_name(1, "ab")).write_bytes(chosen.dumps())
    listing = list_dataset(str(tmp_path))
    assert [file.name for file in listing.files] == ["new.parquet"]
    assert listing.chosen


@given(st.lists(st.sampled_from(["a", "_b", ".c", "d=1", "_e=2", "f._COPYING_"]), min_size=1, max_size=3))
def test_a_file_below_a_hidden_folder_is_never_listed(parts):
    shown, _ = as_spark_lists([ListedFile("/".join([*parts, "x"]), 1, 0)])
    hidden = any(part in ("_b", ".c", "f._COPYING_") for part in parts)
    assert bool(shown) is (not hidden and any("=" in part for part in parts))


def test_each_footer_is_read_once_and_by_the_driver_alone(tmp_path, monkeypatch):
    for number in range(5):
        write(tmp_path / f"{number}.parquet", group=2, a=list(range(5)), b=[0.5] * 5)
    read, lock = [], threading.Lock()
    read_metadata = pq.read_metadata

    def counting(stream):
        with lock:
            read.append(1)
        return read_metadata(stream)

    monkeypatch.setattr(pq, "read_metadata", counting)
    files = read_footers(list_dataset(str(tmp_path)))
    assert len(read) == 5
    assert [file.rows for file in files.files] == [(2, 2, 1)] * 5

    def refuse(*given, **named):
        raise AssertionError("a rank looks for itself")

    monkeypatch.setattr(pq, "read_metadata", refuse)
    monkeypatch.setattr(module, "list_dataset", refuse)
    write(tmp_path / "late.parquet", a=[7] * 100, b=[0.5] * 100)
    told = pickle.loads(pickle.dumps(files))
    shards = [DatasetShard(told, rank=rank, size=2) for rank in range(2)]
    rows = [row for shard in shards for batch in shard.to_batches(4) for row in batch.column("a").to_pylist()]
    assert len(rows) == 26
    assert set(rows) == set(range(5))


def test_a_file_that_went_or_changed_is_named(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.parquet", a=[number] * 10)
    files = read_footers(list_dataset(str(tmp_path)))
    write(tmp_path / "1.parquet", a=list(range(1000)))
    with pytest.raises(
        DatasetChangedError, match=r"'1\.parquet' of dataset .* it had \d+ bytes and has [\d,]+"
    ):
        list(DatasetShard(files).to_batches(4))
    (tmp_path / "1.parquet").unlink()
    with pytest.raises(DatasetChangedError, match=r"'1\.parquet' of dataset .*: it is gone"):
        list(DatasetShard(files).to_batches(4))


def test_a_file_of_the_same_size_with_other_rows_is_noticed(tmp_path):
    write(tmp_path / "0.parquet", a=[1] * 10)
    files = read_footers(list_dataset(str(tmp_path)))
    [file] = files.files
    other = DatasetFiles(files.uri, (file._replace(rows=(9,)),), files.columns, files._schemas)
    with pytest.raises(DatasetChangedError, match="it had 9 rows and has 10"):
        list(DatasetShard(other).to_batches(4))


def test_what_is_no_parquet_is_named(tmp_path):
    write(tmp_path / "0.parquet")
    (tmp_path / "readme.txt").write_text("hello, these are the files of May")
    with pytest.raises(SourceError, match="file 'readme.txt'"):
        DatasetShard(str(tmp_path))


def test_columns_in_another_order_are_read_by_name(tmp_path):
    write(tmp_path / "0.parquet", a=[1], b=["x"])
    write(tmp_path / "1.parquet", b=["y"], a=[2])
    [batch] = DatasetShard(str(tmp_path), shuffle=False).to_batches(4)
    assert batch.to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1]}, r"column 'b' is not in '1\.parquet', and int64 in the first file"),
        ({"a": [1], "b": [0.5]}, r"column 'b' is double in '1\.parquet', and int64 in the first file"),
        ({"a": [1], "b": [1], "c": [1]}, r"column 'c' is int64 in '1\.parquet', and not in the first file"),
    ],
)
def test_a_schema_that_differs_between_files_is_named_before_anything_is_read(tmp_path, columns, message):
    write(tmp_path / "0.parquet", a=[1], b=[2])
    write(tmp_path / "1.parquet", **columns)
    with pytest.raises(SchemaMismatchError, match=message):
        DatasetShard(str(tmp_path))


def test_columns_that_may_be_null_in_one_file_alone_are_one_table(tmp_path):
    for number in range(2):
        schema = pa.schema([pa.field("a", pa.int64(), nullable=bool(number))])
        pq.write_table(pa.table({"a": [number]}, schema), tmp_path / f"{number}.parquet")
    [batch] = DatasetShard(str(tmp_path), shuffle=False).to_batches(4)
    assert batch.column("a").to_pylist() == [0, 1]


def test_only_the_columns_that_are_asked_for_are_the_datasets(tmp_path):
    write(tmp_path / "0.parquet", a=[1], b=[2], c=[3])
    write(tmp_path / "1.parquet", a=[4], c=["of another type"], b=[5])
    files = read_footers(list_dataset(str(tmp_path))).select(["b", "a"])
    shard = DatasetShard(pickle.loads(pickle.dumps(files)), shuffle=False)
    assert shard.schema.names == ["b", "a"]
    [batch] = shard.to_batches(4)
    assert batch.to_pydict() == {"b": [2, 5], "a": [1, 4]}
    with pytest.raises(MissingColumnError, match="'c'"):
        next(shard.to_batches(4, ["c"]))


def test_columns_that_are_in_no_file_have_one_value_a_file(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.parquet", a=[number] * 3)
    files = read_footers(list_dataset(str(tmp_path)))
    schema = pa.schema([("ds", pa.date32()), ("a", pa.int64()), ("word", pa.string())])
    files = replace(
        files,
        files=tuple(file._replace(partition=number) for number, file in enumerate(files.files)),
        columns={**files.columns, "ds": ColumnBytes(0, 4), "word": ColumnBytes(0, 8)},
        partition_columns=("ds", "word"),
        partitions=((0, "x"), (None, "ü")),
    ).with_schema(schema)
    shards = [DatasetShard(files, rank=rank, size=2, shuffle=False) for rank in range(2)]
    first, second = (pa.Table.from_batches(shard.to_batches(2)) for shard in shards)
    assert first.schema == second.schema == schema
    assert first.to_pydict() == {"ds": [datetime.date(1970, 1, 1)] * 3, "a": [0] * 3, "word": ["x"] * 3}
    assert second.to_pydict() == {"ds": [None] * 3, "a": [1] * 3, "word": ["ü"] * 3}
    [named] = DatasetShard(files, rank=1, size=2, shuffle=False).to_batches(9, ["word"])
    assert named.to_pydict() == {"word": ["ü"] * 3}


def test_a_column_that_a_file_lacks_is_a_difference_and_holds_nulls(tmp_path):
    write(tmp_path / "0.parquet", a=[1], later=["x"])
    write(tmp_path / "1.parquet", a=[2])
    files = read_footers(list_dataset(str(tmp_path))).select(["a", "later"])
    assert "'later' is not in '1.parquet'" in str(files.difference())
    old = files.open(files.files[1], 1024)
    [batch] = old.iter_batches(5, row_groups=[0], columns=["later", "a"])
    old.close()
    assert batch.to_pydict() == {"later": [None], "a": [2]}
    assert files.select(["a"]).difference() is None


def test_a_list_of_a_hundred_thousand_row_groups_travels_in_little_more_than_a_megabyte():
    numbers = tuple(range(10**6, 10**6 + 100))
    files = tuple(
        DataFile(f"part-{number:05d}-c000.snappy.parquet", 10**8 + number, 0, (*numbers,), (*numbers,))
        for number in range(1000)
    )
    files = DatasetFiles("s3://lake/x", files, {}, ())
    assert len(pickle.dumps(files)) < 1_500_000


def test_the_list_passes_through_processes_that_import_no_pyarrow():
    code = "import sys, airflow_hydrogen.runtime.rank.task; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
