"""Models in ONNX Runtime: what is converted, what is refused, and what scores."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import EngineError
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime.data.encoding import FeatureLayout
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.rank import twins
from airflow_hydrogen.runtime.scoring.application import run_inference
from tests.integration.models import dense, matrix_layout, publish

pytestmark = pytest.mark.integration

CARRIERS = ["AA", "B6", "UA"]


def model_of(shape, dtype, *layers):
    """A functional model of one input 'x'."""
    import keras

    given = keras.Input(shape, dtype=dtype, name="x")
    value = given
    for layer in layers:
        value = layer(value)
    return keras.Model({"x": given}, {"y": value})


def tabular():
    """Words, numbers and bins, prepared in the model as Keras would have it."""
    import keras

    layers = keras.layers
    carrier = keras.Input((1,), dtype="string", name="carrier")
    wind = keras.Input((1,), name="wind")
    hour = keras.Input((1,), name="hour")
    word = layers.Embedding(4, 3)(layers.StringLookup(vocabulary=CARRIERS)(carrier))
    part = layers.Embedding(3, 2)(layers.Discretization(bin_boundaries=[6.0, 18.0])(hour))
    joined = layers.Concatenate()(
        [layers.Flatten()(word), layers.Flatten()(part), layers.Normalization(mean=10.0, variance=4.0)(wind)]
    )
    out = layers.Dense(1)(layers.BatchNormalization()(layers.Dense(8, activation="gelu")(joined)))
    return keras.Model({"carrier": carrier, "wind": wind, "hour": hour}, {"delay": out})


def convert(model, folder, rows):
    """Convert a model whose columns are called as its inputs are, in this process."""
    model.save(folder / "model.keras")
    signature = Signature(
        tuple(
            InputSpec(
                tensor.name,
                (ColumnSpec(tensor.name, str(tensor.dtype), None),),
                str(tensor.dtype),
                tuple(tensor.shape[1:]),
            )
            for tensor in model.inputs
        ),
        tuple(
            OutputSpec(name, str(tensor.dtype), tuple(tensor.shape[1:]))
            for name, tensor in model.output.items()
        ),
    )
    manifest = Manifest(framework="keras", entry="model.keras", signature=signature, files=())
    return twins.attempt(twins.Conversion(folder, manifest, rows))


def test_preprocessing_layers_are_converted_with_their_words_and_bins(tmp_path):
    rows = {
        "carrier": np.array([["AA"], ["UA"], ["none of them"], [""]], object),
        "wind": np.array([[1.0], [20.0], [np.nan], [-3.0]], "float32"),
        "hour": np.array([[5.0], [6.0], [17.5], [23.0]], "float32"),
    }
    found = convert(tabular(), tmp_path, rows)
    assert found.problem is None
    assert (found.twin.rows, found.twin.entry) == (4, "model.onnx")
    assert found.twin.difference < 1e-5
    assert (tmp_path / "model.onnx").is_file()


def lookup_without_room():
    import keras

    lookup = keras.layers.StringLookup(vocabulary=CARRIERS, num_oov_indices=0)
    return model_of((1,), "string", lookup, keras.layers.Embedding(3, 2), keras.layers.Flatten())


def one_hot():
    import keras

    return model_of((1,), "int64", keras.layers.CategoryEncoding(5, output_mode="one_hot"))


def hashed():
    import keras

    return model_of((1,), "string", keras.layers.Hashing(5), keras.layers.Embedding(5, 2))


@pytest.mark.parametrize(
    ("make", "value", "problem"),
    [
        (lookup_without_room, "AA", "it checks its input, which ONNX cannot"),
        # TensorFlow knows no category -1, where ONNX counts from the end.
        (one_hot, 3, "its ONNX form predicts something else for a made-up row, 'x'=-1"),
        (hashed, "AA", "ONNX has no StringToHashBucketFast, of '.*hashing"),
    ],
)
def test_what_would_score_odd_rows_otherwise_has_no_twin(make, value, problem, tmp_path):
    model = make()
    dtype = object if isinstance(value, str) else "int64"
    found = convert(model, tmp_path, {"x": np.array([[value]], dtype)})
    assert found.twin is None
    assert re.search(problem, found.problem), found.problem


def binned():
    """Whole numbers between boundaries that are none."""
    import keras

    hour = keras.Input((1,), dtype="int64", name="x")
    return keras.Model({"x": hour}, {"y": keras.ops.digitize(hour, np.array([6.5, 18.5]))})


def test_whole_numbers_are_held_against_boundaries_as_tensorflow_does_it(tmp_path):
    found = convert(binned(), tmp_path, {"x": np.array([[6], [7], [18], [19], [-3]], "int64")})
    assert found.problem is None


@pytest.mark.parametrize("given", [[[np.nan], [2.0]], [[np.inf], [2.0]], [[1.1], [2.0]], [[1.0]], None])
def test_predictions_are_no_twins_where_they_differ_or_one_is_missing(given):
    wanted = {"y": np.array([[1.0], [2.0]], "float32")}
    found = None if given is None else {"y": np.array(given, "float32")}
    assert twins.compare(wanted, found) is None
    assert twins.compare(wanted, wanted) == 0.0


def test_a_twin_may_predict_nan_of_nan_and_nothing_else_in_its_place():
    some, nan, other = ({"y": np.array([[value]], "float32")} for value in (1.0, np.nan, 2.0))
    assert twins.compare(some, nan, is_nan=True) == 0.0
    assert twins.compare(some, other, is_nan=True) is None
    assert twins.compare(nan, some, is_nan=True) is None
    assert twins.compare(some, None, is_nan=True) is None


def test_relu_of_nan_is_no_reason_against_a_twin(tmp_path):
    import keras

    relu = [keras.layers.Dense(size, activation="relu") for size in (64, 64)]
    model = model_of((14,), "float32", *relu, keras.layers.Dense(1))
    rows = {"x": np.random.default_rng(0).standard_normal((100, 14), "float32")}
    found = convert(model, tmp_path, rows)
    assert found.problem is None
    assert found.twin.rows == 100


def test_a_model_that_refuses_the_training_data_has_no_twin(tmp_path, monkeypatch):
    def refuse(arrays):
        raise MemoryError

    monkeypatch.setattr(twins, "_write", lambda conversion: None)
    monkeypatch.setattr(twins.predictors, "load", lambda *given: refuse)
    monkeypatch.setattr(twins.onnx_session, "load", lambda *given, **options: refuse)
    spec = InputSpec("x", (ColumnSpec("x", "float32"),), "float32", (1,))
    signature = Signature((spec,), (OutputSpec("y", "float32", (1,)),))
    manifest = Manifest(framework="keras", entry="model.keras", signature=signature, files=())

    def problem(rows):
        return twins.attempt(twins.Conversion(tmp_path, manifest, rows)).problem

    assert "refuses rows of the training data" in problem({"x": np.ones((2, 1), "float32")})
    assert "refuses each made-up row" in problem(None)


def test_rows_that_cannot_be_read_cost_the_twin_and_not_the_model(tmp_path, capsys):
    def read():
        raise OSError("503 Slow Down")

    manifest = Manifest(framework="keras", entry="model.keras", signature=Signature((), ()), files=())
    assert twins.convert(tmp_path, manifest, read) is None
    assert "no ONNX twin, and scores with keras: OSError: 503 Slow Down" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "rows"), [((32,), 4096), ((224, 224, 3), 55), ((4096, 4096), 1)])
def test_large_rows_are_compared_in_smaller_numbers(shape, rows):
    spec = InputSpec("x", (ColumnSpec("x", "float32", int(np.prod(shape))),), "float32", shape)
    assert twins.rows_for(Signature((spec,), ())) == rows


def test_predictions_that_differ_on_the_training_data_leave_no_file(tmp_path, monkeypatch, capsys):
    model = dense([[1.0], [10.0]])
    spec = InputSpec("x", (ColumnSpec("a", "float32"), ColumnSpec("b", "float32")), "float32", (2,))
    manifest = Manifest(
        framework="keras",
        entry="model.keras",
        signature=Signature((spec,), (OutputSpec("prediction", "float32", (1,)),)),
        files=(),
    )
    model.save(tmp_path / "model.keras")
    monkeypatch.setattr(twins.afresh, "call", lambda function, argument: function(argument))
    honest = twins.onnx_session.load

    def wrong(*given, **options):
        predict = honest(*given, **options)
        return lambda arrays: {name: value * 1.01 for name, value in predict(arrays).items()}

    monkeypatch.setattr(twins.onnx_session, "load", wrong)
    rows = pa.record_batch({"a": [1.0, 2.0], "b": [0.5, 0.25]})
    assert twins.convert(tmp_path, manifest, lambda: rows) is None
    assert "predicts something else for rows of the training data" in capsys.readouterr().out
    assert not (tmp_path / "model.onnx").exists()
    (tmp_path / "model.onnx").write_bytes(b"of the user's")
    assert twins.convert(tmp_path, manifest, lambda: rows) is None
    assert (tmp_path / "model.onnx").read_bytes() == b"of the user's"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model with its twin, and one without."""
    folder = tmp_path_factory.mktemp("models")
    columns = (ColumnSpec("carrier", "string"), ColumnSpec("wind", "float32"), ColumnSpec("hour", "float32"))
    uri = publish(tabular(), str(folder / "tabular"), FeatureLayout("columns", columns), ("onnx",))
    return uri, publish(dense([[1.0]]), str(folder / "plain"), matrix_layout("wind"))


def test_a_twin_scores_what_its_model_scores(spark, published, tmp_path):
    uri, plain = published
    carriers = [*CARRIERS, "", "ZZ", None]
    table = pa.table(
        {
            "id": range(600),
            "carrier": [carriers[number % 6] for number in range(600)],
            "wind": np.linspace(-50, 50, 600),
            "hour": [float(number % 24) for number in range(600)],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")

    def score(engine, model=uri):
        job = InferenceJob(
            model_uri=model,
            source=Source.parquet(str(tmp_path / "rows.parquet")),
            sink=Sink.parquet(str(tmp_path / engine)),
            report_uri=str(tmp_path / "report.json"),
            engine=engine,
            on_bad_row="drop",
            batch_rows=64,
        )
        report = run_inference(job)
        return report, pq.read_table(report.output_uri).to_pandas().sort_values("id", ignore_index=True)

    by_twin, found = score("auto")
    by_model, expected = score("tensorflow")
    assert (by_twin.engine, by_model.engine) == ("onnx", "tensorflow")
    assert (by_twin.rows, by_twin.bad_rows) == (500, by_model.bad_rows)
    assert found["id"].equals(expected["id"])
    assert np.allclose(found["delay"], expected["delay"], atol=1e-5)
    assert found.dtypes.equals(expected.dtypes)
    with pytest.raises(EngineError, match=r"it is there for 'tensorflow' alone: train it with exports"):
        score("onnx", plain)
