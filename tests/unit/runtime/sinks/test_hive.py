from __future__ import annotations

import pytest

from airflow_hydrogen.runtime.sinks import hive

OLD, OWN, NEWER = (f"hydrogen-{number:019d}-{'0' * 12}" for number in (1, 2, 3))


@pytest.fixture
def base(tmp_path):
    for name in (OLD, OWN, NEWER):
        (tmp_path / name).mkdir()
    (tmp_path / "part-0.parquet").write_bytes(b"of before")
    return tmp_path


def test_what_was_there_before_goes_and_a_newer_try_stays(base):
    hive._sweep_others(str(base), OWN)
    assert sorted(item.name for item in base.iterdir()) == [OWN, NEWER]


def test_rows_in_place_do_not_fail_over_leftovers_that_cannot_be_looked_for(base, monkeypatch, caplog):
    def refuse(uri):
        raise OSError("503 Slow Down")

    monkeypatch.setattr(hive.filesystems, "list_folders", refuse)
    hive._sweep_others(str(base), OWN)
    assert "503 Slow Down" in caplog.text
    assert (base / OLD).is_dir()
