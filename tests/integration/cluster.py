"""A Spark standalone cluster of real processes, for tests.

```python
with standalone_cluster(workers=2, cores=2, memory="1g", gpus=2) as cluster:
    SparkSession.builder.master(cluster.master_url) ...
    cluster.kill_worker(0)
    cluster.start_worker(0)
```

Master and workers are processes of pip's pyspark on loopback ports. Where the system has the whole of
127.0.0.0/8 (Linux), each worker has an address of its own, so that Spark takes them for different hosts.

With `namespaces=True` they are different hosts: each worker has a network namespace of its own
(`namespaces.py`), which can be killed as a whole or cut off. That needs root:

```python
skip_without_namespaces()
with standalone_cluster(workers=2, namespaces=True) as cluster:
    run_an_application(cluster.master_url, cluster.driver_settings())
    cluster.link_down(1)
```
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration import daemons
from tests.integration.namespaces import HostNetwork, host_network, why_unavailable
from tests.processes import living

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 120.0  # on an idle machine it is five to ten
# A proxy of this machine must not be asked for addresses that only this machine has.
_web = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class StandaloneCluster:
    """Master and workers; every process is held here and only these are ever signalled.

    Attributes:
        folder: logs (`master.log`, `worker-0.log`, ...), work folders and settings.
        settings: of the master and the workers, such as `spark.worker.timeout`.
        network: the workers' hosts; None if everything is on the loopback interface.
        names: whether workers and executors say their hosts' names instead of addresses.
    """

    folder: Path
    cores: int
    memory: str
    gpus: int
    settings: dict[str, str] = field(default_factory=dict)
    network: HostNetwork | None = None
    names: bool = False
    port: int = 0
    web_port: int = 0
    command: list[str] = field(default_factory=list)
    master: subprocess.Popen[bytes] | None = None
    worker_processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def master_host(self) -> str:
        """The address of the master, and of drivers on this machine."""
        return self.network.address if self.network else LOOPBACK

    @property
    def master_url(self) -> str:
        """What an application takes as its master."""
        return f"spark://{self.master_host}:{self.port}"

    @property
    def web_url(self) -> str:
        """The master's web interface."""
        return f"http://{self.master_host}:{self.web_port}"

    def connection(self, **extra: Any) -> str:
        """An Airflow connection to this cluster, as JSON."""
        return json.dumps(
            {
                "conn_type": "spark",
                "host": f"spark://{self.master_host}",
                "port": self.port,
                "extra": {"ui-port": self.web_port, **extra},
            }
        )

    def driver_settings(self) -> dict[str, str]:
        """Spark settings of an application whose driver runs on this machine, so that executors reach it."""
        settings = {"spark.driver.host": self.master_host, "spark.driver.bindAddress": self.master_host}
        if self._java:
            settings["spark.driver.extraJavaOptions"] = " ".join(self._java)
        return settings

    def worker_host(self, index: int) -> str:
        """What the master and the driver call the host of a worker."""
        if self.network and self.names:
            return self.network.hosts[index].name
        return self.worker_address(index)

    def worker_address(self, index: int) -> str:
        """The address of a worker."""
        if self.network:
            return self.network.hosts[index].address
        return f"127.0.0.{index + 2}" if sys.platform == "linux" else LOOPBACK

    def state(self) -> dict[str, Any]:
        """The master's /json/ page; raises OSError while it does not answer."""
        with _web.open(f"{self.web_url}/json/", timeout=5) as answer:
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
        self.port = self.port or daemons.free_port(self.master_host)
        self.web_port = self.web_port or daemons.free_port(self.master_host)
        self.master = self._start(
            "master",
            daemons.MASTER,
            *("--host", self.master_host, "--port", str(self.port), "--webui-port", str(self.web_port)),
        )
        self._wait(self._answers, "the master's web interface answers", self.master)

    def kill_master(self) -> None:
        """SIGKILL the master and wait until it is gone."""
        assert self.master is not None
        daemons.end(self.master, signal.SIGKILL)
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
            name = f"worker-{index}"
            properties = daemons.write_worker_properties(
                self.folder / f"{name}.conf", self.settings, self.gpus
            )
            self.worker_processes[index] = self._start(
                name,
                daemons.WORKER,
                *("--host", self.worker_host(index), "--cores", str(self.cores), "--memory", self.memory),
                *("--webui-port", "0", "--work-dir", str(self.folder / name)),
                *("--properties-file", str(properties), self.master_url),
                worker=index,
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
        daemons.end(self.worker_processes.pop(index), signal.SIGKILL)

    # --- hosts, with namespaces=True ---------------------------------------------------------------------

    def processes(self, index: int) -> list[psutil.Process]:
        """Everything that runs on a worker's host: the worker, executors, Python workers, ranks."""
        found = []
        for pid in self._hosts().pids(index):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                found.append(psutil.Process(pid))
        return found

    def kill_host(self, index: int) -> None:
        """SIGKILL everything that runs on a worker's host; `start_worker` brings the host back.

        The kernel closes the connections of the dead, so that their peers know at once. After `link_down`
        they do not: that is a host without power.
        """
        self._hosts().kill(index)
        if process := self.worker_processes.pop(index, None):
            process.wait()

    def link_down(self, index: int) -> None:
        """Pull the network cable of a worker's host: nobody is told."""
        self._hosts().cut(index)

    def link_up(self, index: int) -> None:
        """Plug it in again."""
        self._hosts().mend(index)

    def stop(self) -> None:
        """Stop every process that was started: workers first, so that they end their executors."""
        processes = [*self.worker_processes.values(), *([self.master] if self.master else [])]
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            daemons.end(process, signal.SIGTERM)
        self.worker_processes.clear()
        self.master = None

    # --- how ---------------------------------------------------------------------------------------------

    @property
    def _java(self) -> list[str]:
        """Options of JVMs on this side, where /etc/hosts is the machine's and does not know our hosts."""
        return [f"-Djdk.net.hosts.file={self.folder / 'hosts'}"] if self.names else []

    def _hosts(self) -> HostNetwork:
        assert self.network is not None, "standalone_cluster(..., namespaces=True) has hosts"
        return self.network

    def _start(self, name: str, *arguments: str, worker: int | None = None) -> subprocess.Popen[bytes]:
        address = self.master_host if worker is None else self.worker_address(worker)
        environ = daemons.daemon_environment(self.folder, address, self.settings, *self._java)
        self.command = self.command or daemons.java_command(environ)
        command = [*self.command, *arguments]
        if self.network and worker is not None:
            command = self.network.command(worker, command)
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
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
    namespaces: bool = False,
    names: bool = False,
) -> Iterator[StandaloneCluster]:
    """Start a master and workers, and stop exactly these in the end.

    Args:
        workers: number of workers.
        cores: cores of each.
        memory: memory that each gives to executors, as Spark writes it.
        gpus: GPUs of each, made up by a discovery script; 0 for none.
        settings: Spark settings of the master and the workers.
        namespaces: each worker on a host of its own; see `skip_without_namespaces`.
        names: these hosts are known by name, not by address.
    """
    assert namespaces or not names, "only hosts of their own have names"
    folder = Path(tempfile.mkdtemp(prefix="standalone-cluster-"))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        network = None
        if namespaces:
            network = cleanup.enter_context(host_network([f"hydrogen-w{index}" for index in range(workers)]))
            # A JVM that has this table has no other, and looks up its own machine too.
            (folder / "hosts").write_text(f"{network.names()}{network.address} {socket.gethostname()}\n")
        cluster = StandaloneCluster(folder, cores, memory, gpus, dict(settings or {}), network, names)
        cleanup.callback(cluster.stop)
        cluster.start_master()
        cluster.start_workers(list(range(workers)))
        yield cluster


def processes_below(folder: Path) -> list[psutil.Process]:
    """Living processes that work in a folder or below it: Spark's daemons work elsewhere."""
    return living(lambda process: Path(process.cwd()).is_relative_to(folder))


def skip_without_namespaces() -> None:
    """Skip the test, with the reason, where the system lets nobody make hosts."""
    if reason := why_unavailable():
        pytest.skip(reason)
