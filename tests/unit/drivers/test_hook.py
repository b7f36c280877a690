"""The hook for drivers on a standalone cluster; spark-submit and Java are shell scripts here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_hydrogen.clusters.drivers import StandaloneDrivers
from airflow_hydrogen.contract.errors import BundleServerError, ClusterUnreachableError, InvalidJobError
from airflow_hydrogen.drivers.bundle_server import KEY_VARIABLE, BundleServer
from airflow_hydrogen.drivers.clean_java import DRIVER_ENVIRONMENT, clean
from airflow_hydrogen.drivers.hook import ClusterDriverHook, is_remote, open_bundle_server
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook

SUBMITTED = 'echo "INFO Driver successfully submitted as driver-20260101000000-0007"'


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch)
    (tmp_path / "jdk" / "bin").mkdir(parents=True)
    write(tmp_path / "jdk" / "bin" / "java", "env")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))


@pytest.fixture
def server() -> Iterator[BundleServer]:
    with BundleServer(("127.0.0.1", 7077)) as serving:
        yield serving


def connect(monkeypatch: pytest.MonkeyPatch, host: str = "spark://127.0.0.1", **extra: Any) -> None:
    connection = {
        "conn_type": "spark",
        "host": host,
        "port": 7077,
        "extra": {"deploy-mode": "cluster", **extra},
    }
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(connection))


def write(file: Path, text: str) -> str:
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)
    return str(file)


def driver_hook(tmp_path: Path, server: BundleServer, text: str, **options: Any) -> ClusterDriverHook:
    defaults: dict[str, Any] = {"supervise": False, "on_driver": lambda driver_id: None}
    binary = write(tmp_path / "spark-submit", text)
    return ClusterDriverHook(server=server, spark_binary=binary, **{**defaults, **options})


def test_the_driver_is_told_at_once(tmp_path: Path, server: BundleServer) -> None:
    told: list[str] = []
    hook = driver_hook(tmp_path, server, SUBMITTED, on_driver=told.append)
    assert hook.submit(server.bundle_url) == "driver-20260101000000-0007"
    assert told == [hook.driver_id] == ["driver-20260101000000-0007"]


def test_a_driver_that_fails_early_was_submitted_all_the_same(tmp_path: Path, server: BundleServer) -> None:
    hook = driver_hook(tmp_path, server, f"{SUBMITTED}; exit 255")
    assert hook.submit(server.bundle_url) == "driver-20260101000000-0007"
    with pytest.raises(AirflowException, match="Error code is: 1"):
        driver_hook(tmp_path, server, "echo refused; exit 1").submit(server.bundle_url)


def test_the_token_stays_out_of_the_log(
    tmp_path: Path, server: BundleServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = driver_hook(tmp_path, server, f'echo "jar $@"; {SUBMITTED}')
    hook.submit(server.bundle_url)
    log = capsys.readouterr().out + hook.log_tail
    assert "Spark-Submit cmd:" in log
    assert "/******/airflow_hydrogen_application.jar" in log
    assert server.token not in log
    assert server.key not in log


def test_nothing_of_airflows_environment_reaches_the_cluster(
    tmp_path: Path, server: BundleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """spark-submit's Java sends its whole environment to the driver."""
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "secret")
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "secret")
    monkeypatch.setenv("PYSPARK_PYTHON", "/airflow/python")
    monkeypatch.setenv("SPARK_LOCAL_IP", "10.0.0.1")
    monkeypatch.setenv("_SPARK_AUTH_SECRET", "for the master")
    hook = driver_hook(
        tmp_path,
        server,
        f"{SUBMITTED}; env > {tmp_path}/scripts; "
        f'"$JAVA_HOME/bin/java" -cp x org.apache.spark.deploy.SparkSubmit > {tmp_path}/java',
        env_vars={"PYSPARK_PYTHON": "/cluster/python", "RETRIES": 3},
    )
    hook.submit(server.bundle_url)
    assert "secret" not in (tmp_path / "scripts").read_text()
    seen = dict(line.split("=", 1) for line in (tmp_path / "java").read_text().splitlines())
    for made_by_the_shell in ("PWD", "SHLVL", "_"):
        seen.pop(made_by_the_shell, None)
    assert seen == {
        "PYSPARK_PYTHON": "/cluster/python",
        "RETRIES": "3",
        "_SPARK_AUTH_SECRET": "for the master",
        KEY_VARIABLE: server.key,
    }


def test_default_properties_are_found_without_the_environment(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    defaults = tmp_path / "conf" / "spark-defaults.conf"
    defaults.write_text("spark.executor.memory 1g")
    environ = {"SPARK_HOME": str(tmp_path), DRIVER_ENVIRONMENT: "{}"}
    command = ["-cp", "x", "org.apache.spark.deploy.SparkSubmit", "--master", "m", "app"]
    arguments, left = clean(environ, command)
    assert arguments == [*command[:3], "--properties-file", str(defaults), *command[3:]]
    assert left == {}
    own = [*command[:3], "--properties-file", "mine.conf", "app"]
    assert clean(environ, own)[0] == own
    assert clean({**environ, "SPARK_CONF_DIR": str(tmp_path)}, command)[0] == command
    launcher = ["-cp", "x", "org.apache.spark.launcher.Main", "org.apache.spark.deploy.SparkSubmit"]
    assert clean(environ, launcher) == (launcher, environ)


def test_kill_ends_the_driver_by_the_masters_page(
    tmp_path: Path, server: BundleServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[str] = []

    async def kill(master: StandaloneDrivers, session: Any, driver_id: str) -> None:
        killed.append(driver_id)
        if len(killed) > 1:
            raise ClusterUnreachableError("http://m", "status 503")

    monkeypatch.setattr(StandaloneDrivers, "kill", kill)
    hook = driver_hook(tmp_path, server, SUBMITTED)
    hook.on_kill()
    assert killed == []  # there is none yet
    hook.submit(server.bundle_url)
    hook.on_kill()
    assert killed == ["driver-20260101000000-0007"]
    hook.on_kill()
    assert "was not ended: cluster manager at http://m: status 503" in capsys.readouterr().out


def test_supervise_is_an_option_of_spark_submit(tmp_path: Path, server: BundleServer) -> None:
    hook = driver_hook(tmp_path, server, f'echo "$@"; {SUBMITTED}', supervise=True)
    hook.submit(server.bundle_url)
    assert "--supervise" in hook.log_tail
    assert sys.executable not in hook.log_tail


def test_where_to_serve_is_the_connections_business(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_bundle_server(HydrogenSparkSubmitHook()) as server:
        assert server.bundle_url.startswith("http://127.0.0.1:")
    connect(monkeypatch, host="spark://127.0.0.1:7077,other")
    with open_bundle_server(HydrogenSparkSubmitHook()) as server:
        assert server.bundle_url.startswith("http://127.0.0.1:")
    connect(monkeypatch, **{"bundle-host": "nat.example.com"})
    with open_bundle_server(HydrogenSparkSubmitHook()) as server:
        assert server.bundle_url.startswith("http://nat.example.com:")
    connect(monkeypatch, **{"bundle-port": "http"})
    with pytest.raises(InvalidJobError, match="bundle-port must be a number, found 'http'"):
        open_bundle_server(HydrogenSparkSubmitHook())
    connect(monkeypatch, host="spark://no.such.host.invalid")
    with pytest.raises(BundleServerError, match="no.such.host.invalid"):
        open_bundle_server(HydrogenSparkSubmitHook())


@pytest.mark.parametrize(
    ("file", "remote"),
    [("/a/b.zip", False), ("b.zip", False), ("file:/b.zip", False), ("s3a://b/c", True), ("local:/b", True)],
)
def test_what_the_cluster_fetches_by_itself(file: str, remote: bool) -> None:
    assert is_remote(file) is remote
