"""Reports at paths and URIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_hydrogen.contract import reports
from airflow_hydrogen.contract.errors import ContractVersionError
from airflow_hydrogen.contract.reports import TrainReport
from airflow_hydrogen.hooks import report_files

TEXT = reports.dumps(TrainReport(model_uri="/m"))


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "memory://{}"])
def test_report_is_written_read_and_deleted(tmp_path: Path, form: str) -> None:
    uri = form.format(tmp_path / "folder" / "report.json")
    assert report_files.read(uri) is None
    report_files.delete(uri)
    report_files.write(uri, TEXT)
    assert report_files.read(uri) == TrainReport(model_uri="/m")
    report_files.delete(uri)
    assert report_files.read(uri) is None


def test_report_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"contract_version": 99, "kind": "train"}')
    with pytest.raises(ContractVersionError, match="the report has contract version 99"):
        report_files.read(str(tmp_path / "report.json"))
