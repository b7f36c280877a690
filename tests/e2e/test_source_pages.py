"""The DAGs of docs/sources/, as they stand there: flights in tables of all kinds, and through Kafka."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.runtime.models.aliases import history, set_alias
from airflow_hydrogen.runtime.models.directory import read_manifest
from scripts.dag_runs import DagRun, DagRunner
from scripts.jars import jars
from tests.e2e.conftest import DAGS, ROOT, Home
from tests.integration.broker import Kafka, kafka_broker
from tests.integration.databases import Database, postgres_server
from tests.integration.metastore import Metastore, hive_metastore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

PAGES = {
    page: (ROOT / "docs" / "sources" / f"{page}.md").read_text()
    for page in ("delta", "hive", "iceberg", "kafka", "postgresql")
}
DAY = "2013-07-01"
CONNECTORS = ("delta", "kafka", "postgresql")
LOADING = """
import json, os

from pyiceberg.catalog import load_catalog
from flights import data
from flights.settings import LAKE as lake
from pyspark.sql import SparkSession

data.load(lake)
catalog = load_catalog(**json.loads(os.environ["AIRFLOW_CONN_FLIGHTS_CATALOG"])["extra"])
spark = SparkSession.builder.getOrCreate()
"""


def blocks(page: str) -> list[str]:
    """The pieces of Python of a page: its DAG, and what fills its table."""
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server.database()


@pytest.fixture(scope="module")
def metastore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metastore]:
    with hive_metastore(tmp_path_factory.mktemp("metastore")) as started:
        yield started


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as started:
        yield started


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The properties of an Iceberg catalog of its own."""
    folder = tmp_path_factory.mktemp("iceberg")
    uri = f"sqlite:///{folder}/catalog.db"
    return {"name": "lake", "type": "sql", "uri": uri, "warehouse": folder.as_uri()}


@pytest.fixture(scope="module")
def pages_home(
    modules_home: Home,
    database: Database,
    metastore: Metastore,
    broker: Kafka,
    catalog: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Home:
    """An Airflow with the DAGs of the pages, and the tables that they fill."""
    dags = tmp_path_factory.mktemp("dags")
    shutil.copytree(DAGS / "flights", dags / "flights")
    shutil.copy(DAGS / ".airflowignore", dags)
    for page in PAGES:
        (dags / f"flights_{page}.py").write_text(blocks(page)[0])
    connectors = jars(*CONNECTORS)
    environment = modules_home.environment | {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__AIRFLOW_HYDROGEN__JARS_FOLDER": str(connectors[0].parent),
        "AIRFLOW_CONN_FLIGHTS_DATABASE": json.dumps(
            {
                "conn_type": "postgres",
                "host": database.host,
                "port": database.port,
                "login": database.user,
                "password": database.password,
                "schema": database.name,
            }
        ),
        "AIRFLOW_CONN_FLIGHTS_BROKER": json.dumps(
            {"conn_type": "kafka", "extra": {"bootstrap.servers": broker.bootstrap}}
        ),
        "AIRFLOW_CONN_FLIGHTS_CATALOG": json.dumps({"conn_type": "iceberg", "extra": catalog}),
        "AIRFLOW_VAR_HIVE_METASTORE": metastore.uri,
        # Of tasks that read Delta's log of a single commit, and of a shuffle: 50 and 200 by themselves.
        "SPARK_SUBMIT_OPTS": " ".join(
            [
                modules_home.environment.get("SPARK_SUBMIT_OPTS", ""),
                "-Dspark.databricks.delta.snapshotPartitions=2",
                "-Dspark.sql.shuffle.partitions=2",
            ]
        ).strip(),
    }
    shown = {  # in the pages -> what stands in its place in a test
        "jdbc:postgresql://localhost:5432/warehouse": database.jdbc_url,
        "hydrogen-development": database.password,
        "localhost:9094": broker.bootstrap,
    }
    python_path = os.pathsep.join([str(dags), environment["PYTHONPATH"]])
    fill(environment | {"PYTHONPATH": python_path}, shown, metastore)
    return Home(modules_home.airflow, modules_home.flights, environment)


def fill(environment: dict[str, str], shown: dict[str, str], metastore: Metastore) -> None:
    """Run what the pages say of their tables and their topic, in one session of Spark."""
    text = LOADING + "\n".join(blocks(page)[1] for page in PAGES)
    for printed, real in shown.items():
        assert text.count(printed) == 1
        text = text.replace(printed, real)
    settings = {
        "spark.jars": ",".join(map(str, jars(*CONNECTORS))),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.ui.enabled": "false",
        **metastore.settings,
    }
    options = " ".join(f"--conf {name}={value}" for name, value in settings.items())
    environment = environment | {"PYSPARK_SUBMIT_ARGS": f"--master local[2] {options} pyspark-shell"}
    done = subprocess.run(
        [sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runner(pages_home: Home) -> Iterator[DagRunner]:
    with DagRunner(pages_home.environment, pages_home.log) as running:
        yield running


def scores(home: Home, page: str, partition: str = f"ds={DAY}") -> pd.DataFrame:
    """What a page's DAG has written, in an order of its own."""
    if page == "iceberg":
        from pyiceberg.catalog import load_catalog

        properties = json.loads(home.environment["AIRFLOW_CONN_FLIGHTS_CATALOG"])["extra"]
        scored = load_catalog(**properties).load_table("lake.scores").scan(row_filter=f"ds = '{DAY}'")
        table = scored.to_arrow().drop_columns("ds")
    else:
        folder = home.flights / page / "scores" / partition
        table = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    keys = ["sched_dep_time", "carrier", "flight", "origin", "dest"]
    frame: pd.DataFrame = table.to_pandas().sort_values(keys, ignore_index=True)
    return frame


def test_every_page_has_a_dag_that_imports(runner: DagRunner) -> None:
    dag_ids, errors = runner.dags()
    assert errors == {}
    assert dag_ids == [f"flights_{page}" for page in PAGES]


@pytest.fixture(scope="module")
def whole(runner: DagRunner) -> DagRun:
    """A run of Delta's DAG, from the training to the scores."""
    run = runner.run("flights_delta", conf={"ds": DAY})
    assert run.state == "success", run.tasks
    return run


def test_a_model_of_a_delta_table_is_promoted_and_scores_a_day_of_it(whole: DagRun, pages_home: Home) -> None:
    production = f"{pages_home.flights}/delta/models/production.alias"
    report = whole.xcoms["score"]["report"]
    assert (report["model_uri"], report["model_alias"]) == (whole.xcoms["train"]["return_value"], production)
    assert report["source"]["version"] == whole.xcoms["train"]["report"]["sources"]["train"]["version"] == 0
    [set_by] = [said.set_by for said in history(production)]
    assert set_by == {"dag_id": "flights_delta", "task_id": "promote", "run_id": whole.run_id}
    flights = pyarrow.dataset.dataset(pages_home.flights / "lake" / "flights" / f"ds={DAY}")
    assert len(scores(pages_home, "delta")) == report["rows"] == flights.count_rows() > 900


@pytest.mark.parametrize(
    ("page", "known"), [("hive", "files"), ("iceberg", "version"), ("postgresql", "rows")]
)
def test_the_same_flights_of_another_store_are_scored_alike(
    runner: DagRunner, pages_home: Home, whole: DagRun, page: str, known: str
) -> None:
    """Scored by the model of Delta's DAG, so that the scores can be held against each other."""
    set_alias(f"{pages_home.flights}/{page}/models/production.alias", whole.xcoms["train"]["return_value"])
    trains = page == "postgresql"  # Hive's tables are read like it: by Spark
    run = runner.run(f"flights_{page}", conf={"ds": DAY}, done="promote" if trains else "train|promote")
    assert run.state == "success", run.tasks
    if trains:
        trained, model = run.xcoms["train"]["report"], read_manifest(run.xcoms["train"]["return_value"])
        assert trained["rows"] == whole.xcoms["train"]["report"]["rows"] > 5_000
        assert (model.version, model.entrypoint) == (trained["model_version"], "flights.train:main")
        assert trained["sources"]["train"][known] > 0
    assert run.xcoms["score"]["report"]["source"][known] > 0
    expected = scores(pages_home, "delta")
    pd.testing.assert_frame_equal(scores(pages_home, page), expected, rtol=1e-4, check_dtype=False)


def test_flights_that_come_as_messages_are_scored_alike(
    runner: DagRunner, pages_home: Home, broker: Kafka, whole: DagRun
) -> None:
    """By the same model, and a message that is no flight is set aside."""
    model = whole.xcoms["train"]["return_value"]
    broker.produce("flights", [(b"N1", b"no flight")])
    set_alias(f"{pages_home.flights}/kafka/models/production.alias", model)
    run = runner.run("flights_kafka", done="train|promote")
    assert run.state == "success", run.tasks
    report = run.xcoms["score"]["report"]
    expected = scores(pages_home, "delta")
    assert (report["rows"], report["rows_quarantined"]) == (len(expected), 1)
    assert report["rows_in"] == report["source"]["offsets"]["flights"]["0"] == len(expected) + 1
    found = scores(pages_home, "kafka", "batch=0")
    assert set(found.pop("model_version")) == {report["model_version"]}
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, check_dtype=False)
    [letter] = pq.read_table(report["quarantine_uri"]).to_pylist()
    assert (letter["kafka_key"], letter["raw_value"]) == (b"N1", b"no flight")
    assert letter["reason"] == "the value is not JSON of the schema"
