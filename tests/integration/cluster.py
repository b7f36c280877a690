"""A Spark standalone cluster of real processes, for tests.

```python
with standalone_cluster(workers=2, cores=2, memory="1g", gpus=2) as cluster:
    SparkSession.builder.master(cluster.master_url) ...
    cluster.kill_worker(0)
    cluster.start_worker(0)
```

Master and workers are processes of pip's pyspark on loopback ports. Where the system has the whole of
127.0.0.0/8 (Linux), each worker has an address of its own, so that Spark takes them for different hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MASTER_HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0  # on an idle machine it is about four
_STOP_TIMEOUT_S = 5.0
_JVM_OPTIONS = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"


@dataclass
class StandaloneCluster:
    """Master and workers; every process is held here and only these are ever signalled.

    Attributes:
        folder: logs (`master.log`, `worker-0.log`, ...), work folders and settings.
        settings: of the master and the workers, such as `spark.worker.timeout`.
    """

    folder: Path
    workers: int
    cores: int
    memory: str
    gpus: int
    settings: dict[str, str] = field(default_factory=dict)
    port: int = 0
    web_port: int = 0
    command: list[str] = field(default_factory=list)
    master: subprocess.Popen[bytes] | None = None
    worker_processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def master_url(self) -> str:
        """What an application takes as its master."""
        return f"spark://{MASTER_HOST}:{self.port}"

    @property
    def web_url(self) -> str:
        """The master's web interface."""
        return f"http://{MASTER_HOST}:{self.web_port}"

    def connection(self, **extra: Any) -> str:
        """An Airflow connection to this cluster, as JSON."""
        return json.dumps(
            {
                "conn_type": "spark",
                "host": f"spark://{MASTER_HOST}",
                "port": self.port,
                "extra": {"ui-port": self.web_port, **extra},
            }
        )

    def worker_host(self, index: int) -> str:
        """The address of a worker."""
        return f"127.0.0.{index + 2}" if sys.platform == "linux" else MASTER_HOST

    def state(self) -> dict[str, Any]:
        """The master's /json/ page; raises OSError while it does not answer."""
        with urllib.request.urlopen(f"{self.web_url}/json/", timeout=5) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def alive_workers(self) -> list[dict[str, Any]]:
        """Workers that the master counts on; none while it does not answer."""
        try:
            return [worker for worker in self.state()["workers"] if worker["state"] == "ALIVE"]
        except (OSError, ValueError):
            return []

    def free(self, resource: str = "gpu") -> int:
        """Free addresses of a resource on all living workers."""
        return sum(
            len(worker["resourcesfree"].get(resource, {}).get("addresses", ()))
            for worker in self.alive_workers()
        )

    # --- master ------------------------------------------------------------------------------------------

    def start_master(self) -> None:
        """Start the master, on the ports it had before if it ran before."""
        self.port = self.port or free_port()
        self.web_port = self.web_port or free_port()
        self.master = self._start(
            "master",
            "org.apache.spark.deploy.master.Master",
            *("--host", MASTER_HOST, "--port", str(self.port), "--webui-port", str(self.web_port)),
            host=MASTER_HOST,
        )
        self._wait(self._answers, "the master's web interface answers", self.master)

    def kill_master(self) -> None:
        """SIGKILL the master and wait until it is gone."""
        assert self.master is not None
        _end(self.master, signal.SIGKILL)
        self.master = None

    # --- workers -----------------------------------------------------------------------------------------

    def start_worker(self, index: int) -> None:
        """Start a worker and wait until the master knows it."""
        self.start_workers([index])

    def start_workers(self, indices: list[int]) -> None:
        """Start workers at once and wait until the master knows them all."""
        known = len(self.alive_workers())
        for index in indices:
            assert index not in self.worker_processes
            host, name = self.worker_host(index), f"worker-{index}"
            self.worker_processes[index] = self._start(
                name,
                "org.apache.spark.deploy.worker.Worker",
                *("--host", host, "--cores", str(self.cores), "--memory", self.memory),
                *("--webui-port", "0", "--work-dir", str(self.folder / name)),
                *("--properties-file", str(self._properties(index)), self.master_url),
                host=host,
            )
        self._wait(
            lambda: len(self.alive_workers()) >= known + len(indices),
            f"the master knows {known + len(indices)} workers",
            *(self.worker_processes[index] for index in indices),
        )

    def kill_worker(self, index: int) -> None:
        """SIGKILL a worker's JVM and wait until it is gone; its executors notice by themselves.

        The master takes it for dead once its connection breaks, at the latest after spark.worker.timeout.
        """
        _end(self.worker_processes.pop(index), signal.SIGKILL)

    def stop(self) -> None:
        """Stop every process that was started: workers first, so that they end their executors."""
        processes = [*self.worker_processes.values(), *([self.master] if self.master else [])]
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            _end(process, signal.SIGTERM)
        self.worker_processes.clear()
        self.master = None

    # --- how ---------------------------------------------------------------------------------------------

    def _properties(self, index: int) -> Path:
        file = self.folder / f"worker-{index}.conf"
        settings = dict(self.settings)
        if self.gpus:
            script = self.folder / f"gpus-{index}.sh"
            addresses = json.dumps({"name": "gpu", "addresses": [str(gpu) for gpu in range(self.gpus)]})
            script.write_text(f"#!/bin/sh\necho '{addresses}'\n")
            script.chmod(0o755)
            settings["spark.worker.resource.gpu.amount"] = str(self.gpus)
            settings["spark.worker.resource.gpu.discoveryScript"] = str(script)
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        return file

    def _start(self, name: str, class_name: str, *arguments: str, host: str) -> subprocess.Popen[bytes]:
        home = spark_home()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SPARK_")}
        environ = {
            **inherited,
            "SPARK_HOME": str(home),
            # Workers ask the launcher for their executors' commands, and it asks for this.
            "SPARK_SCALA_VERSION": _scala_version(home),
            "SPARK_CONF_DIR": str(self.folder),
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_LOCAL_IP": host,
            "SPARK_LOCAL_DIRS": str(self.folder),
            "SPARK_DAEMON_JAVA_OPTS": " ".join(
                [_JVM_OPTIONS, *(f"-D{key}={value}" for key, value in self.settings.items())]
            ),
            "PYSPARK_PYTHON": sys.executable,
        }
        self.command = self.command or _java_command(home, environ)
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*self.command, class_name, *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        try:
            return bool(self.state()["status"] == "ALIVE")
        except (OSError, ValueError):
            return False

    def _wait(self, condition: Callable[[], bool], what: str, *processes: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            dead = [process for process in processes if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                reason = "a process ended" if dead else f"not within {START_TIMEOUT_S} s"
                raise RuntimeError(f"{what}: {reason}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self, lines: int = 30) -> str:
        """The last lines of every log, for the message of a test that failed."""
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
            for log in sorted(self.folder.glob("*.log"))
        )


@contextmanager
def standalone_cluster(
    workers: int = 2,
    cores: int = 2,
    memory: str = "1g",
    gpus: int = 2,
    settings: dict[str, str] | None = None,
) -> Iterator[StandaloneCluster]:
    """Start a master and workers, and stop exactly these in the end.

    Args:
        workers: number of workers.
        cores: cores of each.
        memory: memory that each gives to executors, as Spark writes it.
        gpus: GPUs of each, made up by a discovery script; 0 for none.
        settings: Spark settings of the master and the workers.
    """
    folder = Path(tempfile.mkdtemp(prefix="standalone-cluster-"))
    cluster = StandaloneCluster(folder, workers, cores, memory, gpus, dict(settings or {}))
    try:
        cluster.start_master()
        cluster.start_workers(list(range(workers)))
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def spark_home() -> Path:
    """Where pip's pyspark is."""
    import importlib.util

    spec = importlib.util.find_spec("pyspark")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _java_command(home: Path, environ: dict[str, str]) -> list[str]:
    """What `bin/spark-class` executes, without the class: asked for once, as that takes a JVM of its own.

    The launcher answers with an empty line and the arguments, with a NUL after each.
    """
    java = Path(environ["JAVA_HOME"], "bin", "java") if environ.get("JAVA_HOME") else "java"
    name = "org.apache.spark.deploy.master.Master"
    launcher = [java, "-Xmx128m", "-cp", f"{home}/jars/*", "org.apache.spark.launcher.Main", name]
    answer = subprocess.run(launcher, env=environ, capture_output=True, text=True, check=True)
    command = answer.stdout.partition("\0\n")[2].split("\0")
    return command[: command.index(name)]


def _scala_version(home: Path) -> str:
    """As `bin/load-spark-env.sh` sets it: 2.13."""
    (library,) = (home / "jars").glob("scala-library-*.jar")
    return ".".join(library.stem.removeprefix("scala-library-").split(".")[:2])


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((MASTER_HOST, 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a process that we started, and wait for it; SIGKILL if it takes too long."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(_STOP_TIMEOUT_S)
