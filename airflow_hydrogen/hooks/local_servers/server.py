"""The process of Spark that serves: spark-submit, which becomes its JVM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_hydrogen.hooks import exec_with_parent
from airflow_hydrogen.hooks.class_archives import find_class_archive
from airflow_hydrogen.hooks.local_servers.folders import ServerFolder
from airflow_hydrogen.hooks.local_servers.processes import listens

_CLASS = "org.apache.spark.sql.connect.service.SparkConnectServer"
_TAKEN = (b"java.net.BindException", b"Address already in use")
_GRACE_S = 10.0


class ServerProcess:
    """A server from its start on. It ends with the process, and the thread, that has started it.

    Args:
        plan: the keeper's.
        folder: with the file of Spark's settings.
        environment: its own.
    """

    def __init__(self, plan: Mapping[str, Any], folder: ServerFolder, environment: Mapping[str, str]) -> None:
        archive = find_class_archive(plan["spark_submit"], plan["java"], environment)
        java = archive.use() if archive is not None else ""
        given = environment.get("SPARK_SUBMIT_OPTS", "")
        self._log, self._log_begins = folder.log, folder.log.stat().st_size
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(Path(exec_with_parent.__file__)), str(os.getpid())),
                *(plan["spark_submit"], "--properties-file", str(folder.properties)),
                *("--class", _CLASS, "spark-internal"),
            ],
            stdin=subprocess.DEVNULL,
            cwd=folder.work,
            env={**environment, "SPARK_SUBMIT_OPTS": f"{java} {given}".strip()},
        )

    @property
    def pid(self) -> int:
        """Of the JVM."""
        return self._process.pid

    def listens(self, port: int) -> bool:
        """Whether it can be reached."""
        return listens(self.pid, port)

    def exit_code(self) -> int | None:
        """None: it lives."""
        return self._process.poll()

    def found_port_taken(self) -> bool:
        """Whether it has ended because another process was faster."""
        said = self._log.read_bytes()[self._log_begins :]
        return self.exit_code() is not None and any(word in said for word in _TAKEN)

    def end(self) -> None:
        """End it, whether it likes to or not."""
        self._process.terminate()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
