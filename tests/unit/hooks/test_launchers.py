"""Finding spark-submit, Java and the Python interpreters."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import JavaNotFoundError, SparkSubmitNotFoundError
from airflow_hydrogen.hooks.launchers import (
    default_settings,
    find_spark_submit,
    is_local,
    python_environment,
    require_java,
)


def executable(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def pyspark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed pyspark whose folder is empty: that of pyspark-client."""
    folder = tmp_path / "site-packages" / "pyspark"
    spec = ModuleSpec("pyspark", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return folder


def test_path_comes_before_spark_home_and_pyspark(tmp_path: Path, pyspark: Path) -> None:
    on_path = executable(tmp_path / "bin", "spark-submit")
    at_home = executable(tmp_path / "spark" / "bin", "spark-submit")
    in_package = executable(pyspark / "bin", "spark-submit")
    home = {"SPARK_HOME": str(tmp_path / "spark")}
    assert find_spark_submit("spark-submit", {"PATH": str(tmp_path / "bin"), **home}) == str(on_path)
    assert find_spark_submit("spark-submit", {"PATH": "/nowhere", **home}) == str(at_home)
    assert find_spark_submit("spark-submit", {"PATH": "/nowhere"}) == str(in_package)


def test_pyspark_client_has_no_spark_submit(pyspark: Path) -> None:
    message = r"\(looked in PATH, SPARK_HOME=/none, the pyspark package\); install pyspark on the Airflow"
    with pytest.raises(SparkSubmitNotFoundError, match=message):
        find_spark_submit("spark-submit", {"PATH": "/nowhere", "SPARK_HOME": "/none"})


def test_binary_that_was_asked_for_is_not_replaced(tmp_path: Path, pyspark: Path) -> None:
    executable(pyspark / "bin", "spark-submit")
    asked = executable(tmp_path / "spark4", "my-submit")
    assert find_spark_submit(str(asked), {"PATH": "/nowhere"}) == str(asked)
    with pytest.raises(SparkSubmitNotFoundError, match=r"spark_binary is '/opt/spark/bin/spark-submit'"):
        find_spark_submit("/opt/spark/bin/spark-submit", {"PATH": "/nowhere"})


def test_java_home_comes_before_path(tmp_path: Path) -> None:
    java = executable(tmp_path / "jdk" / "bin", "java")
    other = executable(tmp_path / "bin", "java")
    home = {"JAVA_HOME": str(tmp_path / "jdk"), "PATH": str(tmp_path / "bin")}
    assert require_java(home) == str(java)
    assert require_java({"PATH": str(tmp_path / "bin")}) == str(other)


def test_missing_java_is_named() -> None:
    with pytest.raises(JavaNotFoundError, match=r"\(JAVA_HOME=/jdk has no bin/java\).*version 17 or later"):
        require_java({"JAVA_HOME": "/jdk", "PATH": "/usr/bin"})
    with pytest.raises(JavaNotFoundError, match=r"\(JAVA_HOME is not set and PATH has no java\)"):
        require_java({"PATH": "/nowhere"})


HERE = sys.executable
BOTH = {"PYSPARK_PYTHON": HERE, "PYSPARK_DRIVER_PYTHON": HERE}
DRIVER = {"PYSPARK_DRIVER_PYTHON": HERE}


@pytest.mark.parametrize(
    ("master", "mode", "environ", "expected"),
    [
        ("local[*]", "client", {}, BOTH),
        ("local[*]", None, {"PYSPARK_DRIVER_PYTHON": "/p"}, {"PYSPARK_PYTHON": HERE}),
        ("local[*]", None, {"PYSPARK_PYTHON": "/p"}, {}),
        ("spark://host:7077", None, {}, DRIVER),
        ("yarn", "client", {"PYSPARK_DRIVER_PYTHON": "/p"}, {}),
        ("yarn", "client", {"PYSPARK_PYTHON": "/only/on/the/cluster"}, DRIVER),
        ("yarn", "client", {"PYSPARK_PYTHON": HERE}, {}),
        ("yarn", "cluster", {}, {}),
    ],
)
def test_python_of_driver_and_executors(
    master: str, mode: str | None, environ: dict[str, str], expected: dict[str, str]
) -> None:
    assert python_environment(master, mode, environ) == expected


@pytest.mark.parametrize(
    ("master", "expected"),
    [("local", True), ("local[2]", True), ("spark://local:1", False), ("yarn", False)],
)
def test_local_masters(master: str, expected: bool) -> None:
    assert is_local(master) is expected


def test_settings_of_a_file_are_read_as_spark_submit_reads_them(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    text = "# a\n\nspark.a  1 2\nspark.b=x=y\nspark.c : z\nspark.d\n"
    (tmp_path / "conf" / "spark-defaults.conf").write_text(text)
    expected = {"spark.a": "1 2", "spark.b": "x=y", "spark.c": "z", "spark.d": ""}
    assert default_settings(tmp_path, {}) == expected
    assert default_settings(None, {"SPARK_CONF_DIR": str(tmp_path / "conf")}) == expected
    assert default_settings(tmp_path, {"SPARK_CONF_DIR": str(tmp_path)}) == {}
    assert default_settings(None, {}) == {}
