"""Two jobs in one process, one after the other, which reach a bucket by connections of their own.

As a program: it prints with whose key Spark's client of S3 works in each of them.
"""

from __future__ import annotations

import os

from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.runtime.session import spark_session
from scripts.jars import jars

PLACE = "s3a://bucket/x"


def key_of(access: S3Access | None) -> str | None:
    """The key with which the session of a job reaches the bucket; nobody is asked."""
    job = InferenceJob(
        model_uri="/m", source=Source.parquet("/x"), sink=Sink.parquet("/y"), report_uri="/r", s3=access
    )
    spark = spark_session(job)
    configuration = spark._jsc.hadoopConfiguration()
    client = spark._jvm.org.apache.hadoop.fs.Path(PLACE).getFileSystem(configuration)
    spark.stop()
    return client.getConf().get("fs.s3a.access.key")


if __name__ == "__main__":
    with_jars = "--driver-class-path " + ":".join(map(str, jars("s3a")))
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--master local[1] {with_jars} pyspark-shell"
    for name in ("first", "second"):
        given = {"access_key": name, "secret_key": "s", "endpoint_url": "http://127.0.0.1:1"}
        print("key:", key_of(S3Access(conn_id=name, **given)))
    print("key:", key_of(None))
