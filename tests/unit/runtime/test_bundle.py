"""The application of a driver on a cluster: exit codes, and starts without end."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.errors import SharedStorageError
from airflow_hydrogen.contract.jobs import Entrypoint, Job, TrainJob
from airflow_hydrogen.contract.reports import Failure, Report, TrainReport
from airflow_hydrogen.runtime import __main__, bundle


@pytest.fixture
def deployed(tmp_path: Path) -> TrainJob:
    job = TrainJob(
        entrypoint=Entrypoint.parse("json:loads"),
        np=1,
        model_uri="/m",
        report_uri=str(tmp_path / "report.json"),
    )
    (tmp_path / "job.json").write_text(jobs.dumps(job))
    return job


def carry_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: Report, *, supervise: bool = False
) -> int:
    """The exit code of a driver whose job ends with this report."""

    def run(job: Job, prepare: Callable[[], None]) -> Report:
        return report

    monkeypatch.setattr(__main__, "run", run)
    settings: dict[str, Any] = {"supervise": supervise}
    try:
        bundle.run_bundle(tmp_path, tmp_path / "job.json", settings)
    except SystemExit as ended:
        return int(str(ended.code))
    return 0


FAILED = TrainReport(failure=Failure(error_type="X", message="x", retryable=True))


def test_the_exit_code_says_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deployed: TrainJob
) -> None:
    assert carry_out(monkeypatch, tmp_path, TrainReport(model_uri="/m")) == 0
    assert reports.loads(Path(deployed.report_uri).read_text()) == TrainReport(model_uri="/m")
    assert carry_out(monkeypatch, tmp_path, FAILED) == 1


def test_a_supervised_driver_that_has_reported_is_not_to_be_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deployed: TrainJob
) -> None:
    assert carry_out(monkeypatch, tmp_path, FAILED, supervise=True) == 0
    assert reports.loads(Path(deployed.report_uri).read_text()) == FAILED


def test_a_driver_that_dies_every_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deployed: TrainJob
) -> None:
    for _ in range(bundle.MAX_STARTS):
        assert carry_out(monkeypatch, tmp_path, TrainReport(model_uri="/m"), supervise=True) == 0
        assert reports.loads(Path(deployed.report_uri).read_text()).failure is None
    assert carry_out(monkeypatch, tmp_path, TrainReport(model_uri="/m"), supervise=True) == 0
    failure = reports.loads(Path(deployed.report_uri).read_text()).failure
    assert failure is not None
    assert failure.retryable
    assert "died 10 times without a report" in failure.message


# --- the report's place ------------------------------------------------------------------------------


@pytest.mark.parametrize("supervise", [False, True])
@pytest.mark.parametrize("found", [None, "another"])
def test_a_driver_that_does_not_see_airflows_nonce_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    deployed: TrainJob,
    capsys: pytest.CaptureFixture[str],
    found: str | None,
    supervise: bool,
) -> None:
    proven = dataclasses.replace(deployed, report_nonce="abc")
    (tmp_path / "job.json").write_text(jobs.dumps(proven))
    if found is not None:
        Path(jobs.nonce_uri(deployed.report_uri)).write_text(found)
    monkeypatch.setattr(__main__, "run", None)  # nothing trains
    with pytest.raises(SystemExit) as ended:
        bundle.run_bundle(tmp_path, tmp_path / "job.json", {"supervise": supervise})
    assert ended.value.code == (0 if supervise else 1)  # Spark would start it again for ever
    log = capsys.readouterr().out
    assert SharedStorageError.is_told_in(log)
    assert f"the driver on host {socket.gethostname()} does not find there what Airflow" in log
    with pytest.raises(SystemExit) as ended:
        __main__.main([str(tmp_path / "job.json")])
    assert ended.value.code == 1
    assert not Path(deployed.report_uri).exists()


def test_a_driver_that_sees_the_nonce_goes_on_also_when_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deployed: TrainJob
) -> None:
    proven = dataclasses.replace(deployed, report_nonce="abc")
    (tmp_path / "job.json").write_text(jobs.dumps(proven))
    Path(jobs.nonce_uri(deployed.report_uri)).write_text("abc")
    for _ in range(2):
        assert carry_out(monkeypatch, tmp_path, TrainReport(model_uri="/m"), supervise=True) == 0
    assert reports.loads(Path(deployed.report_uri).read_text()) == TrainReport(model_uri="/m")
