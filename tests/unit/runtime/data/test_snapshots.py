from __future__ import annotations

import dataclasses

from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.runtime.data.snapshots import Kept

RUN = Run(dag_id="d", task_id="t", run_id="r")
FIRST = {"source": "delta '/a'", "version": 0}


def test_the_first_trys_snapshot_is_the_one_that_is_kept(tmp_path, capsys):
    uri = str(tmp_path / "kept.json")
    Kept(uri, RUN).note("the source", FIRST)
    again = Kept(uri, RUN)
    assert again.earlier("the source") == FIRST
    again.note("the source", {**FIRST, "version": 3})
    assert "the source has changed since the run's first try: its version was 0 and is 3" in (
        capsys.readouterr().out
    )
    assert Kept(uri, RUN).earlier("the source") == FIRST


def test_of_another_source_the_snapshot_is_a_new_one_for_all_tries_after(tmp_path, capsys):
    uri = str(tmp_path / "kept.json")
    Kept(uri, RUN).note("the source", FIRST)
    corrected = {"source": "delta '/b'", "version": 7}
    Kept(uri, RUN).note("the source", corrected)
    assert Kept(uri, RUN).earlier("the source") == corrected
    assert capsys.readouterr().out == ""


def test_nothing_is_kept_for_another_run_or_without_one(tmp_path):
    uri = str(tmp_path / "kept.json")
    Kept(uri, None).note("the source", FIRST)
    assert list(tmp_path.iterdir()) == []
    kept = Kept(uri, RUN)
    kept.note("the source", FIRST)
    assert Kept(uri, dataclasses.replace(RUN, clear_number=1)).earlier("the source") is None
    (tmp_path / "kept.json").write_text("{")
    assert Kept(uri, RUN).earlier("the source") is None
    kept.forget()
    assert list(tmp_path.iterdir()) == []
