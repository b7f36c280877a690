"""What servers have in common, what they are given of an environment, and the file of their settings."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.hooks.launchers import read_properties
from airflow_hydrogen.hooks.local_servers.processes import began, listens, lives
from airflow_hydrogen.hooks.local_servers.properties import (
    server_properties,
    worker_environment,
    write_properties,
)

TASK = {
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://airflow:secret@db/airflow",
    "AIRFLOW_CONN_LAKE": "aws://key:secret@",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ACCESS_KEY_ID": "key",
    "MY_PASSWORD": "secret",
    "SPARK_REMOTE": "sc://elsewhere",
    "SPARK_CONNECT_AUTHENTICATE_TOKEN": "secret",
    "_SPARK_AUTH_SECRET": "secret",
    "OPENAI_API_KEY": "secret",
}


def test_a_task_leaves_no_secret_and_nothing_of_airflow_in_the_environment(settings):
    given = settings().environ
    found = settings(environ={**given, **TASK}).environment
    assert found == settings().environment
    assert not {"secret", "key"} & set(found.values())


def test_tasks_with_other_secrets_share_a_server(settings):
    assert settings(environ={**settings().environ, **TASK}).key() == settings().key()


@pytest.mark.parametrize(
    "options",
    [
        {"master": "local[7]"},
        {"conf": {"spark.driver.memory": "2g"}},
        {"modules": ("tensorflow",)},
        {"java": sys.executable},
        {"environ": {"TF_ENABLE_ONEDNN_OPTS": "0"}},
        {"environ": {"PYTHONPATH": "/opt/project"}},
    ],
)
def test_whatever_makes_another_server_makes_another_key(settings, options):
    if "environ" in options:
        options = {"environ": {**settings().environ, **options["environ"]}}
    assert settings(**options).key() != settings().key()


@pytest.mark.parametrize(
    ("name", "text"),
    [("spark-defaults.conf", "spark.driver.memory 2g"), ("hive-site.xml", "<configuration/>")],
)
def test_other_settings_of_this_machine_make_another_key(settings, tmp_path, name, text):
    before = settings().key()
    (tmp_path / "spark" / "conf").mkdir()
    (tmp_path / "spark" / "conf" / name).write_text(text)
    assert settings().key() != before
    assert settings().spark_conf.get("spark.driver.memory") == ("2g" if text.startswith("spark") else None)


def test_what_workers_are_to_have_in_their_environment_the_server_has():
    given = {"spark.executorEnv.PYTHONPATH": "/theirs", "spark.executorEnv.A": "b", "spark.a": "c"}
    found = worker_environment({"PYTHONPATH": "/package", "A": "a"}, given)
    assert found == {"PYTHONPATH": os.pathsep.join(["/package", "/theirs"]), "A": "b"}


def test_how_long_it_lives_does_not_make_another(settings):
    assert settings(idle_s=1.0, start_timeout_s=7.0).key() == settings().key()


@pytest.mark.parametrize("idle_s", [0, -1.0, float("nan"), float("inf")])
def test_an_idle_time_that_is_none_is_refused(settings, idle_s):
    with pytest.raises(InvalidJobError, match="session_idle_s"):
        settings(idle_s=idle_s)


def test_other_code_of_this_package_makes_another_key(settings, tmp_path, monkeypatch):
    before = settings().key()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "one.py").write_text("1")
    monkeypatch.setattr("airflow_hydrogen.__file__", str(tmp_path / "package" / "__init__.py"))
    one = settings().key()
    (tmp_path / "package" / "one.py").write_text("2")
    assert len({before, one, settings().key()}) == 3


def test_the_path_of_imports_has_this_package_and_nothing_relative(settings):
    found = settings(environ={"PYTHONPATH": os.pathsep.join(["", "relative", "/opt/project"])}).environment
    entries = found["PYTHONPATH"].split(os.pathsep)
    assert entries[-1] == "/opt/project"
    assert all(os.path.isabs(entry) for entry in entries)


def test_settings_are_written_as_they_are_read(tmp_path):
    file = tmp_path / "spark.properties"
    write_properties(file, {"spark.a": "b", "spark.token": "t"})
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_properties(file) == {"spark.a": "b", "spark.token": "t"}
    write_properties(file, {"spark.a": "#c d\\e=f\nnot.another=1"})
    assert file.read_text() == "spark.a \\#c\\ d\\\\e\\=f\\nnot.another\\=1\n"


def test_the_users_settings_win_but_over_what_a_server_is():
    given = {
        "spark.ui.enabled": "true",
        "spark.driver.extraJavaOptions": "-Xss2m",
        "spark.connect.grpc.binding.address": "0.0.0.0",
        "spark.connect.authenticate.token": "theirs",
    }
    found = server_properties("local[2]", given, token="ours", port=1234)
    assert found["spark.ui.enabled"] == "true"
    assert found["spark.driver.extraJavaOptions"].startswith("-Xss2m ")
    assert found["spark.connect.grpc.binding.address"] == "127.0.0.1"
    assert found["spark.connect.authenticate.token"] == "ours"


def test_a_port_on_which_another_process_listens_is_not_the_servers():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert listens(os.getpid(), port)
        assert not listens(os.getppid(), port)


def test_a_process_is_told_from_a_later_one_with_its_number():
    began_at = began(os.getpid())
    assert began_at is not None and lives(os.getpid(), began_at)
    assert not lives(os.getpid(), began_at - 1)
    assert began(2**22) is None and not lives(2**22, 0)
