"""What a job asks of Spark that a Spark Connect server cannot give: refused before anything is done. Pure."""

from __future__ import annotations

from airflow_hydrogen.contract.errors import NotOnConnectError
from airflow_hydrogen.contract.jobs import InferenceJob, Job, TrainJob

_SOURCES = ("parquet", "orc", "avro", "csv", "json", "table", "hive", "read", "sql")
_PINNED = "what it reads is pinned and opened by the driver itself"
_OF_DRIVER = "the driver itself commits to such a table, with classes of a JVM that the client does not have"


def require_possible(job: Job) -> None:
    """Raise NotOnConnectError where a job takes a SparkContext."""
    for source in job.sources:
        if source.kind not in _SOURCES:
            raise NotOnConnectError(f"source {source}", _PINNED)
    if job.s3 is not None:
        raise NotOnConnectError(
            f"aws_conn_id={job.s3.conn_id!r}", "the keys of S3 that Spark reads with are those of its server"
        )
    option, gpus = (
        ("gpus_per_process", job.gang.gpus_per_process)
        if isinstance(job, TrainJob)
        else ("gpus_per_task", job.gpus_per_task)
    )
    if gpus:
        raise NotOnConnectError(
            f"{option}={gpus:g}", "executors are the server's, which does not tell their GPUs"
        )
    if isinstance(job, InferenceJob):
        _require_scoring(job)


def _require_scoring(job: InferenceJob) -> None:
    if job.stream is not None:
        raise NotOnConnectError(
            f"trigger={job.stream.trigger!r}", "each batch of a stream is put in place by the driver itself"
        )
    if job.sink.kind != "parquet":
        raise NotOnConnectError(f"sink {job.sink}", _OF_DRIVER)
