from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_hydrogen.contract import jobs
from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.connect_limits import require_possible
from airflow_hydrogen.contract.errors import InvalidJobError, NotOnConnectError
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.contract.streams import StreamOptions
from airflow_hydrogen.hooks.connect import HydrogenConnectHook, access_of, is_connect


def connection(conn_type: str = "spark_connect", extra: object = None, **fields: Any) -> Connection:
    return Connection(conn_id="server", conn_type=conn_type, extra=json.dumps(extra or {}), **fields)


def access(host: str = "spark.example.org", **fields: Any) -> ConnectAccess:
    return ConnectAccess(conn_id="server", host=host, **fields)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (connection(host="spark.example.org"), access()),
        (connection(host="sc://spark.example.org"), access()),
        (connection("spark", host="sc://spark.example.org:7"), access(port=7)),
        (connection("spark", host="sc://spark.example.org/"), access()),
        (
            connection(host="spark.example.org", port=9, login="ada", password="t"),
            access(port=9, user_id="ada", token="t"),
        ),
        (connection(host="spark.example.org", extra={"use_ssl": True}), access(use_ssl=True)),
        (connection(host="spark.example.org", extra={"use_ssl": "false"}), access()),
        (
            connection("spark", host="sc://spark.example.org/;use_ssl=true;user_id=ada;x-team=a%20b"),
            access(use_ssl=True, user_id="ada", headers={"x-team": "a b"}),
        ),
        (connection(host="[::1]", port=4), access("::1", port=4)),
    ],
)
def test_a_connection_says_where_the_server_is(given: Connection, expected: ConnectAccess) -> None:
    assert is_connect(given)
    assert access_of("server", given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (connection(), "no address of a Spark Connect server"),
        (connection("spark", host="sc://"), "no address of a Spark Connect server"),
        (connection("spark", host="sc://host:port"), "no address of a Spark Connect server"),
        (connection("spark", host="sc://host/path"), "no address of a Spark Connect server"),
        (connection("spark", host="sc://host/;token=hush"), "credentials stand in an address"),
        (connection("spark", host="sc://ada:hush@host"), "credentials stand in an address"),
        (connection("spark", host="sc://host/;session_id=1"), "names a session_id"),
        (connection(host="host", password="hush\n"), "the token, has a blank, a line break"),
        (
            connection(host="host", extra={"use_ssl": "perhaps"}),
            "use_ssl must be true or false",
        ),
    ],
)
def test_an_address_that_does_not_work_is_refused(given: Connection, said: str) -> None:
    with pytest.raises(InvalidJobError, match=said) as error:
        access_of("server", given)
    assert "hush" not in str(error.value)


def test_other_connections_are_none_to_a_server() -> None:
    assert not is_connect(connection("spark", host="spark://master:7077"))
    assert not is_connect(connection("spark", host="local[2]"))


@pytest.mark.parametrize(
    ("found", "tls"),
    [
        (access("localhost", token="t"), False),
        (access("127.0.0.1", token="t"), True),
        (access("host"), False),
        (access("host", use_ssl=True), True),
    ],
)
def test_when_the_client_speaks_tls(found: ConnectAccess, tls: bool) -> None:
    assert found.speaks_tls == tls


def test_the_token_is_in_the_job_and_nowhere_else() -> None:
    found = access(token="hush", py_files=("a.zip",), settings={"spark.sql.x": "1"})
    assert "hush" not in repr(found) + found.url
    job = InferenceJob(
        model_uri="/m", source=Source.parquet("/s"), sink=Sink.parquet("/t"), report_uri="/r", connect=found
    )
    assert "hush" not in repr(job)
    assert jobs.loads(jobs.dumps(job)) == job


def hook(**options: Any) -> HydrogenConnectHook:
    return HydrogenConnectHook(access=access(), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"executor_memory": "2g"}, "executor_memory='2g' is not possible on Spark Connect"),
        ({"packages": "a:b:1"}, "packages='a:b:1'"),
        ({"spark_binary": "spark3-submit"}, "spark_binary='spark3-submit'"),
        ({"deploy_mode": "cluster"}, "deploy_mode='cluster'"),
        (
            {"conf": {"spark.executor.cores": 2, "spark.sql.ansi.enabled": True}},
            "conf 'spark.executor.cores'",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(NotOnConnectError, match=said):
        hook(**options).require_possible()


def test_sessions_of_other_code_are_others(tmp_path: Path) -> None:
    code = tmp_path / "code.zip"
    code.write_bytes(b"one")
    other = tmp_path / "other.py"
    other.write_text("two")
    found = hook(conf={"spark.sql.ansi.enabled": False}, py_files=str(other)).with_code([code])
    assert (found.settings, found.py_files) == ({"spark.sql.ansi.enabled": "False"}, (str(other), str(code)))
    assert found.code == hook(py_files=str(other)).with_code([code]).code
    code.write_bytes(b"another")
    assert found.code != hook(py_files=str(other)).with_code([code]).code
    with pytest.raises(NotOnConnectError, match="py_files='s3://bucket/a.zip'.*it has none there"):
        hook(py_files="s3://bucket/a.zip").with_code([])


def test_the_client_is_started_with_the_code_and_the_environment(tmp_path: Path) -> None:
    started = hook(py_files="/a.zip,/b.zip", env_vars={"TEAM": 3}, application_args=["/job.json"])
    command = started._build_spark_submit_command("/app.py")
    assert command[-2:] == ["/app.py", "/job.json"]
    assert "spark-submit" not in " ".join(command)
    assert started._env is not None
    assert started._env["TEAM"] == "3"
    assert started._env["PYTHONPATH"].startswith("/a.zip:/b.zip")


JOB = InferenceJob(model_uri="/m", source=Source.parquet("/s"), sink=Sink.parquet("/t"), report_uri="/r")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sink": Sink.delta("/d")}, "sink delta /d is not possible on Spark Connect"),
        ({"source": Source.jdbc("db", table="t")}, "source .* is not possible on Spark Connect"),
        (
            {"source": Source.sql("select 1 from d", d=Source.delta("/d"))},
            "source delta '/d' is not possible",
        ),
        ({"gpus_per_task": 1}, "gpus_per_task=1 is not possible"),
        ({"s3": S3Access(conn_id="lake")}, "aws_conn_id='lake' is not possible"),
        (
            {
                "source": Source.files_stream("/s", schema="a int"),
                "stream": StreamOptions(trigger="available_now", checkpoint_uri="/c"),
            },
            "is not possible on Spark Connect",
        ),
    ],
)
def test_what_takes_a_spark_context_is_refused(changes: dict[str, Any], said: str) -> None:
    require_possible(JOB)
    with pytest.raises(NotOnConnectError, match=said):
        require_possible(dataclasses.replace(JOB, **changes))


def test_files_that_a_session_takes(tmp_path: Path) -> None:
    for name in ("a.zip", "b.py", "c.txt", "other.zip"):
        (tmp_path / name).write_text(name)
    archive = f"{tmp_path}/a.zip#env"
    sent = hook(archives=archive, files=f"{tmp_path}/c.txt").with_code([tmp_path / "other.zip"])
    assert (sent.archives, sent.files) == ((archive,), (f"{tmp_path}/c.txt",))
    others = (
        {"archives": f"{tmp_path}/a.zip", "files": f"{tmp_path}/c.txt"},
        {"archives": archive, "files": f"{tmp_path}/c.txt,{tmp_path}/a.zip"},
        {"files": f"{tmp_path}/c.txt", "py_files": f"{tmp_path}/a.zip"},
    )
    codes = {hook(**other).with_code([tmp_path / "other.zip"]).code for other in others}
    assert len({*codes, sent.code}) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"py_files": "none.py"}, "py_files='none.py'.*has none there"),
        ({"py_files": "c.whl"}, "names of these end with .py or .zip"),
        ({"archives": "c.whl"}, "names of these end with .zip"),
        ({"files": "c.whl#d"}, "only archives get another name"),
        ({"files": "c.whl,below/c.whl"}, "files='c.whl,below/c.whl'.*one file of a name"),
    ],
)
def test_files_that_a_session_does_not_take(
    options: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("below").mkdir()
    for name in ("c.whl", "below/c.whl"):
        Path(name).touch()
    with pytest.raises(NotOnConnectError, match=said):
        hook(**options).with_code([])


def test_a_module_of_py_files_is_imported_by_the_task_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("value = 5")
    (tmp_path / "secrets.py").write_text("raise RuntimeError('not named')")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "application.py").write_text("import mine, secrets; print(mine.value)")
    started = hook(py_files=f"{tmp_path}/mine.py")
    command = started._build_spark_submit_command(str(tmp_path / "job" / "application.py"))
    environment = {**os.environ, **(started._env or {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "5\n", done.stderr
