"""Rows that go into an Iceberg table without Spark, which has no part in that; and drivers that die there.

As a program: `python -m tests.integration.iceberg_writer JSON`, see `test_iceberg`.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import pyarrow as pa
from pyspark.sql.types import FloatType, LongType, StructField, StructType

from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.sinks import iceberg
from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles
from airflow_hydrogen.runtime.storage import filesystems

SCHEMA = StructType([StructField("id", LongType()), StructField("prediction", FloatType())])


def stage(rows, ids, **columns):
    """Stage rows in two files, as tasks write them."""
    files = rows.by_tasks.fitted(TaskFiles("sink", rows.by_tasks.staged, pa.schema([])))
    filesystems.make_folder(files.folder)
    for half in (ids[::2], ids[1::2]):
        with TaskFile(files) as file:
            values = {"id": half, "prediction": pa.array(map(float, half), pa.float32())}
            values |= {name: pa.array(map(value, half)) for name, value in columns.items()}
            file.add(pa.record_batch(values))


def put(ids, sink, run, types=None, schema=SCHEMA, **columns):
    """Put rows in place; how many they were."""
    sink, ids = sink.for_run(run), list(ids)
    with iceberg.placing(sink, run, {}, types or {}, schema) as rows:
        stage(rows, ids, **columns)
        assert rows.count() == len(ids)
        rows.commit(rows=len(ids), model="/models/none")
    return len(ids)


def die(*_given, **_named):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment):
    """See to it that this process is killed at a moment of its commit."""
    if moment == "while files are brought":
        transfer = filesystems.transfer

        def once(*given):
            transfer(*given)
            die()

        filesystems.transfer = once
    elif moment == "before the commit":
        iceberg.Target.commit = die
    else:
        iceberg.Rows._sweep_after = die


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    die_at(asked["dies"])
    put(asked["ids"], Sink.from_dict(asked["sink"]), Run(dag_id="d", task_id="t", run_id="killed"))
