"""A Spark Connect server as a process, as an administrator starts one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.hooks.launchers import find_spark_submit
from tests.integration import spark_classes
from tests.integration.daemons import free_port

TOKEN = "not-for-everybody"
SECRET = "a-key-of-the-server"
_STARTED = "Spark Connect server started at"
_TIMEOUT_S = 120


@dataclass
class Server:
    """A running one.

    Attributes:
        process: of its JVM.
        access: what opens it.
        log: all that it says.
    """

    process: subprocess.Popen[bytes]
    access: ConnectAccess
    log: Path


@contextmanager
def connect_server(folder: Path, port: int | None = None) -> Iterator[Server]:
    """Start a server of two slots, which asks for a token."""
    port = port or free_port("127.0.0.1")
    log = folder / "connect-server.log"
    settings = {
        "spark.connect.grpc.binding.port": str(port),
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.hadoop.fs.s3a.secret.key": SECRET,
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
    }
    command = [find_spark_submit("spark-submit", os.environ), "--master", "local[2]"]
    for name, value in settings.items():
        command += ["--conf", f"{name}={value}"]
    command += ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"]
    environment = {
        **os.environ,
        "SPARK_CONNECT_AUTHENTICATE_TOKEN": TOKEN,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_SUBMIT_OPTS": f"-XX:+UseSerialGC -XX:TieredStopAtLevel=1 {spark_classes.options()}",
    }
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _TIMEOUT_S
        while _STARTED not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        access = ConnectAccess(conn_id="server", host="localhost", port=port, token=TOKEN)
        yield Server(process, access, log)
    finally:
        process.kill()
        process.wait()
