from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.runtime.connect import sessions
from airflow_hydrogen.runtime.gang.barriers import OnConnect


@pytest.mark.parametrize(
    ("settings", "host", "bind"),
    [
        ({"spark.master": "local[2]", "spark.driver.host": "10.0.0.5"}, "127.0.0.1", "127.0.0.1"),
        ({"spark.master": "spark://m:7077", "spark.driver.host": "10.0.0.5"}, "10.0.0.5", "10.0.0.5"),
        (
            {
                "spark.master": "yarn",
                "spark.driver.host": "10.0.0.5",
                "spark.driver.bindAddress": "0.0.0.0",
            },
            "10.0.0.5",
            "0.0.0.0",
        ),
    ],
)
def test_executors_elsewhere_reach_a_driver_beside_the_server(
    settings: dict[str, str], host: str, bind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_of_connect = type(
        "SparkSession", (SimpleNamespace,), {"__module__": "pyspark.sql.connect.session"}
    )
    spark: Any = session_of_connect(conf=settings)
    with socket.create_server(("127.0.0.1", 0)) as server:
        access = ConnectAccess(conn_id="s", host="127.0.0.1", port=server.getsockname()[1])
        monkeypatch.setattr(sessions, "access_of_job", lambda: access)
        barrier = OnConnect(spark)
    assert (barrier.host, barrier.bind) == (host, bind)
