"""One server for all tasks of a kind: who starts it, who joins it, and what ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import LocalServerError
from airflow_hydrogen.hooks.local_servers import folders
from airflow_hydrogen.hooks.local_servers.folders import ServerFolder, servers_folder
from airflow_hydrogen.hooks.local_servers.joining import joined
from airflow_hydrogen.hooks.local_servers.listing import list_servers, stop_server
from airflow_hydrogen.hooks.local_servers.settings import this_machine
from airflow_hydrogen.hooks.sessions import end_session

IDLE_S = 0.6

# A task of its own, which prints the server's process and stays.
TASK = """
import sys, tempfile, time
from airflow_hydrogen.hooks.local_servers.joining import joined
from airflow_hydrogen.hooks.local_servers.settings import ServerSettings
tempfile.tempdir, fake, java = sys.argv[1:]
settings = ServerSettings(spark_submit=fake, java=java, environ={environ!r}, conf={conf!r}, modules=(),
                          idle_s={idle_s})
with joined(settings, lambda line: None) as server:
    print(server.pid, server.url, flush=True)
    time.sleep(60)
"""


def quiet(_line: str) -> None:
    """What a task would log."""


def start_task(settings) -> tuple[subprocess.Popen[str], int]:
    """A task, and the server's process."""
    code = TASK.format(environ=settings.environ, conf=settings.conf, idle_s=settings.idle_s)
    task = subprocess.Popen(
        [sys.executable, "-c", code, tempfile.gettempdir(), settings.spark_submit, settings.java],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert task.stdout is not None
    return task, int(task.stdout.readline().split()[0])


def end(task: subprocess.Popen[str]) -> None:
    """As the kernel ends what takes too much memory."""
    task.kill()
    task.wait()
    assert task.stdout is not None
    task.stdout.close()


def folder_of(server) -> ServerFolder:
    return ServerFolder(servers_folder() / server.key)


def keeper_of(server) -> int:
    return int(folder_of(server).keeper.read_text())


def test_a_later_task_joins_what_the_first_has_started(settings):
    said: list[str] = []
    with joined(settings(), said.append) as first:
        assert first.url.startswith("sc://localhost:")
        assert len(first.token) == 64 and first.token not in repr(first)
        assert "starting" in said[0]
    with joined(settings(), said.append) as second:
        assert (second.pid, second.token, second.url) == (first.pid, first.token, first.url)
        assert "joined in" in said[-1] and len(said) == 3


def test_tasks_that_start_at_once_start_one_server(settings):
    at_once = threading.Barrier(4)

    def task(_number: int) -> int:
        at_once.wait()
        with joined(settings(), quiet) as server:
            return server.pid

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(task, range(4)))) == 1
    assert [path.name for path in servers_folder().iterdir()] == [settings().key()]


def test_what_differs_is_not_shared(settings):
    with joined(settings(), quiet) as one, joined(settings(master="local[2]"), quiet) as other:
        assert one.key != other.key and one.pid != other.pid and one.token != other.token


def test_files_and_folders_are_this_users_alone(settings):
    with joined(settings(), quiet) as server:
        folder = folder_of(server).path
        assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
        files = [path for path in folder.iterdir() if path.is_file()]
        assert {"server.json", "spark.properties", "plan.json", "log"} < {path.name for path in files}
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_it_ends_when_nobody_has_used_it_for_a_while_and_not_sooner(settings, processes, eventually):
    with joined(settings(idle_s=IDLE_S), quiet) as server:
        time.sleep(2 * IDLE_S)  # in use: that it lives on after this time is what is tested
        assert processes(server)
    left = time.monotonic()
    eventually(lambda: not processes(server), "it ends")
    assert time.monotonic() - left > IDLE_S * 0.9
    eventually(lambda: list(servers_folder().iterdir()) == [], "nothing is left of it")


def test_a_task_that_is_killed_does_not_hold_it(settings, processes, eventually):
    task, pid = start_task(settings(idle_s=IDLE_S))
    with joined(settings(idle_s=IDLE_S), quiet) as server:
        assert server.pid == pid
        processes(server)
    assert [info.state for info in list_servers()] == ["in use"]
    end(task)
    eventually(lambda: not processes(server), "it ends")


def test_it_outlives_the_task_that_has_started_it_and_the_tasks_session(settings):
    task, pid = start_task(settings())
    end_session(task, 3.0)
    end(task)
    with joined(settings(), quiet) as server:
        assert server.pid == pid


@pytest.mark.parametrize("way", ["serves", "deaf"])
def test_where_its_keeper_has_died_it_ends_and_the_next_task_gets_another(
    settings, processes, way, monkeypatch
):
    monkeypatch.setattr(folders, "_GRACE_S", 1.0)
    with joined(settings(way), quiet) as first:
        before = processes(first)
        assert len(before) == 2
        os.kill(keeper_of(first), signal.SIGKILL)
        with joined(settings(way), quiet) as second:
            assert second.pid != first.pid
            assert not processes(first), "whatever the kernel has left is ended before another is started"
            assert len(processes(second)) == 2
            os.kill(second.pid, signal.SIGKILL)


def test_where_the_server_has_died_its_keeper_ends_and_its_users_can_read_why(
    settings, processes, eventually
):
    with joined(settings(), quiet) as first:
        processes(first)
        os.kill(first.pid, signal.SIGKILL)
        eventually(lambda: not processes(first), "the keeper ends")
        assert "serving" in first.log_tail
        assert "the server has ended with exit code -9" in first.log_tail
        with joined(settings(), quiet) as second:
            assert second.pid != first.pid
    assert [path.name for path in servers_folder().iterdir()] == [second.key]


def test_a_server_that_does_not_come_up_is_an_error_that_shows_its_log(settings, eventually):
    with (
        pytest.raises(LocalServerError, match="not enough memory") as caught,
        joined(settings("dies"), quiet),
    ):
        pass
    assert "ended with exit code 1 before it listened" in caught.value.log_tail
    eventually(lambda: list(servers_folder().iterdir()) == [], "nothing is left of it")


def test_a_server_that_does_not_answer_in_time_is_ended(settings):
    silent = settings("mute", start_timeout_s=0.5)
    with pytest.raises(LocalServerError, match="did not listen within 0.5 s"), joined(silent, quiet):
        pass


def test_another_port_is_tried_where_the_first_one_has_been_taken(settings):
    with joined(settings("late"), quiet) as server:
        assert (folder_of(server).work / "tried").exists()


@pytest.fixture
def starting(settings, eventually):
    """The folder of a server that never answers, and how the task ends that waits for it."""
    errors: list[str] = []

    def task() -> None:
        try:
            with joined(settings("mute"), quiet):
                pass
        except LocalServerError as error:
            errors.append(str(error))

    thread = threading.Thread(target=task)
    thread.start()
    folder = ServerFolder(servers_folder() / settings("mute").key())
    eventually(lambda: folder.keeper.exists() and folder.keeper.read_text(), "its keeper is there")
    assert [info.state for info in list_servers()] == ["starting"]

    def end() -> str:
        thread.join(10)
        return errors[0]

    yield folder, end
    stop_server(force=True)
    thread.join(10)


def test_a_keeper_that_dies_while_it_starts_the_server_is_an_error(starting):
    folder, end = starting
    os.kill(int(folder.keeper.read_text()), signal.SIGKILL)
    assert "before it answered" in end()
    assert [info.state for info in list_servers()] == ["dead"]
    assert stop_server() == ([folder.path.name], [])
    assert list(servers_folder().iterdir()) == []


def test_one_that_is_being_started_is_stopped_by_force(starting):
    folder, end = starting
    assert stop_server() == ([], [folder.path.name])
    assert stop_server(force=True) == ([folder.path.name], [])
    assert "it was told to end before it listened" in end()
    assert list(servers_folder().iterdir()) == []


def test_a_disk_without_room_is_an_error(settings, monkeypatch):
    def full(_file: Path, _text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_secretly", full)
    with pytest.raises(LocalServerError, match="No space left"), joined(settings(), quiet):
        pass
    assert list(servers_folder().iterdir()) == []


def test_elsewhere_than_on_linux_there_is_none(settings, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LocalServerError, match="darwin"), joined(settings(), quiet):
        pass
    assert list_servers() == [] and stop_server() == ([], [])


def test_what_removes_unused_temporary_files_finds_them_used(settings):
    with joined(settings(), quiet) as server:
        folder = folder_of(server)
        os.utime(folder.users, (1, 1))
        folders.keep_files(folder.path)
        found = folder.users.stat()
        assert found.st_mtime == 1.0, "nobody has used it"
        assert time.time() - found.st_atime < 60


def test_one_that_is_used_is_stopped_by_force_alone(settings, processes):
    with joined(settings(), quiet) as server:
        processes(server)
        assert stop_server() == ([], [server.key])
        assert processes(server)
        assert stop_server(server.key, force=True) == ([server.key], [])
        assert not processes(server)


def test_one_that_is_not_named_lives_on(settings):
    with joined(settings(), quiet) as one, joined(settings(master="local[2]"), quiet) as other:
        pass
    assert stop_server(one.key) == ([one.key], [])
    assert [info.key for info in list_servers()] == [other.key]


def test_a_keeper_that_does_not_listen_is_ended_too(settings, processes, monkeypatch):
    monkeypatch.setattr("airflow_hydrogen.hooks.local_servers.listing._END_S", 0.5)
    with joined(settings(), quiet) as server:
        processes(server)
        os.kill(keeper_of(server), signal.SIGSTOP)
    assert stop_server() == ([server.key], [])
    assert not processes(server)


def test_the_list_says_what_there_is(settings):
    with joined(settings(master="local[3]", idle_s=77), quiet) as server:
        (info,) = list_servers()
    assert (info.key, info.state, info.master, info.url) == (server.key, "in use", "local[3]", server.url)
    assert (info.pid, info.idle_s) == (server.pid, 77)
    assert info.memory_bytes > 1_000_000
    assert server.token not in repr(info)
    assert list_servers()[0].state == "idle"


def test_another_machines_servers_are_left_alone_until_nobody_has_kept_them_for_long(settings, monkeypatch):
    other = servers_folder() / "0badcafe-1234"
    other.mkdir()
    (other / "keeper").touch()
    assert not this_machine().startswith("0badcafe")
    with joined(settings(), quiet):
        assert other.exists()
    assert len(list_servers()) == 1
    monkeypatch.setattr(folders, "_FOREIGN_S", -1.0)
    folders.sweep(servers_folder())
    assert not other.exists()
