"""The servers and connectors that tests of sources, sinks and streams stand on: each works through Spark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration import daemons, servers
from tests.integration.broker import Kafka, Record
from tests.integration.databases import MYSQL_DRIVER, DatabaseServer
from tests.integration.metastore import Metastore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DATABASES = ["postgres", "mariadb"]

# Starts a server as a test does, says its process, and is killed.
STARTER = """
import sys, time
from pathlib import Path
from tests.integration import servers

server = servers.Server(["sleep", "600"], Path(sys.argv[1]), lambda: True)
server.start()
print(server.process.pid, flush=True)
time.sleep(600)
"""


def rows_of(frame: Any) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in frame.collect())


# --- Servers alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_is_new_and_keeps_its_rows_over_a_kill(name: str, request: pytest.FixtureRequest) -> None:
    server: DatabaseServer = request.getfixturevalue(name)
    one, other = server.database(), server.database()
    text = "VARCHAR(20)"
    one.execute(f"CREATE TABLE t (n INT, s {text})", "INSERT INTO t VALUES (1, 'ü🐘')")
    other.execute(f"CREATE TABLE t (n INT, s {text})")
    server.server.kill()
    server.server.start()
    assert one.rows("SELECT n, s FROM t") == [(1, "ü🐘")]
    assert other.rows("SELECT n, s FROM t") == []


@pytest.mark.parametrize("name", DATABASES)
def test_a_wrong_password_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    import psycopg2
    import pymysql

    first = request.getfixturevalue(name).first
    with pytest.raises((psycopg2.OperationalError, pymysql.OperationalError), match=r"(?i)password"):
        type(first)(first.scheme, first.driver, first.port, first.name, password="wrong").connect()


def test_the_broker_keeps_its_records_over_a_kill(kafka: Kafka) -> None:
    topic = kafka.topic(partitions=2)
    kafka.produce(topic, [(b"a", b"1"), (None, b"2")], partition=1, headers=[("from", b"test")])
    kafka.kill()
    kafka.start()
    kafka.produce(topic, [(b"c", None)], partition=0)
    assert kafka.consume(topic) == [
        Record(0, 0, b"c", None),
        Record(1, 0, b"a", b"1", (("from", b"test"),)),
        Record(1, 1, None, b"2", (("from", b"test"),)),
    ]


def test_a_server_does_not_outlive_the_process_that_started_it(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, tmp_path / "log"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert starter.stdout is not None
    with starter.stdout:
        server = psutil.Process(int(starter.stdout.readline()))
    daemons.end(starter, signal.SIGKILL)
    eventually(
        lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "the server has ended"
    )


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo no such setting; exit 1"]
    server = servers.Server(command, tmp_path / "log", lambda: False)
    with pytest.raises(RuntimeError, match="has ended.*\n.*no such setting"):
        server.start()


# --- Through Spark ---------------------------------------------------------------------------------------


def test_delta_by_version(warehouse: Any, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    warehouse.range(3).write.format("delta").save(table)
    warehouse.range(5).write.format("delta").mode("overwrite").save(table)
    assert warehouse.read.format("delta").load(table).count() == 5
    assert warehouse.read.format("delta").option("versionAsOf", 0).load(table).count() == 3


def test_avro(warehouse: Any, tmp_path: Path) -> None:
    file = str(tmp_path / "file")
    warehouse.sql("SELECT 1L AS n, 'ü' AS s").write.format("avro").save(file)
    assert rows_of(warehouse.read.format("avro").load(file)) == [(1, "ü")]


@pytest.mark.parametrize("name", DATABASES)
def test_jdbc(warehouse: Any, name: str, request: pytest.FixtureRequest) -> None:
    database = request.getfixturevalue(name).database()
    rows = warehouse.sql("SELECT id AS n, concat('ü', id) AS s FROM range(3)")
    rows.write.format("jdbc").options(**database.options, dbtable="t").save()
    assert sorted(database.rows("SELECT n, s FROM t")) == [(0, "ü0"), (1, "ü1"), (2, "ü2")]
    read = warehouse.read.format("jdbc").options(**database.options)
    assert rows_of(read.option("query", "SELECT s FROM t WHERE n > 0").load()) == [("ü1",), ("ü2",)]


def test_mysqls_driver_reads_from_mariadb(warehouse: Any, mariadb: DatabaseServer) -> None:
    database = mariadb.database()
    database.execute("CREATE TABLE t (s VARCHAR(20))", "INSERT INTO t VALUES ('ü')")
    options = {**database.options, "driver": MYSQL_DRIVER}
    assert rows_of(warehouse.read.format("jdbc").options(**options, dbtable="t").load()) == [("ü",)]


def test_kafka(warehouse: Any, kafka: Kafka) -> None:
    topic = kafka.topic(partitions=2)
    options = {"kafka.bootstrap.servers": kafka.bootstrap}
    rows = warehouse.sql("SELECT 'k' AS key, concat('v', id) AS value FROM range(2)")
    rows.write.format("kafka").options(**options, topic=topic).save()
    assert {record.value for record in kafka.consume(topic)} == {b"v0", b"v1"}
    kafka.produce(topic, [(None, b"v2")], partition=0)
    read = warehouse.read.format("kafka").options(**options, subscribe=topic).load()
    assert rows_of(read.selectExpr("CAST(value AS STRING)")) == [("v0",), ("v1",), ("v2",)]


def test_two_applications_share_a_metastore(warehouse: Any, metastore: Metastore) -> None:
    warehouse.sql("CREATE TABLE servers_hive (n INT) PARTITIONED BY (ds STRING) STORED AS PARQUET")
    warehouse.sql("INSERT OVERWRITE servers_hive PARTITION (ds='x') SELECT 1")
    # Another client of the same service: Spark's is in use meanwhile.
    jvm = warehouse._jvm
    settings = jvm.org.apache.hadoop.hive.conf.HiveConf()
    settings.set("hive.metastore.uris", metastore.uri)
    client = jvm.org.apache.hadoop.hive.metastore.HiveMetaStoreClient(settings)
    try:
        (partition,) = client.listPartitions("default", "servers_hive", 10)
        assert list(partition.getValues()) == ["x"]
        assert partition.getSd().getLocation().startswith(f"file:{metastore.folder}")
    finally:
        client.close()
    assert rows_of(warehouse.table("servers_hive")) == [(1, "x")]
    warehouse.sql("DROP TABLE servers_hive")
    assert "servers_hive" not in os.listdir(metastore.folder)
