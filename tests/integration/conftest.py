from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_hydrogen.contract import python_workers
from airflow_hydrogen.runtime.scoring import warming
from scripts.jars import JarsUnavailableError, jars
from tests.integration import daemons, servers, spark_classes
from tests.integration.broker import Kafka, kafka_broker
from tests.integration.databases import DatabaseServer, mariadb_server, postgres_server
from tests.integration.metastore import Metastore, hive_metastore

EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
SESSION = {
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.databricks.delta.snapshotPartitions": "1",  # of tasks that read its log; 50 by itself
}
WORKER_MODULES = (
    "pyarrow.parquet",
    "pyspark.worker",
    "airflow_hydrogen.runtime.scoring.inference",
    "tensorflow",
    "keras",
)
CONNECTORS = ("delta", "avro", "kafka", "postgresql", "mariadb", "mysql")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist's processes get the environment of this one
        given = os.environ.get("SPARK_SUBMIT_OPTS", "")
        os.environ["SPARK_SUBMIT_OPTS"] = f"{spark_classes.options()} {given}".strip()


@dataclass(frozen=True)
class Warehouse:
    """What the one Spark of these tests gets for sources and sinks.

    Attributes:
        jars: connectors and drivers.
        missing: why there are none.
        metastore_port: where it looks for Hive's metastore, which is started when a test asks for it.
        folder: of managed tables.
    """

    jars: list[Path]
    missing: str
    metastore_port: int
    folder: Path

    @property
    def settings(self) -> dict[str, str]:
        """Of its applications; what they name is looked at when it is used."""
        hive = {
            "spark.sql.catalogImplementation": "hive",
            "spark.hadoop.hive.metastore.uris": f"thrift://{servers.HOST}:{self.metastore_port}",
            "spark.hadoop.hive.exec.dynamic.partition.mode": "nonstrict",
            "spark.sql.warehouse.dir": (self.folder / "warehouse").as_uri(),
        }
        return {**hive, "spark.jars": ",".join(map(str, self.jars))} if self.jars else hive


# To write, compile and load code costs more than to interpret expressions, for a hundred rows.
_INTERPRETED = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}


@pytest.fixture(scope="session")
def _warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    found, missing = [], ""
    try:
        found = jars(*CONNECTORS)
    except JarsUnavailableError as unavailable:  # most tests do without; `warehouse` fails
        missing = str(unavailable)
    return Warehouse(found, missing, daemons.free_port(servers.HOST), tmp_path_factory.mktemp("metastore"))


@pytest.fixture(scope="session")
def spark(_warehouse: Warehouse) -> Iterator[Any]:
    """One Spark in local mode with two task slots, for every test that does not need another.

    It interprets its expressions: to generate code takes a fifth of such a session's processor time, and most
    of what its tasks do. What tests submit generates code, as users' applications do: in tests/e2e and
    where there is a cluster, a driver of its own, a fault or a secret.
    """
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.ui.explainMode", "simple")  # each query is described for a page that nobody sees
        .config("spark.driver.host", "localhost")
        # As operators have it: workers are forked with what they would import for themselves, one by one.
        .config(warming.DAEMON, python_workers.MODULE)
        .config(f"spark.executorEnv.{python_workers.MODULES_VARIABLE}", ",".join(WORKER_MODULES))
        .config("spark.executorEnv.SPARK_SIMPLIFIED_TRACEBACK", "1")
    )
    for name, value in {**_INTERPRETED, **_warehouse.settings}.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()
    # It says that it closes connections when the interpreter ends, to an output that is closed by then.
    logging.getLogger("py4j").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def metastore(_warehouse: Warehouse) -> Iterator[Metastore]:
    """Hive's metastore, where `spark` looks for it."""
    with hive_metastore(_warehouse.folder, _warehouse.metastore_port) as started:
        yield started


@pytest.fixture(scope="session")
def warehouse(spark: Any, metastore: Metastore, _warehouse: Warehouse) -> Any:
    """A session of `spark`'s application with Delta's extension and catalog, and with Hive's metastore.

    Not `spark` itself: Delta's parser loses the values that are bound to names in a query (`args`).
    """
    from pyspark.sql import SparkSession

    if _warehouse.missing:
        pytest.fail(_warehouse.missing)
    context = spark.sparkContext
    # Extensions come from the application's settings alone, and `spark` has been made without.
    context._jsc.sc().conf().set("spark.sql.extensions", EXTENSION)
    make = SparkSession._get_j_spark_session_class(context._jvm)
    return SparkSession(context, make(context._jsc.sc(), SESSION))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """PostgreSQL; `postgres.database()` makes a database for one test."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as started:
        yield started


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """MariaDB, which stands for MySQL too; `mariadb.database()` makes a database for one test."""
    with mariadb_server(tmp_path_factory.mktemp("mariadb")) as started:
        yield started


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A Kafka broker; `kafka.topic()` makes a topic for one test."""
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as started:
        yield started
