"""The Spark Connect server that tasks leave behind: the real one, its workers, and what ends them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import LocalServerError
from airflow_hydrogen.hooks.local_servers.folders import ServerFolder, servers_folder
from airflow_hydrogen.hooks.local_servers.joining import joined
from airflow_hydrogen.hooks.local_servers.listing import list_servers, stop_server
from airflow_hydrogen.hooks.local_servers.processes import marked
from airflow_hydrogen.hooks.local_servers.settings import ServerSettings
from tests.integration import local_server_client

pytestmark = pytest.mark.integration

SECRETS = {
    "AIRFLOW_CONN_LAKE": "aws://AKIA:of-a-task@",
    "AIRFLOW__CORE__FERNET_KEY": "of-a-task",
    "AWS_SECRET_ACCESS_KEY": "of-a-task",
    "DATABASE_PASSWORD": "of-a-task",
}
_LISTENS = "0A"
_LOOPBACK = re.compile(r"0100007F|0{16}FFFF00000100007F")


@pytest.fixture(scope="module", autouse=True)
def temporary(tmp_path_factory):
    """A temporary folder of these tests' own, in which no server is left."""
    before = tempfile.tempdir
    tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))
    yield Path(tempfile.tempdir)
    stop_server(force=True)
    tempfile.tempdir = before


def settings(**options) -> ServerSettings:
    environ = {**os.environ, **SECRETS, "TMPDIR": str(tempfile.tempdir)}
    return ServerSettings.find(environ, master="local[2]", **options)


@pytest.fixture(scope="module")
def server():
    """One that workers are forked for."""
    with joined(settings(), print) as found:
        yield found


@pytest.fixture(scope="module")
def seen(server):
    """What a client sees of it."""
    done = subprocess.run(
        [sys.executable, local_server_client.__file__, server.url],
        input=f"{server.token}\n",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{server.log_tail}"
    return json.loads(done.stdout.splitlines()[-1])


def mark_of(server) -> str:
    return ServerFolder(servers_folder() / server.key).plan()["mark"]


def proc(pid: int, name: str) -> str:
    return Path("/proc", str(pid), name).read_bytes().replace(b"\0", b"\n").decode()


def airflow(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command."""
    environ = {**os.environ, "AIRFLOW_HOME": str(folder / "airflow"), "TMPDIR": str(tempfile.tempdir)}
    command = [str(Path(sys.executable).with_name("airflow")), "hydrogen", "session", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_each_session_has_workers_that_were_forked_with_all_frameworks_imported(server, seen):
    first, second = seen["workers"]
    assert first["had"] == second["had"] == list(local_server_client.FRAMEWORKS)
    assert first["parent"] != second["parent"], "sessions do not share a daemon"
    assert "--ahead" in proc(first["parent"], "cmdline"), "a daemon is forked of what has imported ahead"
    assert first["hash"] == second["hash"]


def test_no_secret_of_a_task_is_in_the_environment_of_anything_that_stays(server, seen):
    for worker in seen["workers"]:
        assert not {"of-a-task", server.token} & set(worker["environment"].values())
        assert not [name for name in worker["environment"] if name in SECRETS]
    processes = marked(mark_of(server))
    assert server.pid in processes and len(processes) >= 5, "its keeper, JVM, daemons and workers"
    for pid in processes:
        for name in ("environ", "cmdline"):
            said = proc(pid, name)
            assert "of-a-task" not in said and server.token not in said


def test_whoever_has_not_the_token_is_refused(server, seen):
    assert ["Invalid authentication token" in why or "UNAUTHENTICATED" in why for why in seen["refused"]] == [
        True,
        True,
    ]
    assert server.token not in server.log_tail


def test_it_listens_for_this_machine_alone(server):
    port = int(server.url.rpartition(":")[2])
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    found = [line[1].partition(":") for line in lines if line[3] == _LISTENS]
    addresses = [address for address, _, number in found if int(number, 16) == port]
    assert addresses and all(_LOOPBACK.fullmatch(address) for address in addresses)


def test_the_command_lists_and_stops(server, tmp_path):
    listed = airflow(tmp_path, "list", "--output", "json")
    assert listed.returncode == 0, listed.stderr
    (row,) = json.loads(listed.stdout)
    assert (row["key"], row["state"], row["pid"]) == (server.key, "in use", str(server.pid))
    assert int(row["memory_mb"]) > 100 and server.token not in listed.stdout
    stopped = airflow(tmp_path, "stop", server.key)
    assert stopped.returncode == 1 and server.key in stopped.stderr and "--force" in stopped.stderr


def test_where_the_jvm_has_no_memory_all_of_it_ends(server, seen, eventually):
    mark = mark_of(server)
    code = (
        "import sys; from pyspark.sql.connect.session import SparkSession;"
        "spark = SparkSession.builder.remote(sys.stdin.readline()).create();"
        'spark.sql("select sum(length(repeat(cast(id as string), 1500000000))) from range(1, 3)").collect()'
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        client.stdin.write(f"{server.url}/;token={server.token}")
        client.stdin.close()
        eventually(lambda: not marked(mark), "keeper, JVM, daemons and workers end", 60)
    finally:
        client.kill()  # it asks for minutes whether the server is there again
        client.wait()
    assert "OutOfMemoryError" in server.log_tail
    assert not (servers_folder() / server.key).exists()


def test_where_the_keeper_is_killed_the_kernel_ends_the_jvm_and_that_its_workers(eventually):
    with joined(settings(modules=()), print) as server:
        mark = mark_of(server)
        os.kill(int((servers_folder() / server.key / "keeper").read_text()), signal.SIGKILL)
        eventually(lambda: not marked(mark), "the JVM ends", 30)
    assert [info.state for info in list_servers()] == ["dead"]


def test_it_ends_when_nobody_has_used_it_for_a_while(eventually):
    with joined(settings(modules=(), idle_s=1.0), print) as server:
        mark = mark_of(server)
    assert [info.state for info in list_servers()] == ["idle"], "the dead one has been cleared away"
    eventually(lambda: not marked(mark), "it ends", 30)
    eventually(lambda: list_servers() == [], "nothing is left of it")


def test_a_jvm_that_cannot_start_says_why():
    absurd = settings(modules=(), conf={"spark.driver.memory": "1k"})
    with pytest.raises(LocalServerError, match="too small|Too small|small"), joined(absurd, print):
        pass
