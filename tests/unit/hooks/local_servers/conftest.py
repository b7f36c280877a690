"""A spark-submit that serves nothing: it listens where it is told, as a server of Spark Connect does."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_hydrogen.hooks.local_servers.folders import ServerFolder, servers_folder
from airflow_hydrogen.hooks.local_servers.joining import LocalServer
from airflow_hydrogen.hooks.local_servers.listing import stop_server
from airflow_hydrogen.hooks.local_servers.processes import marked
from airflow_hydrogen.hooks.local_servers.settings import ServerSettings

FAKE = """#!{python}
import pathlib, signal, socket, sys
file = sys.argv[sys.argv.index("--properties-file") + 1]
conf = dict(line.split(" ", 1) for line in pathlib.Path(file).read_text().splitlines())
way = conf.get("fake.way", "serves")
if way == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if way == "dies":
    sys.exit("not enough memory")
tried = pathlib.Path("tried")
if way == "late" and not tried.exists():
    tried.touch()
    sys.exit("java.net.BindException: Address already in use")
with socket.socket() as listener:
    if way != "mute":
        listener.bind(("127.0.0.1", int(conf["spark.connect.grpc.binding.port"])))
        listener.listen()
    print("serving", flush=True)
    signal.pause()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test's own, in which no server is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    stop_server(force=True)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., ServerSettings]:
    """Settings of a server that takes no time to start; options are those of ServerSettings."""
    fake = tmp_path / "bin" / "spark-submit"
    fake.parent.mkdir()
    fake.write_text(FAKE.format(python=sys.executable))
    fake.chmod(0o755)
    java = tmp_path / "bin" / "java"
    java.touch()
    (tmp_path / "spark" / "jars").mkdir(parents=True)
    environ = {"PATH": "/usr/bin:/bin", "SPARK_HOME": str(tmp_path / "spark"), "HOME": str(tmp_path)}

    def make(way: str = "serves", **options: Any) -> ServerSettings:
        given = {
            "spark_submit": str(fake),
            "java": str(java),
            "environ": environ,
            "conf": {"fake.way": way},
            "modules": (),
        }
        return ServerSettings(**{**given, **options})

    return make


@pytest.fixture
def processes() -> Callable[[LocalServer], list[int]]:
    """All that belongs to a server, seen while it is there and thereafter."""
    marks: dict[str, str] = {}

    def find(server: LocalServer) -> list[int]:
        folder = ServerFolder(servers_folder() / server.key)
        mark = marks.setdefault(server.url, folder.plan().get("mark", ""))
        assert mark, "look at it first while it is there"
        return marked(mark)

    return find
