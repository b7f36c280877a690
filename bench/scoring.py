"""Warm scoring, Parquet to Parquet, against `predict_batch_udf` and against a row-at-a-time UDF.

All sides read the same files with the same session, call the same loaded model through
`predictors.load_predictor`, and write the same columns: a key and the prediction. Loading the model and
importing TensorFlow are not measured: the Python workers stay.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract.jobs import Engine, InferenceJob, Sink, Source
from airflow_hydrogen.contract.signatures import ColumnSpec
from airflow_hydrogen.runtime.data import sources
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.models import directory, engines
from airflow_hydrogen.runtime.models.matching import SINGLE_OUTPUT
from airflow_hydrogen.runtime.models.predictors import Predict, load_predictor
from airflow_hydrogen.runtime.rank import publishing
from airflow_hydrogen.runtime.rank.context import TrainContext
from airflow_hydrogen.runtime.scoring import sinks
from airflow_hydrogen.runtime.scoring.planning import score
from bench.measure import Result, Target, alternate, compare
from bench.spark import local_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FEATURES = tuple(f"f{number:02d}" for number in range(32))
KEY = "id"
OUTPUT = SINGLE_OUTPUT
INPUT = "features"
_ARROW_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
_FILES = 8
_BATCH_ROWS = (4_096, 16_384, 65_536)


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score 1,000,000 rows with each."""
    rows, some, few = (100_000, 20_000, 2_000) if quick else (1_000_000, 200_000, 40_000)
    pairs = 2 if quick else 5
    many_rows = write_rows(folder / "many", rows)
    some_rows, few_rows = write_rows(folder / "some", some), write_rows(folder / "few", few)
    model = publish_model(folder, many_rows)
    results = []
    with local_spark() as spark:
        ours = partial(_ours, spark, model, many_rows, str(folder / "ours"), rows)
        ours()  # imports TensorFlow and loads the model
        udfs = _BatchUdfs(spark, model, (some_rows, some), (many_rows, rows), str(folder / "baseline"))
        name, fastest, tried = udfs.fastest()
        ours()
        results.append(
            compare(
                "warm scoring",
                alternate(ours, fastest, pairs),
                unit="rows/s",
                against=f"predict_batch_udf, {name}",
                target=Target(">=", 3.5),
                rows=rows,
                tried={variant: round(rate) for variant, rate in tried.items()},
            )
        )
        through_spark = partial(
            _ours, spark, model, many_rows, str(folder / "ours"), rows, where=f"{KEY} % 2 < 2"
        )
        through_spark()
        results.append(
            compare(
                "warm scoring, rows read by Spark",
                alternate(through_spark, fastest, 2 if quick else 3),
                unit="rows/s",
                against=f"predict_batch_udf, {name}",
                target=Target(">=", 1.0),
                rows=rows,
            )
        )
        in_onnx = partial(_ours, spark, model, many_rows, str(folder / "ours"), rows, engine="onnx")
        in_onnx()
        results.append(
            compare(
                "warm scoring, ONNX Runtime",
                alternate(in_onnx, ours, pairs),
                unit="rows/s",
                against="the same with TensorFlow",
                target=Target(">=", 1.0),
                rows=rows,
            )
        )
        ours()
        by_row = partial(_by_row, spark, model, few_rows, str(folder / "baseline"), few)
        by_row()
        ours()
        results.append(
            compare(
                "warm scoring, against rows",
                alternate(ours, by_row, 2 if quick else 3),
                unit="rows/s",
                against="row-at-a-time UDF (useArrow=False)",
                target=Target(">=", 60),
                rows=rows,
                baseline_rows=few,
            )
        )
    return results


def write_rows(folder: Path, rows: int) -> str:
    """Parquet of a key and the features, in several files."""
    folder.mkdir()
    random = np.random.default_rng(0)
    share = rows // _FILES
    for number in range(_FILES):
        keys = np.arange(number * share, (number + 1) * share)
        columns = {name: random.standard_normal(share, dtype="float32") for name in FEATURES}
        pq.write_table(
            pa.table({KEY: keys, **columns}), folder / f"part-{number}.parquet", use_dictionary=False
        )
    return str(folder)


def publish_model(folder: Path, rows: str, features: Sequence[str] = FEATURES) -> str:
    """Publish a small network of features, and its ONNX twin; returns its URI."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((len(features),), name=INPUT),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    context = TrainContext(rank=0, size=1)
    context.shards["train", 0, True] = DatasetShard(rows)
    context.shards["train", 0, True].layout = publishing.FeatureLayout(
        "matrix", tuple(ColumnSpec(name, "float32") for name in features)
    )
    uri = str(folder / "model")
    staged = directory.staging_uri(uri)
    made = publishing.save(model, staged, context, exports=("onnx",))
    assert made is not None and made.twins
    directory.publish(staged, uri, made.manifest(), keep_checkpoints=False)
    return uri


def _ours(
    spark: SparkSession,
    model: str,
    source: str,
    target: str,
    rows: int,
    where: str | None = None,
    engine: Engine = "tensorflow",
) -> float:
    """Rows per second of our path; a condition that computes makes Spark read in place of the workers."""
    job = InferenceJob(
        model_uri=model,
        source=Source.parquet(source, where=where),
        sink=Sink.parquet(target),
        report_uri=f"{target}.json",
        keep_columns=[KEY],
        engine=engine,
    )
    return scored(spark, job, rows)


def scored(spark: SparkSession, job: InferenceJob, rows: int) -> float:
    """Rows per second of a job."""
    started = time.perf_counter()
    manifest, _ = directory.open_model(job.model_uri)
    frame = sources.read(spark, job.source)
    written = sinks.place(spark, score(spark, frame, manifest, job), job).rows
    seconds = time.perf_counter() - started
    assert written == rows
    return rows / seconds


# --- predict_batch_udf -----------------------------------------------------------------------------------


class _BatchUdfs:
    """The ways to hand 32 columns to `predict_batch_udf`, each at several sizes of batches.

    Args:
        spark: the session.
        model: URI of the model.
        sample: rows to try all ways on, and how many.
        source: rows to measure on, and how many.
        target: folder to write to.
    """

    def __init__(
        self, spark: SparkSession, model: str, sample: tuple[str, int], source: tuple[str, int], target: str
    ) -> None:
        self._spark, self._model, self._target = spark, model, target
        self._sample, self._source = sample, source

    def fastest(self) -> tuple[str, Callable[[], float], dict[str, float]]:
        """Try all ways warm on the sample, the best three on all rows, and take the best of those.

        Returns:
            Its name, a function that measures it, and the rates of all.
        """
        from pyspark.sql.functions import array, struct

        shapes: dict[str, tuple[list[Any], Any, list[list[int]] | None]] = {
            "array column": ([array(*FEATURES)], _make_matrix_predict, [[len(FEATURES)]]),
            "struct column": ([struct(*FEATURES)], _make_matrix_predict, [[len(FEATURES)]]),
            "one column per feature": (list(FEATURES), make_columns_predict, None),
        }
        tried: dict[str, float] = {}
        runners: dict[str, Callable[[tuple[str, int]], float]] = {}
        for shape, (columns, make, tensor_shapes) in shapes.items():
            for batch_rows in _BATCH_ROWS:
                name = f"{shape}, batches of {batch_rows:,}"
                runners[name] = self._runner(columns, make, tensor_shapes, batch_rows)
                tried[name] = self._warm_rate(runners[name], self._sample)
        finalists = sorted(tried, key=lambda name: tried[name])[-3:]
        for name in finalists:
            tried[name] = self._warm_rate(runners[name], self._source)
            print(f"    predict_batch_udf, {name}: {tried[name]:,.0f} rows/s", flush=True)
        best = max(finalists, key=lambda name: tried[name])
        return best, partial(runners[best], self._source), tried

    def _warm_rate(self, runner: Callable[[tuple[str, int]], float], source: tuple[str, int]) -> float:
        runner(source)  # loads the model
        return max(runner(source), runner(source))

    def _runner(
        self, columns: list[Any], make: Any, shapes: list[list[int]] | None, batch_rows: int
    ) -> Callable[[tuple[str, int]], float]:
        from pyspark.ml.functions import predict_batch_udf
        from pyspark.sql.types import FloatType

        predict = predict_batch_udf(
            partial(make, self._model),
            return_type=FloatType(),
            batch_size=batch_rows,
            input_tensor_shapes=shapes,
        )

        def run(source: tuple[str, int]) -> float:
            uri, rows = source
            # Its batches never cross Arrow's, so both get the same size.
            self._spark.conf.set(_ARROW_BATCH, batch_rows)
            started = time.perf_counter()
            frame = self._spark.read.parquet(uri).select(KEY, predict(*columns).alias(OUTPUT))
            frame.write.mode("overwrite").parquet(self._target)
            return rows / (time.perf_counter() - started)

        return run


def _load(model: str) -> Predict:
    """A local model, whose files stay where they are."""
    with load_predictor(model, directory.read_manifest(model), None, 1, engines.PREDICTOR) as predict:
        return predict


def _make_matrix_predict(model: str) -> Callable[[np.ndarray], np.ndarray]:
    predict = _load(model)

    def run(inputs: np.ndarray) -> np.ndarray:
        return predict({INPUT: inputs})[OUTPUT]

    return run


def make_columns_predict(model: str) -> Callable[..., np.ndarray]:
    """For `predict_batch_udf`: load the model, and return a function of one argument for each feature."""
    predict = _load(model)

    def run(*inputs: np.ndarray) -> np.ndarray:
        matrix = np.empty((len(inputs[0]), len(inputs)), "float32")
        for number, column in enumerate(inputs):
            matrix[:, number] = column
        return predict({INPUT: matrix})[OUTPUT]

    # predict_batch_udf counts the parameters to learn how many columns there are.
    kind = inspect.Parameter.POSITIONAL_ONLY
    run.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in FEATURES])  # type: ignore[attr-defined]
    return run


# --- one row at a time -----------------------------------------------------------------------------------

_row_predict: dict[str, Any] = {}


def _predict_row(model: str, *row: float) -> float:
    if model not in _row_predict:
        _row_predict[model] = _load(model)
    return float(_row_predict[model]({INPUT: np.array([row], "float32")})[OUTPUT][0, 0])


def _by_row(spark: SparkSession, model: str, source: str, target: str, rows: int) -> float:
    from pyspark.sql.functions import udf

    predict = udf(partial(_predict_row, model), "float", useArrow=False)
    started = time.perf_counter()
    frame = spark.read.parquet(source).repartition(2).select(KEY, predict(*FEATURES).alias(OUTPUT))
    frame.write.mode("overwrite").parquet(target)
    return rows / (time.perf_counter() - started)
