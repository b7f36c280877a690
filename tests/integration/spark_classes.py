"""Spark's classes, kept for all that runs spark-submit in these tests, as operators keep them for their own.

Run by spark-submit it is the application whose classes are kept.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from airflow_hydrogen.contract.errors import SparkSubmitNotFoundError
from airflow_hydrogen.hooks.class_archives import find_class_archive
from airflow_hydrogen.hooks.launchers import find_java, find_spark_submit


def options() -> str:
    """Options with which a JVM of spark-submit's takes a third less processor time, or nothing.

    The operators find the same archive, and write none any more.
    """
    try:
        spark_submit = find_spark_submit("spark-submit", os.environ)
    except SparkSubmitNotFoundError:
        return ""
    archive = find_class_archive(spark_submit, find_java(os.environ), os.environ)
    if archive is None:
        return ""
    java = archive.begin() or archive.begin()  # the first one of a machine only leaves a note
    if not archive.writes:
        return java
    command = [spark_submit, "--conf", "spark.ui.enabled=false", __file__]
    environment = {**os.environ, "SPARK_SUBMIT_OPTS": java}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    archive.finish(ended_well=done.returncode == 0)
    if done.returncode:
        archive.give_up(f"the tests could not write it: {done.stderr[-2000:]}")
    return archive.begin()


def main() -> None:
    """Write, read, count and hand rows to Python, as most tests do."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.master("local[2]").getOrCreate()
    with tempfile.TemporaryDirectory() as folder:
        table = str(Path(folder, "table"))
        spark.range(100).selectExpr("id", "cast(id % 7 as string) ds").write.partitionBy("ds").parquet(table)
        frame = spark.read.parquet(table).where("ds > '2'")
        frame.groupBy("ds").count().collect()
        frame.mapInArrow(lambda batches: batches, frame.schema).collect()
    spark.stop()


if __name__ == "__main__":
    main()
