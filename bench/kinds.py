"""Warm scoring of flights with words, and of images, against `predict_batch_udf`.

Flights go through the layers of the example's own model, which look words up and hash them. Images go through
a small convolutional network, which takes longer than all that surrounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract.signatures import ColumnSpec
from airflow_hydrogen.runtime.rank.publishing import FeatureLayout
from bench.flights_model import prepare_flights
from bench.measure import Result, Target, alternate, compare
from bench.scoring import (
    INPUT,
    KEY,
    OUTPUT,
    BatchUdfs,
    Rows,
    Way,
    load,
    publish,
    score_rows,
    scored_by_udf,
    with_parameters,
)
from bench.spark import local_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SIDE, _CHANNELS, _CLASSES = 32, 3, 10
_PIXELS = _SIDE * _SIDE * _CHANNELS
_IMAGE = "image"
_FILES = 8


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score flights, and 200,000 images."""
    with local_spark(settings={"spark.driver.memory": "4g"}) as spark:  # Spark reads images by the thousand
        return [_flights(spark, folder / "flights", quick), _images(spark, folder / "images", quick)]


def _compared(
    name: str,
    spark: SparkSession,
    model: str,
    source: Rows,
    ways: Mapping[str, Way],
    sizes: Sequence[int],
    target: float,
    folder: Path,
    quick: bool,
    **options: Any,
) -> Result:
    uri, rows = source
    ours = partial(score_rows, spark, model, uri, str(folder / "ours"), rows, **options)
    ours()  # loads the model
    udfs = BatchUdfs(spark, ways, sizes, str(folder / "baseline"))
    some = sorted(Path(uri).glob("*.parquet"))[0]
    fastest, udf, tried = udfs.fastest((str(some), pq.read_metadata(some).num_rows))
    ours()
    return compare(
        name,
        alternate(ours, partial(udf, source), 1 if quick else 3),
        unit="rows/s",
        against=f"predict_batch_udf, {fastest}",
        target=Target(">=", target),
        rows=rows,
        tried={way: round(rate) for way, rate in tried.items()},
    )


# --- flights -----------------------------------------------------------------------------------------------


def _flights(spark: SparkSession, folder: Path, quick: bool) -> Result:
    """A year of flights, three times over."""
    from flights.features import NUMBERS, WORDS
    from flights.train import build_model
    from pyspark.sql import functions
    from pyspark.sql.types import FloatType, StructField, StructType

    folder.mkdir()
    names = (*NUMBERS, *WORDS)
    prepared, count = prepare_flights(spark, folder, "month = 1 and day < 8" if quick else "month <= 12")
    key = functions.monotonically_increasing_id().alias(KEY)
    year = spark.read.parquet(prepared).select(*names)
    times = 1 if quick else 3
    several = year
    for _ in range(times - 1):
        several = several.unionAll(year)
    source = str(folder / "rows")
    several.repartition(_FILES).select(key, *names).write.parquet(source)
    types = {**dict.fromkeys(NUMBERS, "float32"), **dict.fromkeys(WORDS, "string")}
    layout = FeatureLayout("columns", tuple(ColumnSpec(name, types[name]) for name in names))
    model = publish(folder, source, build_model(), layout)
    outputs = StructType([StructField(name, FloatType()) for name in ("delay", "late")])
    make = partial(_make_flights_predict, model, names)
    ways = {"one column per feature": partial(scored_by_udf, make, names, None, outputs)}
    return _compared(
        "warm scoring, flights model",
        spark,
        model,
        (source, times * count),
        ways,
        (4_096, 16_384),
        3,
        folder,
        quick,
    )


def _make_flights_predict(model: str, names: Sequence[str]) -> Callable[..., dict[str, np.ndarray]]:
    predict = load(model)

    def run(*inputs: np.ndarray) -> dict[str, np.ndarray]:
        columns = {name: column.reshape(-1, 1) for name, column in zip(names, inputs, strict=True)}
        return {name: values.ravel() for name, values in predict(columns).items()}

    return with_parameters(run, names)


# --- images ------------------------------------------------------------------------------------------------


def _images(spark: SparkSession, folder: Path, quick: bool) -> Result:
    """Random ones, each a list of float32 in a column."""
    from pyspark.sql.types import ArrayType, FloatType

    folder.mkdir()
    count = 4_000 if quick else 200_000
    source = str(folder / "rows")
    _write_images(Path(source), count)
    layout = FeatureLayout("matrix", (ColumnSpec(_IMAGE, "float32", _PIXELS),))
    model = publish(folder, source, _network(), layout)
    make = partial(_make_images_predict, model)
    scores = ArrayType(FloatType())
    ways = {"array column": partial(scored_by_udf, make, [_IMAGE], [[_PIXELS]], scores)}
    return _compared(
        f"warm scoring, {count:,} images and a small CNN",
        spark,
        model,
        (source, count),
        ways,
        (256, 1_024, 4_096),
        1.3,
        folder,
        quick,
        batch_rows=256,
    )


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    share = count // _FILES
    for number in range(_FILES):
        pixels = random.integers(0, 256, share * _PIXELS, dtype="uint8").astype("float32")
        offsets = pa.array(np.arange(0, len(pixels) + 1, _PIXELS, dtype="int32"))
        images = pa.ListArray.from_arrays(offsets, pa.array(pixels))
        keys = np.arange(number * share, (number + 1) * share)
        table = pa.table({KEY: keys, _IMAGE: images})
        pq.write_table(table, folder / f"part-{number}.parquet", use_dictionary=False, row_group_size=5_000)


def _network() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((_PIXELS,), name=INPUT),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Reshape((_SIDE, _SIDE, _CHANNELS)),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(_CLASSES),
        ]
    )


def _make_images_predict(model: str) -> Callable[[np.ndarray], np.ndarray]:
    predict = load(model)

    def run(images: np.ndarray) -> np.ndarray:
        return predict({INPUT: images})[OUTPUT]

    return run
