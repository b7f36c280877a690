"""Spark's settings of a server, and the file that they are in: the token stands there and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from airflow_hydrogen.contract import spark_defaults
from airflow_hydrogen.hooks.programs import write_secretly

DAEMON = "spark.python.daemon.module"
ENVIRONMENT = "spark.executorEnv."
JAVA_OPTIONS = "spark.driver.extraJavaOptions"
LOCAL_FOLDER = "spark.local.dir"

_USES_DAEMON = "spark.python.use.daemon"
_TASK_CPUS = "spark.task.cpus"
# Others than this task's rely on the server: after that error nobody knows what still works in it.
_END_WITHOUT_MEMORY = "-XX:+ExitOnOutOfMemoryError"

# Of all jobs: a server does not know which come.
_DEFAULTS = {**spark_defaults.OF_ALL, **spark_defaults.OF_ONE_MACHINE, **spark_defaults.OF_GANGS}
_SPECIAL = re.compile(r"[\\\s:=#!]")


def server_properties(master: str, given: Mapping[str, str], *, token: str, port: int) -> dict[str, str]:
    """Spark's settings of a server, without those of its workers.

    Args:
        master: Spark's.
        given: what the user has set, which wins over what is only of use, but not over what a server is.
        token: what it asks of its clients.
        port: on which it listens, for this machine alone.
    """
    java = f"{given.get(JAVA_OPTIONS, '')} {_END_WITHOUT_MEMORY}".strip()
    return {
        **_DEFAULTS,
        **given,
        JAVA_OPTIONS: java,
        "spark.master": master,
        "spark.submit.deployMode": "client",
        "spark.app.name": "airflow-hydrogen",
        "spark.connect.authenticate.token": token,
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        "spark.connect.grpc.port.maxRetries": "0",
    }


def worker_environment(environ: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server and its Python workers: Connect gives these no other one.

    Args:
        environ: what the server would have.
        given: the user's settings of Spark, with what workers are to have besides.
    """
    theirs = {
        name.removeprefix(ENVIRONMENT): value for name, value in given.items() if name.startswith(ENVIRONMENT)
    }
    paths = [entry["PYTHONPATH"] for entry in (environ, theirs) if entry.get("PYTHONPATH")]
    return {**environ, **theirs, "PYTHONPATH": os.pathsep.join(paths)}


def forks_workers(given: Mapping[str, str]) -> bool:
    """Whether the user leaves it to this package what Python workers are forked from."""
    return DAEMON not in given and given.get(_USES_DAEMON, "true").lower() == "true"


def math_threads(given: Mapping[str, str]) -> dict[str, str]:
    """The variable that Spark adds to the environment of Python workers, where the user has not said it."""
    return {"OMP_NUM_THREADS": given.get(_TASK_CPUS, "1")}


def write_properties(file: Path, properties: Mapping[str, str]) -> None:
    """Write settings as Java reads them, for this user alone.

    Args:
        file: is replaced.
        properties: name -> value.
    """
    file.unlink(missing_ok=True)
    lines = (f"{_escaped(name)} {_escaped(value)}{os.linesep}" for name, value in properties.items())
    write_secretly(file, "".join(lines))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: {"\n": "\\n", "\r": "\\r"}.get(found[0], f"\\{found[0]}"), text)
