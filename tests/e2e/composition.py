"""The services of docker-compose.yaml without a Docker: each on a host of its own.

A network namespace per container has its service's name and ports, so that commands, variables and health
checks stay as they are but for paths: what is in a volume or in an image there, is in a folder here.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.compose_file import ROOT, Service
from tests.integration.namespaces import HostNetwork

# What the images have besides volumes.
IN_IMAGES = {"/opt/hydrogen": ROOT / "docker"}
SCRATCH = "/tmp/spark-work"
AIRFLOW_HOME = "/opt/airflow"


@dataclass
class Composition:
    """Services that run, or ran.

    Attributes:
        network: one host a container, called like the service, or `service-1` and `service-2`.
        services: those that are run here.
        folder: logs, and what is in volumes.
        overrides: environment variables instead of the file's.
    """

    network: HostNetwork
    services: Mapping[str, Service]
    folder: Path
    overrides: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: list[str] | None = None) -> None:
        """Start a service on all of its hosts, with its own command unless another is given.

        A command is written with the paths inside a container.
        """
        service = self.services[name]
        for source in service.volumes.values():
            if not source.startswith("./"):
                self.volume(source).mkdir(parents=True, exist_ok=True)
        for host in host_names(service):
            with (self.folder / f"{host}.log").open("ab") as log:
                self.processes[host] = subprocess.Popen(
                    self._on(host, self._translate(host, command or service.command)),
                    env=self.environment(name, host),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def run(self, name: str, timeout_s: float) -> None:
        """Run a service that ends by itself, and require that it ends well."""
        self.start(name)
        code = self.processes.pop(name).wait(timeout_s)
        assert code == 0, f"{name} ended with {code}\n{self.tail(name)}"

    def stop(self) -> None:
        """Kill everything that runs on the hosts."""
        for index in range(len(self.network.hosts)):
            self.network.kill(index)
        for process in self.processes.values():
            process.wait(10)

    def health(self, name: str) -> list[str]:
        """What the health checks of a service's containers complain of; nothing if they are content."""
        service, complaints = self.services[name], []
        assert service.health_check is not None
        for host in host_names(service):
            done = subprocess.run(
                self._on(host, self._translate(host, service.health_check)),
                env=self.environment(name, host),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                complaints.append(f"{host}: {done.stdout}{done.stderr}")
        return complaints

    def wait_until_healthy(self, *names: str, timeout_s: float) -> None:
        """Wait for services, and fail with their complaints when they do not become healthy."""
        waiting = set(names)

        def healthy() -> str:
            complaints = {name: self.health(name) for name in sorted(waiting)}
            waiting.intersection_update(name for name, found in complaints.items() if found)
            return "\n".join(line for found in complaints.values() for line in found)

        self.wait_until_silent(healthy, timeout_s)

    def wait_until_silent(self, complain: Callable[[], str], timeout_s: float) -> None:
        """Wait until nothing is wrong any more, and fail when a service ends meanwhile."""
        deadline = time.monotonic() + timeout_s
        while complaint := complain():
            dead = [host for host, process in self.processes.items() if process.poll() is not None]
            assert not dead, f"{dead} ended\n" + "\n".join(self.tail(host) for host in dead)
            assert time.monotonic() < deadline, f"not after {timeout_s} s: {complaint}\n{self.tails()}"
            time.sleep(0.5)

    def environment(self, name: str, host: str) -> dict[str, str]:
        """The variables of a container: what a process needs anywhere, the image's and the service's."""
        inherited = {
            key: os.environ[key]
            for key in ("HOME", "JAVA_HOME", "JDK_JAVA_OPTIONS", "LANG")
            if key in os.environ
        }
        variables = {**self.services[name].environment, **self.overrides}
        values = self._translate(host, list(variables.values()))
        return {
            **inherited,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "SPARK_CONF_DIR": str(ROOT / "docker"),
            "AIRFLOW_HOME": self._translate(host, [AIRFLOW_HOME])[0],
            # A volume inside the home there, and so not found below the home here.
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": self._translate(host, [f"{AIRFLOW_HOME}/logs"])[0],
            **dict(zip(variables, values, strict=True)),
        }

    def address(self, name: str) -> str:
        """Where a service's only container is."""
        return self.network.hosts[self._index(name)].address

    def volume(self, name: str) -> Path:
        """The folder that stands for a named volume, the same for all hosts."""
        return self.folder / "volumes" / name

    def scratch(self, host: str) -> Path:
        """Where a Spark worker keeps its executors' files."""
        return self.folder / "scratch" / host

    def tail(self, host: str, lines: int = 40) -> str:
        """The end of a container's log."""
        log = (self.folder / f"{host}.log").read_text(errors="replace").splitlines()
        return f"--- {host}\n" + "\n".join(log[-lines:])

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(self.tail(host, 15) for host in self.processes)

    def _translate(self, host: str, words: list[str]) -> list[str]:
        """Put our folders in the place of the paths inside a container."""
        folders: dict[str, Path] = {**IN_IMAGES, SCRATCH: self.scratch(host)}
        folders[AIRFLOW_HOME] = self.folder / "homes" / host
        for service in self.services.values():
            for inside, source in service.volumes.items():
                folders[inside] = ROOT / source if source.startswith("./") else self.volume(source)
        inside = "|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True))
        # Where a path begins: our folders hold the same names further on.
        path = re.compile(rf"(?<![\w./-])({inside})(?![\w-])")
        return [path.sub(lambda found: str(folders[found[1]]), word) for word in words]

    def _on(self, host: str, command: list[str]) -> list[str]:
        return self.network.command(self._index(host), command)

    def _index(self, host: str) -> int:
        return [found.name for found in self.network.hosts].index(host)


def host_names(service: Service) -> list[str]:
    """What a service's containers are called."""
    if service.replicas == 1:
        return [service.name]
    return [f"{service.name}-{number + 1}" for number in range(service.replicas)]


def postgres_programs() -> Path | None:
    """The folder of initdb and postgres, which Debian keeps off the PATH."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def postgres_command(programs: Path, data: Path, environ: Mapping[str, str]) -> list[str]:
    """Make a database as the postgres image does, and return what starts its server.

    PostgreSQL refuses to run as root.
    """
    nobody = pwd.getpwnam("nobody")
    data.mkdir(parents=True)
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    as_nobody = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    password = data.with_suffix(".password")
    password.write_text(environ["POSTGRES_PASSWORD"])
    os.chown(password, nobody.pw_uid, nobody.pw_gid)
    user = environ["POSTGRES_USER"]
    initdb = [
        *(*as_nobody, str(programs / "initdb"), "--pgdata", str(data), "--username", user),
        *("--pwfile", str(password), "--auth", "scram-sha-256", "--no-sync"),
    ]
    subprocess.run(initdb, capture_output=True, check=True)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    single = [*as_nobody, str(programs / "postgres"), "--single", "-D", str(data), "postgres"]
    create = f"CREATE DATABASE {environ['POSTGRES_DB']}\n"
    subprocess.run(single, input=create, text=True, capture_output=True, check=True)
    options = ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
    return [*as_nobody, str(programs / "postgres"), "-D", str(data), *options]
