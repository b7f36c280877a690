"""Warm scoring, Parquet to Parquet, against `predict_batch_udf` and against a row-at-a-time UDF.

All sides read the same files with the same session, call the same loaded model through
`predictors.load_predictor`, and write the same columns: a key and the prediction. Loading the model and
importing TensorFlow are not measured: the Python workers stay.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
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
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType

FEATURES = tuple(f"f{number:02d}" for number in range(32))
KEY = "id"
OUTPUT = SINGLE_OUTPUT
INPUT = "features"
_ARROW_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
_FILES = 8
_BATCH_ROWS = (4_096, 16_384, 65_536)
_FINALISTS = 3

Rows = tuple[str, int]
"""A folder of Parquet files, and how many rows they have."""

Way = Callable[[int], Callable[["DataFrame"], "DataFrame"]]
"""Rows of a batch -> what makes scored rows of rows."""


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score 1,000,000 rows with each, and 5,000,000."""
    rows, some, few, more = (
        (100_000, 20_000, 2_000, 200_000) if quick else (1_000_000, 200_000, 40_000, 5_000_000)
    )
    pairs = 2 if quick else 5
    many_rows, more_rows = write_rows(folder / "many", rows), write_rows(folder / "more", more)
    some_rows, few_rows = write_rows(folder / "some", some), write_rows(folder / "few", few)
    model = publish_model(folder, many_rows)
    results = []
    with local_spark() as spark:
        ours = partial(score_rows, spark, model, many_rows, str(folder / "ours"), rows)
        ours()  # imports TensorFlow and loads the model
        udfs = BatchUdfs(spark, _ways(model), _BATCH_ROWS, str(folder / "baseline"))
        name, udf, tried = udfs.fastest((some_rows, some), (many_rows, rows))
        fastest = partial(udf, (many_rows, rows))
        ours()
        results.append(
            compare(
                "warm scoring",
                alternate(ours, fastest, pairs),
                unit="rows/s",
                against=f"predict_batch_udf, {name}",
                target=Target(">=", 4),
                rows=rows,
                tried={variant: round(rate) for variant, rate in tried.items()},
            )
        )
        ours_of_more = partial(score_rows, spark, model, more_rows, str(folder / "ours"), more)
        results.append(
            compare(
                f"warm scoring of {more:,} rows",
                alternate(ours_of_more, partial(udf, (more_rows, more)), 1 if quick else 3),
                unit="rows/s",
                against=f"predict_batch_udf, {name}",
                target=Target(">=", 6),
                rows=more,
            )
        )
        through_spark = partial(
            score_rows,
            spark,
            model,
            Source.parquet(many_rows, where=f"{KEY} % 2 < 2"),
            str(folder / "ours"),
            rows,
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
        found_out = partial(
            score_rows, spark, model, many_rows, str(folder / "ours"), rows, batch_rows="auto"
        )
        found_out()
        results.append(
            compare(
                "warm scoring, batch_rows='auto'",
                alternate(found_out, ours, pairs),
                unit="rows/s",
                against="16,384 rows a call",
                target=Target(">=", 0.95),
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
    layout = publishing.FeatureLayout("matrix", tuple(ColumnSpec(name, "float32") for name in features))
    return publish(folder, rows, model, layout, exports=("onnx",))


def publish(
    folder: Path, rows: str, model: Any, layout: publishing.FeatureLayout, exports: Sequence[str] = ()
) -> str:
    """Publish a model as a training would have; returns its URI.

    Args:
        folder: where it goes.
        rows: it was trained with these.
        model: a Keras model.
        layout: how its inputs are made of columns.
        exports: for which other engines it has to be there.
    """
    context = TrainContext(rank=0, size=1)
    context.shards["train", 0, True] = DatasetShard(rows)
    context.shards["train", 0, True].layout = layout
    uri = str(folder / "model")
    staged = directory.staging_uri(uri)
    made = publishing.save(model, staged, context, exports=exports)
    assert made is not None and len(made.twins) == len(exports)
    directory.publish(staged, uri, made.manifest(), keep_checkpoints=False)
    return uri


def score_rows(
    spark: SparkSession,
    model: str,
    source: str | Source,
    target: str,
    rows: int,
    engine: Engine = "tensorflow",
    **options: Any,
) -> float:
    """Rows per second of our path.

    Args:
        spark: the session.
        model: its URI.
        source: folder of Parquet files, or what the job says of one.
        target: folder to write.
        rows: how many there are.
        engine: what runs the model.
        options: other fields of the job.
    """
    job = InferenceJob(
        model_uri=model,
        source=Source.parquet(source) if isinstance(source, str) else source,
        sink=Sink.parquet(target),
        report_uri=f"{target}.json",
        keep_columns=[KEY],
        engine=engine,
        **options,
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


class BatchUdfs:
    """The ways to have `predict_batch_udf` score, each at several sizes of batches.

    Args:
        spark: the session.
        ways: name -> for a size of batches, what makes scored rows of rows. It is asked once a size: the
            model is loaded once for what it gives.
        batch_rows: the sizes.
        target: folder to write to.
    """

    def __init__(
        self, spark: SparkSession, ways: Mapping[str, Way], batch_rows: Sequence[int], target: str
    ) -> None:
        self._spark, self._target = spark, target
        self._runners = {
            f"{name}, batches of {size:,}": partial(self._rate, way(size), size)
            for name, way in ways.items()
            for size in batch_rows
        }

    def fastest(
        self, sample: Rows, source: Rows | None = None
    ) -> tuple[str, Callable[[Rows], float], dict[str, float]]:
        """Try all ways warm on the sample, the best three on all rows, and take the best of those.

        Args:
            sample: rows to try all ways on, and how many.
            source: rows to try the best ways on, and how many; None: the sample decides.

        Returns:
            Its name, a function that gives its rows per second on such rows, and the rates of all.
        """
        tried = {name: self._warm_rate(name, sample) for name in self._runners}
        best = sorted(tried, key=lambda name: tried[name])[-_FINALISTS:]
        for name in best if source is not None else ():
            tried[name] = self._warm_rate(name, source)
            print(f"    predict_batch_udf, {name}: {tried[name]:,.0f} rows/s", flush=True)
        fastest = max(best, key=lambda name: tried[name])
        return fastest, self._runners[fastest], tried

    def _warm_rate(self, name: str, rows: Rows) -> float:
        run = self._runners[name]
        run(rows)  # loads the model
        return max(run(rows), run(rows))

    def _rate(self, score: Callable[[DataFrame], DataFrame], batch_rows: int, rows: Rows) -> float:
        uri, count = rows
        # Its batches never cross Arrow's, so both get the same size.
        self._spark.conf.set(_ARROW_BATCH, batch_rows)
        started = time.perf_counter()
        score(self._spark.read.parquet(uri)).write.mode("overwrite").parquet(self._target)
        return count / (time.perf_counter() - started)


def scored_by_udf(
    make: Any,
    columns: Sequence[Any],
    shapes: list[list[int]] | None,
    return_type: DataType,
    batch_rows: int,
) -> Callable[[DataFrame], DataFrame]:
    """What adds the predictions of a `predict_batch_udf` to the keys of rows.

    Args:
        make: makes the function that predicts.
        columns: what that function gets.
        shapes: of the tensors among them.
        return_type: of what it returns.
        batch_rows: rows of a call.
    """
    from pyspark.ml.functions import predict_batch_udf

    predict = predict_batch_udf(
        make, return_type=return_type, batch_size=batch_rows, input_tensor_shapes=shapes
    )
    return lambda frame: frame.select(KEY, predict(*columns).alias(OUTPUT))


def _ways(model: str) -> dict[str, Way]:
    """The ways to hand it 32 columns."""
    from pyspark.sql.functions import array, struct
    from pyspark.sql.types import FloatType

    of_matrix, of_columns = partial(_make_matrix_predict, model), partial(make_columns_predict, model)
    shapes, number = [[len(FEATURES)]], FloatType()
    return {
        "array column": partial(scored_by_udf, of_matrix, [array(*FEATURES)], shapes, number),
        "struct column": partial(scored_by_udf, of_matrix, [struct(*FEATURES)], shapes, number),
        "one column per feature": partial(scored_by_udf, of_columns, FEATURES, None, number),
    }


def load(model: str) -> Predict:
    """A local model, whose files stay where they are."""
    with load_predictor(model, directory.read_manifest(model), None, 1, engines.PREDICTOR) as predict:
        return predict


def _make_matrix_predict(model: str) -> Callable[[np.ndarray], np.ndarray]:
    predict = load(model)

    def run(inputs: np.ndarray) -> np.ndarray:
        return predict({INPUT: inputs})[OUTPUT]

    return run


def make_columns_predict(model: str) -> Callable[..., np.ndarray]:
    """For `predict_batch_udf`: load the model, and return a function of one argument for each feature."""
    predict = load(model)

    def run(*inputs: np.ndarray) -> np.ndarray:
        matrix = np.empty((len(inputs[0]), len(inputs)), "float32")
        for number, column in enumerate(inputs):  # in Spark's workers this is faster than to turn them
            matrix[:, number] = column
        return predict({INPUT: matrix})[OUTPUT]

    return with_parameters(run, FEATURES)


def with_parameters(run: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """A function that says it has these parameters: by them predict_batch_udf learns how many columns."""
    kind = inspect.Parameter.POSITIONAL_ONLY
    run.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return run


# --- one row at a time -----------------------------------------------------------------------------------

_row_predict: dict[str, Any] = {}


def _predict_row(model: str, *row: float) -> float:
    if model not in _row_predict:
        _row_predict[model] = load(model)
    return float(_row_predict[model]({INPUT: np.array([row], "float32")})[OUTPUT][0, 0])


def _by_row(spark: SparkSession, model: str, source: str, target: str, rows: int) -> float:
    from pyspark.sql.functions import udf

    predict = udf(partial(_predict_row, model), "float", useArrow=False)
    started = time.perf_counter()
    frame = spark.read.parquet(source).repartition(2).select(KEY, predict(*FEATURES).alias(OUTPUT))
    frame.write.mode("overwrite").parquet(target)
    return rows / (time.perf_counter() - started)
