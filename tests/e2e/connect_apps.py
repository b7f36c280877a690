"""What jobs on a Spark Connect server bring with them: functions that tell what they find, and models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession, functions

TICK_S = 0.05


def leaves_all_kinds_of_things(spark: SparkSession, rows: DataFrame) -> DataFrame:
    """Two more columns, by a view and a function of the session; and a setting."""
    rows.createOrReplaceTempView("left_behind")
    spark.udf.register("left_function", lambda number: number + 1.0, "double")
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    SparkSession.builder.getOrCreate().conf.set("spark.sql.shuffle.partitions", "3")
    return spark.sql("select *, left_function(id) more from left_behind")


def tells_what_is_there(spark: SparkSession, rows: DataFrame) -> DataFrame:
    """A column with what the session holds that is no one's but this job's."""
    views = [row.viewName for row in spark.sql("show views").collect()]
    owned = [row.function for row in spark.sql("show user functions").collect()]
    zone = spark.conf.get("spark.sql.session.timeZone")
    cut = spark.conf.get("spark.sql.shuffle.partitions")
    return rows.withColumn("there", functions.lit(f"{views} {owned} {zone} {cut}"))


def reads_a_table(spark: SparkSession, rows: DataFrame, folder: str) -> DataFrame:
    """The rows of a table over a folder."""
    columns = "id bigint, a float, b float"
    spark.sql(f"create table if not exists grows ({columns}) using parquet location '{folder}'")
    return spark.table("grows")


def trains(epochs: int) -> Any:
    """A line, by two ranks."""
    import keras

    import airflow_hydrogen.runtime as hydrogen

    context = hydrogen.get_context()
    print(f"rank {context.rank} of {context.size} has parent {os.getppid()}", flush=True)
    rows = hydrogen.get_dataset_shard("train").to_tf(batch_size=50, label="y")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.1)), "mse")
    model.fit(rows, epochs=epochs, callbacks=hydrogen.keras.callbacks(), verbose=0)
    return model


def fails_on_rank_1() -> None:
    """Raises there."""
    import airflow_hydrogen.runtime as hydrogen

    if hydrogen.get_context().rank == 1:
        raise ValueError("rank 1 does not want to")


def counts_its_loads(path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A predictor that doubles `a`, and leaves a file for each time that it was loaded."""
    folder = Path(Path(path).read_text())
    (folder / f"loaded-{os.getpid()}-{time.monotonic_ns()}").touch()
    return lambda arrays: {"prediction": arrays["x"][:, 0] * 2}


def never_ends(path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A predictor that says that it goes on, by the time of a file."""
    folder = Path(Path(path).read_text())

    def predict(arrays: dict[str, Any]) -> dict[str, Any]:
        while not (folder / "enough").exists():
            (folder / f"alive-{os.getpid()}").touch()
            time.sleep(TICK_S)
        return {"prediction": arrays["x"][:, 0] * 2}

    return predict
