"""Where spark-submit, Java and the Python interpreters of an application are on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import airflow_hydrogen
from airflow_hydrogen.contract.errors import JavaNotFoundError, SparkSubmitNotFoundError

DEFAULT_SPARK_BINARY = "spark-submit"

_LAUNCHER_VARIABLES = {"PATH", "HOME", "USER", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH"}
_LAUNCHER_PREFIXES = ("SPARK_", "_SPARK_", "HADOOP_", "YARN_", "HIVE_", "KRB5")


def find_spark_submit(binary: str, environ: Mapping[str, str]) -> str:
    """Path of spark-submit.

    The default binary is looked for on PATH, then in SPARK_HOME, then in the installed pyspark package. A
    binary that was asked for by another name or by its path has to be there.

    Raises:
        SparkSubmitNotFoundError: none of them has it.
    """
    if found := shutil.which(binary, path=environ.get("PATH")):
        return found
    if binary != DEFAULT_SPARK_BINARY:
        raise SparkSubmitNotFoundError(f"spark_binary is {binary!r}")
    searched = ["PATH"]
    if spark_home := environ.get("SPARK_HOME"):
        searched.append(f"SPARK_HOME={spark_home}")
        if found := shutil.which(DEFAULT_SPARK_BINARY, path=str(Path(spark_home, "bin"))):
            return found
    searched.append("the pyspark package")
    # find_spec does not import a package of the top level. pyspark-client is named pyspark too, without bin/.
    spec = importlib.util.find_spec("pyspark")
    for location in spec.submodule_search_locations or () if spec else ():
        if found := shutil.which(DEFAULT_SPARK_BINARY, path=str(Path(location, "bin"))):
            return found
    raise SparkSubmitNotFoundError(f"looked in {', '.join(searched)}")


def require_java(environ: Mapping[str, str]) -> str:
    """Path of the Java that spark-submit will run.

    Raises:
        JavaNotFoundError: neither JAVA_HOME nor PATH has one.
    """
    if found := find_java(environ):
        return found
    if java_home := environ.get("JAVA_HOME"):
        raise JavaNotFoundError(f"JAVA_HOME={java_home} has no bin/java")
    raise JavaNotFoundError("JAVA_HOME is not set and PATH has no java")


def find_java(environ: Mapping[str, str]) -> str | None:
    """Path of the Java that spark-submit will run; None where there is none."""
    java_home = environ.get("JAVA_HOME")
    return shutil.which("java", path=str(Path(java_home, "bin")) if java_home else environ.get("PATH"))


def python_environment(master: str, deploy_mode: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """PYSPARK_PYTHON and PYSPARK_DRIVER_PYTHON where the user has not chosen.

    Spark's default is the first `python3` on PATH, which need not have this package's requirements. On this
    machine alone both are this interpreter; a driver here with executors elsewhere is this interpreter.
    """
    if deploy_mode == "cluster":
        return {}
    chosen = environ.get("PYSPARK_PYTHON")
    if is_local(master):
        if chosen:
            return {}  # the driver follows it: the two must be of one version
        return {"PYSPARK_PYTHON": sys.executable} | (
            {} if environ.get("PYSPARK_DRIVER_PYTHON") else {"PYSPARK_DRIVER_PYTHON": sys.executable}
        )
    if environ.get("PYSPARK_DRIVER_PYTHON") or (chosen and shutil.which(chosen, path=environ.get("PATH"))):
        return {}
    return {"PYSPARK_DRIVER_PYTHON": sys.executable}


def is_local(master: str) -> bool:
    """Tell whether driver and executors are on this machine: `local`, `local[4]`, `local-cluster[...]`."""
    return master.startswith("local")


def worker_environment(env_vars: Mapping[str, object] | None) -> dict[str, str]:
    """The environment that spark-submit will see: this process's with the task's `env_vars` over it."""
    return {**os.environ, **{name: str(value) for name, value in (env_vars or {}).items()}}


def launcher_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What spark-submit's scripts need of an environment, without what is Airflow's."""
    return {
        name: value
        for name, value in environ.items()
        if name in _LAUNCHER_VARIABLES or name.startswith(_LAUNCHER_PREFIXES)
    }


def spark_home(spark_submit: str, environ: Mapping[str, str]) -> Path | None:
    """The folder above Spark's jars, as spark-submit's own script finds it."""
    candidates = [environ.get("SPARK_HOME"), Path(spark_submit).resolve().parent.parent]
    spec = importlib.util.find_spec("pyspark")
    candidates += list(spec.submodule_search_locations or ()) if spec else []
    return next((Path(home) for home in candidates if home and Path(home, "jars").is_dir()), None)


def default_settings(home: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """What spark-submit reads from `spark-defaults.conf` on this machine.

    Args:
        home: the Spark that submits.
        environ: its environment.
    """
    folder = environ.get("SPARK_CONF_DIR") or (home and home / "conf")
    file = folder and Path(folder, "spark-defaults.conf")
    return read_properties(file) if file and file.is_file() else {}


def read_properties(file: Path) -> dict[str, str]:
    """Settings of a file of properties as Spark's are: a name, then blanks or `=`, then the value."""
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (re.split(r"\s*[=:\s]\s*", line, maxsplit=1) for line in lines if line and line[0] not in "#!")
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


def own_path() -> list[str]:
    """What the interpreter needs on its path to find this package: a checkout, where it is not installed."""
    root = Path(airflow_hydrogen.__file__).absolute().parents[1]
    return [] if str(root) in package_folders() else [str(root)]


def package_folders() -> list[str]:
    """Where packages of this interpreter are installed."""
    paths = sysconfig.get_paths()
    return sorted({paths["purelib"], paths["platlib"]})
