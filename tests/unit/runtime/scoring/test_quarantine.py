"""Files of bad rows: one a try, and only those of accepted tries are taken."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import UnwritableUriError
from airflow_hydrogen.runtime.scoring import quarantine as module
from airflow_hydrogen.runtime.scoring.quarantine import BadRowsFile, Quarantine

SCHEMA = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us", "UTC")), ("reason", pa.string())])


def rows(*ids):
    return pa.record_batch(
        {"unused": [0] * len(ids), "at": pa.array(ids, pa.timestamp("us", "Asia/Tokyo")), "id": pa.array(ids)}
    )


@pytest.fixture
def quarantine(tmp_path):
    return Quarantine(str(tmp_path / ".ds=1.staging-0123456789ab"), SCHEMA)


def test_files_of_accepted_tries_are_taken_and_no_others(quarantine, tmp_path):
    names = []
    for ids in ([1], [2, 3]):
        with BadRowsFile(quarantine) as file:
            for number in ids:
                file.add(rows(number), [f"bad {number}"])
        names.append(file.name)
    with BadRowsFile(quarantine) as lost:
        lost.add(rows(4), ["of a try that Spark did not accept"])
    assert quarantine.accept(names, str(tmp_path / "staged")) == 3
    table = pq.read_table(tmp_path / "staged").sort_by("id")
    assert table.schema.equals(SCHEMA)
    assert table.column("id").to_pylist() == [1, 2, 3]
    assert table.column("reason").to_pylist() == ["bad 1", "bad 2", "bad 3"]
    assert pq.ParquetFile(tmp_path / "staged" / names[1]).num_row_groups == 1


def test_a_file_that_is_not_there_is_not_counted(quarantine, tmp_path):
    with BadRowsFile(quarantine) as file:
        file.add(rows(1), ["x"])
    assert quarantine.accept([file.name, "on-another-host.parquet"], str(tmp_path / "staged")) == 1


def test_no_bad_rows_make_a_table_without_rows(quarantine, tmp_path):
    with BadRowsFile(quarantine) as file:
        pass
    assert file.name is None
    assert quarantine.accept([], str(tmp_path / "staged")) == 0
    assert pq.read_table(tmp_path / "staged").schema.equals(SCHEMA)
    assert not (tmp_path / ".ds=1.staging-0123456789ab").exists()


def test_many_bad_rows_do_not_stay_in_memory(quarantine, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROW_GROUP_BYTES", 1)
    with BadRowsFile(quarantine) as file:
        for number in range(3):
            file.add(rows(number), ["x"])
            assert file._waiting == []
    quarantine.accept([file.name], str(tmp_path / "staged"))
    assert pq.ParquetFile(tmp_path / "staged" / file.name).num_row_groups == 3


def test_a_host_that_cannot_write_there_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UnwritableUriError, match="quarantine '.*/file/x/part-.*' cannot be written"),
        BadRowsFile(Quarantine(str(tmp_path / "file" / "x"), SCHEMA)) as file,
    ):
        file.add(rows(1), ["x"])


def test_a_task_that_fails_names_no_file(quarantine):
    file = BadRowsFile(quarantine)
    file.add(rows(1), ["x"])
    file.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert file.name is None
