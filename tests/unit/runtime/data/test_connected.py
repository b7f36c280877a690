from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_hydrogen.contract.errors import DatasetChangedError
from airflow_hydrogen.runtime.data.connected import SameFiles, files_of, refresh_files


def reads(*uris: str) -> Any:
    return SimpleNamespace(inputFiles=lambda: list(uris))


def test_files_of_a_store_that_this_machine_does_not_know_are_left_to_spark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a b").write_text("1")
    here = f"file:{tmp_path}/a%20b"
    frame = reads("dbfs:/lake/1.parquet", "dbfs:/lake/2.parquet", here)
    assert [size for size, _ in files_of(frame).values()] == [1]
    assert capsys.readouterr().out.count("are not seen from here") == 1
    require_same = SameFiles(frame, "the source")
    require_same()
    (tmp_path / "a b").write_text("22")
    os.utime(tmp_path / "a b", (1, 1))
    with pytest.raises(DatasetChangedError, match="a b"):
        require_same()


@pytest.mark.parametrize(
    ("uri", "refreshed"),
    [
        ("/lake/flights", "/lake/flights"),
        ("s3a://lake/day=*/part-[0-9].csv", "s3a://lake/"),
        ("/lake/f{1,2}.csv", "/lake/"),
        ("/*.csv", "/"),
    ],
)
def test_of_a_pattern_the_folder_above_is_read_anew(uri: str, refreshed: str) -> None:
    asked: list[str] = []
    spark: Any = SimpleNamespace(catalog=SimpleNamespace(refreshByPath=asked.append))
    refresh_files(spark, uri)
    assert asked == [refreshed]
