"""Warm scoring into a Delta table, against `predict_batch_udf` and against Spark's own writer of it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from bench.measure import Result, Target, alternate, compare
from bench.scoring import FEATURES, KEY, OUTPUT, make_columns_predict, publish_model, scored, write_rows
from bench.spark import local_spark
from scripts.jars import jars

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.databricks.delta.snapshotPartitions": "2",
}
_BATCH_ROWS = 16_384
# Its own default: but a table that has it is left to Spark's writer.
_LEFT_TO_SPARK = "tblproperties (delta.dataSkippingNumIndexedCols = 32)"


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score 1,000,000 rows with each."""
    rows, pairs = (100_000, 2) if quick else (1_000_000, 5)
    source = write_rows(folder / "rows", rows)
    model = publish_model(folder, source)
    with local_spark(jars=jars("delta"), settings=_SETTINGS) as spark:
        columns = f"{KEY} bigint, {OUTPUT} float"
        spark.sql(f"create table delta.`{folder}/by_spark` ({columns}) using delta {_LEFT_TO_SPARK}")
        ours = partial(_scored_into, spark, model, source, folder / "ours", rows)
        by_spark = partial(_scored_into, spark, model, source, folder / "by_spark", rows)
        udf = partial(_by_udf, spark, model, source, folder / "udf", rows)
        results = []
        for name, against, baseline, target in (
            ("warm scoring into Delta", "predict_batch_udf, one column per feature", udf, 2.0),
            ("warm scoring into Delta, files of tasks", "the same, files of Spark", by_spark, 1.2),
        ):
            baseline()
            ours()
            measured = alternate(ours, baseline, pairs)
            result = compare(
                name, measured, unit="rows/s", against=against, target=Target(">=", target), rows=rows
            )
            results.append(result)
    return results


def _scored_into(spark: SparkSession, model: str, source: str, table: Path, rows: int) -> float:
    job = InferenceJob(
        model_uri=model,
        source=Source.parquet(source),
        sink=Sink.delta(str(table)),
        report_uri=f"{table}.json",
        keep_columns=[KEY],
        engine="tensorflow",
    )
    return scored(spark, job, rows)


def _by_udf(spark: SparkSession, model: str, source: str, table: Path, rows: int) -> float:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import FloatType

    predict = predict_batch_udf(
        partial(make_columns_predict, model), return_type=FloatType(), batch_size=_BATCH_ROWS
    )
    started = time.perf_counter()
    frame = spark.read.parquet(source).select(KEY, predict(*FEATURES).alias(OUTPUT))
    frame.write.format("delta").mode("overwrite").save(str(table))
    return rows / (time.perf_counter() - started)
