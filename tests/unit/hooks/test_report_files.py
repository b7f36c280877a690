"""Reports at paths and URIs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath
from fsspec.implementations.memory import MemoryFileSystem

from airflow_hydrogen.contract import jobs, reports, uris
from airflow_hydrogen.contract.errors import ContractVersionError, SharedStorageError, UnwritableUriError
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


@pytest.mark.parametrize("form", ["{}", "file:{}", "memory://{}"])
def test_a_report_has_the_name_that_was_given(tmp_path: Path, form: str) -> None:
    name = "T00%3A00 a b#1?x=%20+ü?#.json"
    report_files.write(form.format(tmp_path / name), TEXT)
    assert report_files.read(form.format(tmp_path / name)) == TrainReport(model_uri="/m")
    if form == "memory://{}":
        assert MemoryFileSystem().exists(f"{tmp_path}/{name}")
        report_files.delete(form.format(tmp_path / name))
        assert not MemoryFileSystem().exists(f"{tmp_path}/{name}")
    else:
        assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("scheme", ["s3", "s3a", "s3n", "gs"])
def test_airflow_is_told_of_the_key_as_it_stands(scheme: str) -> None:
    for key in [
        "a%3Ab",
        "a b",
        "a#b",
        "/?#x",
        "a?b",
        "a:b",
        "a+b",
        "aüb",
        "a%b",
        "[a]",
        "a\nb",
        "a?versionId=3",
    ]:
        root, inner = uris.airflow_parts(f"{scheme}://lake/{key}")
        path = ObjectStoragePath(root) / inner
        assert (path.protocol, path.path) == ("gs" if scheme == "gs" else "s3", f"lake/{key.lstrip('/')}")


@pytest.mark.parametrize("form", ["{}", "file:{}", "memory://{}"])
def test_a_nonce_is_left_beside_the_report_and_removed(tmp_path: Path, form: str) -> None:
    uri = form.format(tmp_path / "folder" / "report.json")
    report_files.write(uri, TEXT)
    report_files.leave_nonce(uri, "abc")
    assert report_files.read(uri) is None  # that of an earlier application
    assert report_files._read_text(jobs.nonce_uri(uri)) == "abc"
    assert jobs.nonce_uri(uri).endswith("/folder/.report.json.nonce")
    report_files.remove_nonce(uri)
    assert report_files._read_text(jobs.nonce_uri(uri)) is None
    report_files.remove_nonce(uri)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableUriError, match=r"the report's place .*NotADirectoryError") as caught:
        report_files.leave_nonce(str(tmp_path / "file" / "report.json"), "abc")
    assert caught.value.retryable


def test_a_nonce_that_cannot_be_removed_loses_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError("no s3:DeleteObject")

    monkeypatch.setattr(Path, "unlink", forbidden)
    report_files.remove_nonce(str(tmp_path / "report.json"))
    assert "is left behind: PermissionError: no s3:DeleteObject" in caplog.text


def test_a_store_without_its_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    for ask in (report_files.read, report_files.delete, lambda uri: report_files.leave_nonce(uri, "abc")):
        with pytest.raises(
            SharedStorageError, match=r"cannot speak s3://.* install s3fs, as airflow-hyd"
        ) as e:
            ask("s3://models/m.report-0.json")
        assert not e.value.retryable


def test_report_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"contract_version": 99, "kind": "train"}')
    with pytest.raises(ContractVersionError, match="the report has contract version 99"):
        report_files.read(str(tmp_path / "report.json"))
