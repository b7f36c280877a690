"""Starting and ending Spark's master and workers as processes, from pip's pyspark."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.integration import spark_classes

MASTER = "org.apache.spark.deploy.master.Master"
WORKER = "org.apache.spark.deploy.worker.Worker"
_STOP_TIMEOUT_S = 5.0
_JVM_OPTIONS = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"


def daemon_environment(folder: Path, host: str, settings: Mapping[str, str], *java: str) -> dict[str, str]:
    """The environment of a master or a worker, in which nothing of the user's Spark or Airflow is left.

    Args:
        folder: for its settings and its data.
        host: the address that it binds to.
        settings: Spark settings.
        java: more options of its JVM.
    """
    home = spark_home()
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "AIRFLOW__"))
    }
    return {
        **inherited,
        "SPARK_HOME": str(home),
        # Workers ask the launcher for their executors' commands, and it asks for this.
        "SPARK_SCALA_VERSION": _scala_version(home),
        # Of pip's Spark, which has none: with files there, JVMs would not take the classes that are kept.
        "SPARK_CONF_DIR": str(home / "conf"),
        # The executors' too, which inherit it.
        "JDK_JAVA_OPTIONS": f"{os.environ.get('JDK_JAVA_OPTIONS', '')} {spark_classes.options()}".strip(),
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_LOCAL_IP": host,
        "SPARK_LOCAL_DIRS": str(folder),
        "SPARK_DAEMON_JAVA_OPTS": " ".join(
            [_JVM_OPTIONS, *java, *(f"-D{key}={value}" for key, value in settings.items())]
        ),
        "PYSPARK_PYTHON": sys.executable,
    }


def write_worker_properties(file: Path, settings: Mapping[str, str], gpus: int) -> Path:
    """Write the settings of a worker, and beside them a script that makes GPUs up; returns `file`."""
    properties = dict(settings)
    if gpus:
        script = file.with_suffix(".gpus.sh")
        addresses = json.dumps({"name": "gpu", "addresses": [str(gpu) for gpu in range(gpus)]})
        script.write_text(f"#!/bin/sh\necho '{addresses}'\n")
        script.chmod(0o755)
        properties["spark.worker.resource.gpu.amount"] = str(gpus)
        properties["spark.worker.resource.gpu.discoveryScript"] = str(script)
    file.write_text("".join(f"{name} {value}\n" for name, value in properties.items()))
    return file


def java_command(environ: Mapping[str, str]) -> list[str]:
    """What `bin/spark-class` executes, without the class: asked for once, as that takes a JVM of its own.

    The launcher answers with an empty line and the arguments, with a NUL after each.
    """
    java = Path(environ["JAVA_HOME"], "bin", "java") if environ.get("JAVA_HOME") else "java"
    launcher = [java, "-Xmx128m", "-cp", f"{spark_home()}/jars/*", "org.apache.spark.launcher.Main", MASTER]
    answer = subprocess.run(launcher, env=dict(environ), capture_output=True, text=True, check=True)
    command = answer.stdout.partition("\0\n")[2].split("\0")
    return command[: command.index(MASTER)]


def spark_home() -> Path:
    """Where pip's pyspark is."""
    spec = importlib.util.find_spec("pyspark")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _scala_version(home: Path) -> str:
    """As `bin/load-spark-env.sh` sets it: 2.13."""
    (library,) = (home / "jars").glob("scala-library-*.jar")
    return ".".join(library.stem.removeprefix("scala-library-").split(".")[:2])


def free_port(host: str) -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a process that we started, and wait for it; SIGKILL if it takes too long."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(_STOP_TIMEOUT_S)
