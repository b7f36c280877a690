"""What `shared` submits: a scoring with a task in every slot, and a look at its workers' memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_BATCH_ROWS = 256


def score() -> None:
    """Score, and print the PSS of all workers in MB. Arguments are model, rows and a folder to write."""
    from pyspark import SparkContext

    from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
    from airflow_hydrogen.runtime.scoring.application import run_inference

    model, rows, folder = sys.argv[1:]
    job = InferenceJob(
        model_uri=model,
        source=Source.parquet(rows),
        sink=Sink.parquet(f"{folder}/scores"),
        report_uri=f"{folder}/report.json",
        prepare="bench.workers:spread",
        keep_columns=[],
        batch_rows=_BATCH_ROWS,
    )
    run_inference(job)
    context: Any = SparkContext._active_spark_context
    print(_workers_mb(context.defaultParallelism), flush=True)


def spread(spark: SparkSession, frame: DataFrame) -> DataFrame:
    """Prepare: as many tasks as there are slots. They begin before the first of them has the model."""
    return frame.repartition(spark.sparkContext.defaultParallelism)


def _workers_mb(workers: int) -> float:
    """PSS of the Python workers and of the daemon that has forked them."""
    import psutil

    from airflow_hydrogen.contract.python_workers import MODULE

    # By the files: psutil refuses those that have ended and are waited for.
    children = psutil.Process(os.getppid()).children(recursive=True)
    found = [child for child in children if MODULE in Path(f"/proc/{child.pid}/cmdline").read_text()]
    parents = [child.ppid() for child in found]
    ours = {child.pid for child in found}
    forked = [child for child in found if child.pid not in parents and child.ppid() in ours]
    assert len(forked) == workers, (len(forked), workers)
    return sum(int(child.memory_full_info().pss) for child in found) / 2**20
