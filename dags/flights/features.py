"""What is known before departure: the `prepare` function of both DAGs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LABELS = ("delay", "late")
LATE_MINUTES = 15

# Feature -> mean and standard deviation over the first half of the year.
NUMBERS = {
    "departs": (818.5, 281.8),
    "arrives": (935.2, 299.7),
    "weekday": (3.95, 1.94),
    "distance": (1026.7, 726.1),
    "temp": (51.2, 16.6),
    "dewp": (35.5, 18.4),
    "humid": (58.6, 20.8),
    "wind_speed": (11.9, 6.03),
    "wind_gust": (7.76, 12.4),
    "precip": (0.0054, 0.0305),
    "pressure": (1017.2, 7.88),
    "visib": (9.09, 2.28),
    "plane_age": (11.8, 6.42),
    "seats": (136.1, 71.5),
    "latitude": (35.96, 5.77),
    "longitude": (-89.1, 14.8),
}
WORDS = ("carrier", "origin", "dest")


def prepare(spark: SparkSession, flights: DataFrame, lake: str, labelled: bool = False) -> DataFrame:
    """Join weather, planes and airports, and leave no feature empty.

    Args:
        spark: the session.
        flights: rows of the flights table.
        lake: folder of the other tables.
        labelled: keep only flights that arrived, and add the labels: `delay` in minutes and `late`, 1
            where that is more than 15.

    Returns:
        The flights with the features as floats and strings.
    """
    from pyspark.sql import functions as f

    weather = (
        spark.read.parquet(f"{lake}/weather")
        .drop("year", "time_hour")
        .dropDuplicates(["origin", "month", "day", "hour"])
    )
    planes = spark.read.parquet(f"{lake}/planes").select("tailnum", f.col("year").alias("built"), "seats")
    airports = spark.read.parquet(f"{lake}/airports").select(
        f.col("faa").alias("dest"), f.col("lat").alias("latitude"), f.col("lon").alias("longitude")
    )
    joined = (
        flights.join(f.broadcast(weather), ["origin", "month", "day", "hour"], "left")
        .join(f.broadcast(planes), "tailnum", "left")
        .join(f.broadcast(airports), "dest", "left")
    )
    if labelled:
        joined = joined.where("arr_delay is not null").selectExpr(
            "*", "float(arr_delay) as delay", f"float(arr_delay > {LATE_MINUTES}) as late"
        )
    made = {
        "departs": f.col("hour") * 60 + f.col("minute"),
        "arrives": (f.col("sched_arr_time") / 100).cast("int") * 60 + f.col("sched_arr_time") % 100,
        "weekday": f.dayofweek(f.make_date("year", "month", "day")),
        "wind_gust": f.coalesce("wind_gust", f.lit(0.0)),
        "precip": f.coalesce("precip", f.lit(0.0)),
        "plane_age": f.col("year") - f.col("built"),
    }
    numbers = [
        # An unknown value becomes the mean: nothing that the model sees is null.
        f.coalesce(f.nanvl(made.get(name, f.col(name)).cast("double"), f.lit(mean)), f.lit(mean))
        .cast("float")
        .alias(name)
        for name, (mean, _deviation) in NUMBERS.items()
    ]
    words = [f.coalesce(f.col(name), f.lit("")).alias(name) for name in WORDS]
    others = [name for name in flights.columns if name not in NUMBERS and name not in WORDS]
    labels = LABELS if labelled else ()
    return joined.select(*others, *words, *numbers, *labels)
