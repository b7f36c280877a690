"""Secrets of a training on a real cluster: looked for wherever others could see them."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.jobs import Source
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.runtime.storage import filesystems, s3
from airflow_hydrogen.testing import TaskRun, run_task
from scripts.jars import jars
from tests.integration.cluster import StandaloneCluster, standalone_cluster
from tests.integration.daemons import free_port
from tests.integration.databases import DatabaseServer
from tests.integration.object_store import BUCKET, ObjectStore, object_store

pytestmark = [pytest.mark.integration, pytest.mark.large, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct-horse-battery-staple"
# As the gang's token looks, and nothing else on a page or a command line.
TOKEN = re.compile(r"\b[0-9a-f]{64}\b")


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandaloneCluster]:
    with standalone_cluster(workers=1, cores=2, memory="1g", gpus=0) as started:
        yield started


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("objects")) as started:
        yield started


def test_no_secret_is_seen_by_others(
    cluster: StandaloneCluster,
    postgres: DatabaseServer,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    eventually: Callable[..., None],
) -> None:
    connection = {**json.loads(cluster.connection()), "login": "somebody", "password": PASSWORD}
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(connection))
    database = postgres.database()
    database.execute("CREATE TABLE orders AS SELECT n AS id, n * 2.0 AS a FROM generate_series(1, 100) n")
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", database.dsn.replace("postgresql:", "postgres:"))
    keys = store.access
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", store.connection())
    with s3.using(keys):
        filesystem, path = filesystems.resolve(f"s3://{BUCKET}/more/x.parquet")
        pq.write_table(pa.table({"a": [1.0, 2.0]}), path, filesystem=filesystem)
    monkeypatch.setenv("AIRFLOW__AIRFLOW_HYDROGEN__JARS_FOLDER", str(jars("postgresql")[0].parent))
    monkeypatch.syspath_prepend(ROOT)
    port = free_port("127.0.0.1")
    operator = HorovodTrainOperator(
        task_id="train",
        entrypoint="tests.integration.gang_apps:count",
        entrypoint_kwargs={"folder": str(tmp_path)},
        np=2,
        train_data=Source.jdbc("shop", table="orders", partition_column="id", partitions=2),
        validation_data=Source.parquet(f"s3://{BUCKET}/more"),
        aws_conn_id="lake",
        model_uri=str(tmp_path / "model"),
        conf={
            **cluster.driver_settings(),
            "spark.logConf": "true",
            "spark.sql.sources.parallelPartitionDiscovery.threshold": "7",
            "spark.ui.port": str(port),
            "spark.executorEnv.PYTHONPATH": str(ROOT),
            "spark.pyspark.python": sys.executable,
            "spark.executor.memory": "512m",
        },
    )
    ran: list[TaskRun | BaseException] = []

    def run() -> None:
        try:
            ran.append(run_task(operator))
        except BaseException as error:
            ran.append(error)

    task = threading.Thread(target=run)
    task.start()
    try:
        eventually(lambda: ran or (tmp_path / "rank-1.0.json").exists(), "both ranks run", 180)
        assert not ran, ran
        seen = {"command lines": _command_lines(), **_pages(cluster, port)}
    finally:
        (tmp_path / "finish").touch()
        task.join(180)
    assert isinstance(ran[0], TaskRun), ran
    assert ran[0].xcoms["report"]["sources"]["train"]["rows"] == 100
    assert ran[0].xcoms["report"]["sources"]["validation"]["files"] == 1
    seen["XComs"] = json.dumps([ran[0].xcoms, ran[0].return_value], default=str)
    seen["report and model"] = json.dumps(ran[0].xcoms["report"])
    seen["log"] = "".join(capfd.readouterr())
    (spark_log,) = tmp_path.glob(".model.spark-*-1.log")
    seen["Spark's log"] = spark_log.read_text()
    # What is looked through holds what it should: a search in nothing would find nothing.
    assert "airflow_hydrogen.runtime.rank.worker" in seen["command lines"]
    (settings,) = [text for place, text in seen.items() if place.endswith("/environment")]
    assert "spark.executorEnv.PYTHONPATH" in settings
    assert "spark.hadoop.fs.s3a.secret.key" in settings
    # A setting of the user's wins over our default, and this master is not a local one.
    assert '["spark.sql.sources.parallelPartitionDiscovery.threshold","7"]' in "".join(settings.split())
    assert "[gang] epoch=" in seen["log"]
    assert ran[0].xcoms["_link_spark_log"] == f"file://{spark_log}"
    assert " INFO SparkContext: Running Spark" in seen["Spark's log"]
    assert " INFO DAGScheduler: " in seen["Spark's log"]
    assert " INFO " not in seen["log"], "the task's log has Spark's warnings alone"
    assert "Adding for sources and sink: " in seen["log"] and "/postgresql-" in seen["log"]
    assert "Scan JDBC" in seen["/SQL/execution/?id=0"]
    digest = ran[0].xcoms["report"]["sources"]["validation"]["digest"]  # as long as a token
    for place, text in seen.items():
        assert PASSWORD not in text, place
        assert database.password not in text, place
        assert str(keys.secret_key) not in text, place
        if place != "log":  # the model's fingerprints are hashes of that length
            assert set(TOKEN.findall(text)) <= {digest}, place


def _command_lines() -> str:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid():
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # it ended meanwhile, or is not ours to see
            continue
    return "\n".join(found)


def _pages(cluster: StandaloneCluster, port: int) -> dict[str, str]:
    """Spark's pages: the driver's, the master's, the worker's."""
    driver = f"http://127.0.0.1:{port}"
    (application,) = json.loads(_get(f"{driver}/api/v1/applications"))
    api = f"/api/v1/applications/{application['id']}"
    paths = ["/jobs/", "/stages/", "/environment/", "/executors/", "/SQL/"]
    paths += [f"/SQL/execution/?id={number}" for number in range(3)]
    paths += [f"{api}/{name}" for name in ("environment", "jobs", "stages", "executors")]
    found = {path: _get(driver + path) for path in paths}
    found["master"] = _get(cluster.web_url + "/") + _get(cluster.web_url + "/json/")
    found["worker"] = "".join(_get(worker["webuiaddress"] + "/") for worker in cluster.alive_workers())
    return found


def _get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        text: Any = answer.read().decode()
        return str(text)
