"""What a server is made of: tasks that differ in any of it share none."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import airflow_hydrogen
from airflow_hydrogen.clusters.endpoint import EMBEDDED_MASTER
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.python_workers import OF_EVERY_WORKER, READ_AT_IMPORT
from airflow_hydrogen.hooks.launchers import (
    DEFAULT_SPARK_BINARY,
    default_settings,
    find_spark_submit,
    launcher_environment,
    own_path,
    package_folders,
    require_java,
    spark_home,
)

IDLE_S = 600.0
START_TIMEOUT_S = 180.0
FRAMEWORKS = ("tensorflow", "keras", "onnxruntime")

# Beside what spark-submit needs: what Java, Python, its frameworks and their allocators read.
_KEPT_VARIABLES = {"JAVA_HOME", "JDK_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS", "PYTHONPATH", "LD_PRELOAD", "TZ"}
_KEPT_VARIABLES |= {"XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"}
_KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "MALLOC_")
_SECRET = re.compile(r"(?i)secret|password|passwd|token|credential|api_?key|access_?key")
# They would make a client of the server.
_OF_CLIENTS = {"SPARK_REMOTE", "SPARK_LOCAL_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_API_MODE"}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A local Spark Connect server.

    Its workers are run by this interpreter.

    Attributes:
        spark_submit: path of spark-submit.
        java: path of the Java that it runs.
        environ: the environment of whoever starts it. What the server needs of it is kept.
        master: `local[...]`.
        conf: Spark's settings, over those of this machine's `spark-defaults.conf`. No secrets: the server
            outlives the task, and serves others.
        modules: what workers have imported before they are asked; none: they import for themselves.
        idle_s: how long it lives while nobody uses it. That of the task that starts it counts.
        start_timeout_s: how long it may take to answer.

    Raises:
        InvalidJobError: a time that is none.
    """

    spark_submit: str
    java: str
    environ: Mapping[str, str] = field(repr=False)
    master: str = EMBEDDED_MASTER
    conf: Mapping[str, str] = field(default_factory=dict, repr=False)
    modules: tuple[str, ...] = (*OF_EVERY_WORKER, *FRAMEWORKS)
    idle_s: float = IDLE_S
    start_timeout_s: float = START_TIMEOUT_S

    def __post_init__(self) -> None:
        if not (self.idle_s > 0 and math.isfinite(self.idle_s)):
            raise InvalidJobError(
                "[airflow_hydrogen] session_idle_s must be a number of seconds above 0, found "
                f"{self.idle_s!r}; to have no server left behind, turn local sessions off"
            )

    @classmethod
    def find(
        cls, environ: Mapping[str, str], spark_binary: str = DEFAULT_SPARK_BINARY, **options: Any
    ) -> ServerSettings:
        """Settings with the spark-submit and the Java of this machine.

        Args:
            environ: the task's.
            spark_binary: as for spark-submit.
            options: the other attributes.

        Raises:
            InvalidJobError: a time that is none.
            SparkSubmitNotFoundError: no spark-submit.
            JavaNotFoundError: no Java.
        """
        return cls(
            spark_submit=find_spark_submit(spark_binary, environ),
            java=require_java(environ),
            environ=environ,
            **options,
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the server has in its environment, without what is Airflow's or a secret."""
        kept = {
            name: value
            for name, value in self.environ.items()
            if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES) or READ_AT_IMPORT.fullmatch(name)
        }
        found = {**launcher_environment(self.environ), **kept}
        path = [*own_path(), *found.pop("PYTHONPATH", "").split(os.pathsep)]
        return {
            **{
                name: value
                for name, value in found.items()
                if not _SECRET.search(name) and name not in _OF_CLIENTS
            },
            # An entry that is relative would be another place for the server.
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(entry for entry in path if os.path.isabs(entry))),
            "PYSPARK_PYTHON": sys.executable,
            # As spark-submit has it for Python: the hash of a string is to be the same in each worker.
            "PYTHONHASHSEED": "0",
        }

    @property
    def spark_conf(self) -> dict[str, str]:
        """Spark's settings: those of this machine, and those that are given."""
        environment = self.environment
        return {**default_settings(spark_home(self.spark_submit, environment), environment), **self.conf}

    def key(self) -> str:
        """What servers that may stand for each other have in common: machine, user, versions, settings."""
        parts = {
            "user": os.getuid(),
            "umask": _umask(),
            "python": [sys.executable, sys.version],
            # Whatever is installed or removed there changes it.
            "packages": [_changed(Path(path)) for path in package_folders()],
            "code": _hash(_sources(Path(airflow_hydrogen.__file__).parent)),
            "spark": [self.spark_submit, *_changes(spark_home(self.spark_submit, self.environ))],
            "java": [str(Path(self.java).resolve()), _changed(Path(self.java))],
            "master": self.master,
            "conf": self.spark_conf,
            "files": [_listed(folder) for folder in self._conf_folders()],
            "modules": self.modules,
            "environment": self.environment,
        }
        text = json.dumps(parts, sort_keys=True).encode()
        return f"{this_machine()}-{hashlib.sha256(text).hexdigest()[:16]}"

    def _conf_folders(self) -> list[Path]:
        """Where Spark finds files of settings that it does not name."""
        home = spark_home(self.spark_submit, self.environment)
        named = (self.environment.get(name) for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR"))
        sparks = self.environment.get("SPARK_CONF_DIR") or (home and home / "conf")
        return [Path(folder) for folder in (sparks, *named) if folder]


def this_machine() -> str:
    """What stands before the key of servers that can be reached and ended from here.

    A folder for temporary files may be shared by containers, each of which has a `localhost` of its own.
    """
    spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid", "mnt")]
    return hashlib.sha256(json.dumps([os.uname().nodename, *spaces]).encode()).hexdigest()[:8]


def _umask() -> str:
    """What the files that a server writes may not be."""
    text = Path("/proc/self/status").read_text()
    return next((line for line in text.splitlines() if line.startswith("Umask:")), "")


def _listed(folder: Path) -> list[Any]:
    return [[file.name, _changed(file)] for file in sorted(folder.iterdir())] if folder.is_dir() else []


def _changes(home: Path | None) -> list[Any]:
    return [] if home is None else [str(home.resolve()), _changed(home / "jars")]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _sources(package: Path) -> Iterable[bytes]:
    for file in sorted(package.rglob("*.py")):
        yield str(file.relative_to(package)).encode()
        yield file.read_bytes()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
