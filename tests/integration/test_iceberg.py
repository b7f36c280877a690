"""Iceberg tables in a real catalog (SQLite), read and written by pyiceberg, without Spark's own package."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_hydrogen.contract.jobs import Run, Sink, Source
from airflow_hydrogen.runtime.sinks import iceberg, placements
from tests.integration.models import dense, matrix_layout, publish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RUN = Run(dag_id="d", task_id="t", run_id="r")
DAY = {"ds": "2013-01-02"}


def other_run(name):
    return Run(dag_id="d", task_id="t", run_id=name)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """prediction = a + 10 b."""
    uri = str(tmp_path_factory.mktemp("models") / "linear")
    return publish(dense([[1.0], [10.0]]), uri, matrix_layout("a", "b"))


class Lake:
    """A catalog with the namespace `db`, and a table `db.t` that sinks make."""

    def __init__(self, folder):
        self.folder = folder
        self.properties = {
            "type": "sql",
            "uri": f"sqlite:///{folder}/catalog.db",
            "warehouse": folder.as_uri(),
        }
        self.catalog.create_namespace_if_not_exists("db")

    @property
    def catalog(self):
        from pyiceberg.catalog import load_catalog

        return load_catalog("default", **self.properties)

    @property
    def table(self):
        return self.catalog.load_table("db.t")

    def sink(self, partition=None, **arguments):
        return Sink.iceberg("db.t", catalog=self.properties, partition=partition, **arguments)

    def source(self, **arguments):
        return Source.iceberg("db.t", catalog=self.properties, **arguments)

    def rows(self, where="true"):
        return self.table.scan(row_filter=where).to_arrow().to_pylist()

    def ids(self, where="true"):
        return sorted(row["id"] for row in self.rows(where))

    def contents(self, where="true"):
        """Name -> hash of the files that hold rows."""
        files = [
            Path(urlsplit(task.file.file_path).path)
            for task in self.table.scan(row_filter=where).plan_files()
        ]
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def leftovers(self):
        """Files of the table's folder that no snapshot has, but for its metadata."""
        known = {Path(urlsplit(name).path) for name in iceberg._files_of(self.table)}
        data = Path(urlsplit(self.table.location()).path) / "data"
        return sorted(str(path) for path in data.rglob("*") if path.is_file() and path not in known)


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path)


def numbers(spark, start, end):
    return spark.range(start, end, 1, 2).selectExpr("id", "cast(id as float) as prediction")


def put(frame, sink, run=RUN, types=None):
    """The rows of a frame, put in place as if a model had made them; how many they were."""
    sink = sink.for_run(run)
    with placements.placing(frame.sparkSession, sink, run, {}, types, frame.schema) as place:
        rows, _ = place.stage(frame, None)
        assert place.count() == rows
        place.commit(rows=rows, model="/models/none")
    return rows


def threads(*calls):
    """What calls at the same time return or raise."""
    outcomes = [None] * len(calls)

    def run(place):
        try:
            outcomes[place] = calls[place]()
        except Exception as error:
            outcomes[place] = error

    started = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return outcomes


# --- The sink ----------------------------------------------------------------------------------------------


def test_one_partition_is_replaced_and_the_others_keep_every_byte(lake, spark):
    assert put(numbers(spark, 0, 10), lake.sink({"ds": "2013-01-01"})) == 10
    assert put(numbers(spark, 10, 30), lake.sink(DAY)) == 20
    before = lake.contents("ds = '2013-01-01'")
    assert put(numbers(spark, 30, 35), lake.sink(DAY), other_run("s")) == 5
    assert lake.ids("ds = '2013-01-02'") == list(range(30, 35))
    assert lake.ids("ds = '2013-01-01'") == list(range(10))
    assert lake.contents("ds = '2013-01-01'") == before
    assert lake.leftovers() == []
    assert len(lake.table.snapshots()) == 3, "one for each commit"
    assert put(numbers(spark, 0, 0), lake.sink(DAY)) == 0
    assert lake.ids() == list(range(10))
    said = lake.table.current_snapshot().summary.additional_properties
    assert json.loads(said["airflow-hydrogen.made-by"]) == {"model_uri": "/models/none"}
    assert json.loads(said["airflow-hydrogen.run"])["run_id"] == "r"
