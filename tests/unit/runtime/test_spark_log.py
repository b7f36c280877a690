"""Where Spark's log goes while a job runs; Log4j's part is seen by tests/integration/test_secrets.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_hydrogen.runtime import spark_log


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Spark, as far as its log is concerned."""
    files: list[Path] = []
    monkeypatch.setattr(spark_log, "_write_to", files.append)

    def append(text: str) -> None:
        with files[0].open("a") as stream:
            stream.write(text)

    return append


def test_the_whole_log_is_at_the_uri_at_the_end(tmp_path: Path, write: Callable[[str], None]) -> None:
    with spark_log.kept(str(tmp_path / "logs" / "a%20b.log"), tmp_path):
        (tmp_path / "spark.log.1").write_text("INFO older\n")
        write("INFO newer\n")
    assert (tmp_path / "logs" / "a%20b.log").read_text() == "INFO older\nINFO newer\n"


def test_it_is_there_after_a_failure_too(tmp_path: Path, write: Callable[[str], None]) -> None:
    def fail() -> None:
        with spark_log.kept(str(tmp_path / "a.log"), tmp_path):
            write("INFO before\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "a.log").read_text() == "INFO before\n"


def test_it_is_copied_while_the_job_runs(
    tmp_path: Path,
    write: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    monkeypatch.setattr(spark_log, "_COPY_INTERVAL_S", 0.01)
    with spark_log.kept(str(tmp_path / "a.log"), tmp_path):
        write("INFO now\n")
        eventually(lambda: (tmp_path / "a.log").exists(), "the log is copied", 10)


def test_a_place_that_cannot_be_written_is_said_once_and_fails_nothing(
    tmp_path: Path,
    write: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    eventually: Callable[..., None],
) -> None:
    monkeypatch.setattr(spark_log, "_COPY_INTERVAL_S", 0.01)
    tried: list[str] = []

    def fail(uri: str, data: bytes) -> None:
        tried.append(uri)
        raise NotADirectoryError(uri)

    monkeypatch.setattr(spark_log.filesystems, "write_bytes", fail)
    with spark_log.kept("/file/a.log", tmp_path):
        write("INFO\n")
        eventually(lambda: len(tried) > 2, "it is tried again", 10)
    said = "airflow-hydrogen: Spark's log cannot be written to /file/a.log: NotADirectoryError: /file/a.log"
    assert capsys.readouterr().out.splitlines() == [said]


def test_a_store_that_hangs_holds_no_job(
    tmp_path: Path,
    write: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(spark_log, "_LAST_COPY_S", 0.01)
    monkeypatch.setattr(spark_log.filesystems, "write_bytes", lambda uri, data: answer.wait())
    with spark_log.kept("/a.log", tmp_path):
        write("INFO\n")
    answer.set()
    assert "the end of Spark's log is not at /a.log: no answer within 0 s" in capsys.readouterr().out


def test_a_log4j_that_is_none_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(file: Path) -> None:
        raise TypeError("'JavaPackage' object is not callable")

    monkeypatch.setattr(spark_log, "_write_to", refuse)
    with spark_log.kept("/a.log", tmp_path):
        pass
    said = capsys.readouterr().out
    assert "Spark's log is not kept at /a.log: TypeError: 'JavaPackage' object is not callable" in said


def test_a_job_without_a_place_for_it_starts_no_spark(tmp_path: Path) -> None:
    with spark_log.kept(None, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
