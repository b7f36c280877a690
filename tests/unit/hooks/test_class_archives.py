"""The archive of Spark's classes: who writes it, who uses it, and where there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from airflow_hydrogen.hooks.class_archives import FOLDER, ClassArchive, find_class_archive


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A Spark of two jars, and a cache."""
    (tmp_path / "spark" / "jars").mkdir(parents=True)
    for name in ("core.jar", "sql.jar"):
        (tmp_path / "spark" / "jars" / name).write_text(name)
    (tmp_path / "java").touch()
    return {"SPARK_HOME": str(tmp_path / "spark"), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def find(tmp_path: Path, environ: dict[str, str]) -> ClassArchive | None:
    return find_class_archive(str(tmp_path / "spark-submit"), str(tmp_path / "java"), environ)


def begin(tmp_path: Path, environ: dict[str, str]) -> tuple[ClassArchive, str]:
    found = find(tmp_path, environ)
    assert found is not None
    return found, found.begin()


def file_of(options: str, option: str) -> Path:
    """The file that a JVM with these options would use or write."""
    assert options.startswith(f'"-XX:{option}=')
    return Path(options.partition("=")[2].partition('"')[0])


def test_the_second_job_writes_and_the_third_uses(tmp_path: Path, environ: dict[str, str]) -> None:
    first, options = begin(tmp_path, environ)
    assert (options, first.writes) == ("", False), "a machine of one job never gets the seconds back"
    first.finish(ended_well=True)
    second, options = begin(tmp_path, environ)
    assert second.writes
    file_of(options, "ArchiveClassesAtExit").write_text("classes")
    second.finish(ended_well=True)
    third, options = begin(tmp_path, environ)
    assert file_of(options, "SharedArchiveFile").read_text() == "classes"
    assert not third.writes
    third.finish(ended_well=True)
    assert len(list((tmp_path / "cache" / FOLDER).iterdir())) == 1, "nothing else is left"


def test_who_only_uses_it_neither_writes_nor_leaves_a_note(tmp_path: Path, environ: dict[str, str]) -> None:
    found = find(tmp_path, environ)
    assert found is not None and found.use() == ""
    assert list((tmp_path / "cache" / FOLDER).iterdir()) == []
    (tmp_path / "cache" / FOLDER / found._archive.name).write_text("classes")
    assert file_of(found.use(), "SharedArchiveFile").read_text() == "classes"
    assert not found.writes


def test_what_a_jvm_wrote_that_was_killed_is_not_kept(tmp_path: Path, environ: dict[str, str]) -> None:
    begin(tmp_path, environ)
    killed, options = begin(tmp_path, environ)
    file_of(options, "ArchiveClassesAtExit").write_text("half")
    killed.finish(ended_well=False)
    assert list((tmp_path / "cache" / FOLDER).iterdir()) == []
    assert begin(tmp_path, environ)[1] == "", "it begins anew"


def test_after_one_that_failed_none_is_written_for_a_week(tmp_path: Path, environ: dict[str, str]) -> None:
    begin(tmp_path, environ)
    failing, _ = begin(tmp_path, environ)
    failing.finish(ended_well=False)
    failing.give_up("spark-submit ended with 1")
    assert [begin(tmp_path, environ)[1] for _ in range(3)] == ["", "", ""]
    (marker,) = (tmp_path / "cache" / FOLDER).iterdir()
    assert marker.read_text() == "spark-submit ended with 1\n"
    os.utime(marker, (0, 0))
    assert begin(tmp_path, environ)[1] == "", "it begins anew"
    assert begin(tmp_path, environ)[0].writes


def test_none_is_written_where_the_disk_has_no_room(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, environ)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage._replace(free=100_000_000))
    assert begin(tmp_path, environ)[1] == ""
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage._replace(free=10**10))
    assert begin(tmp_path, environ)[0].writes, "there is room again"


def test_one_of_many_that_start_together_writes(tmp_path: Path, environ: dict[str, str]) -> None:
    begin(tmp_path, environ)
    both = [find(tmp_path, environ) for _ in range(2)]
    assert [found.begin() != "" for found in both if found] == [True, False]


def test_another_spark_has_another_archive(tmp_path: Path, environ: dict[str, str]) -> None:
    begin(tmp_path, environ)
    (tmp_path / "spark" / "jars" / "sql.jar").write_text("newer")
    assert begin(tmp_path, environ)[1] == ""


def test_archives_that_nobody_uses_go_when_one_is_written(tmp_path: Path, environ: dict[str, str]) -> None:
    begin(tmp_path, environ)
    old = tmp_path / "cache" / FOLDER / "older.jsa"
    old.touch()
    os.utime(old, (0, 0))
    writer, options = begin(tmp_path, environ)
    file_of(options, "ArchiveClassesAtExit").write_text("classes")
    writer.finish(ended_well=True)
    assert not old.exists()


def test_there_is_none_with_folders_on_the_class_path(tmp_path: Path, environ: dict[str, str]) -> None:
    assert find(tmp_path, {**environ, "HADOOP_CONF_DIR": "/etc/hadoop"}) is None
    (tmp_path / "spark" / "conf").mkdir()
    assert find(tmp_path, environ) is not None, "an empty one is no matter"
    (tmp_path / "spark" / "conf" / "spark-defaults.conf").touch()
    assert find(tmp_path, environ) is None


def test_there_is_none_where_others_could_write_it(tmp_path: Path, environ: dict[str, str]) -> None:
    folder = tmp_path / "cache" / FOLDER
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert find(tmp_path, environ) is None


def test_there_is_none_without_a_home_or_java(tmp_path: Path, environ: dict[str, str]) -> None:
    assert find(tmp_path, {"SPARK_HOME": environ["SPARK_HOME"]}) is None
    (tmp_path / "file").touch()
    assert find(tmp_path, {**environ, "XDG_CACHE_HOME": str(tmp_path / "file")}) is None
    assert find_class_archive("spark-submit", None, environ) is None
