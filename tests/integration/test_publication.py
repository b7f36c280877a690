"""Models that were trained elsewhere: what is published, what is refused, and what it scores."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Asset

from airflow_hydrogen.contract.errors import (
    EngineError,
    ModelSignatureError,
    NotAnAliasError,
    SharedModelUriError,
    UnpublishableModelError,
)
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source
from airflow_hydrogen.contract.publications import PublishJob
from airflow_hydrogen.contract.reports import Failure
from airflow_hydrogen.contract.signatures import OutputSpec, Signature
from airflow_hydrogen.operators.publish import PublishModelOperator
from airflow_hydrogen.runtime import afresh, publication, publish_model
from airflow_hydrogen.runtime.models import aliases, directory, engines, predictors
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.rank import foreign
from airflow_hydrogen.runtime.rank.foreign import Foreign
from airflow_hydrogen.runtime.scoring.application import run_inference
from airflow_hydrogen.runtime.storage import filesystems
from airflow_hydrogen.testing import run_task
from tests.integration import onnx_models

pytestmark = pytest.mark.integration

RUN = Run(dag_id="d", task_id="publish", run_id="r", map_index=-1, clear_number=1)
ROWS = 500


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows for all of these models."""
    random = np.random.default_rng(3)
    pairs = random.normal(size=(ROWS, 2))
    table = pa.table(
        {
            "id": range(ROWS),
            "a": random.normal(size=ROWS),
            "b": random.integers(-9, 9, ROWS).astype("int32"),
            "pair": pa.array(pairs.tolist()),
            "carrier": random.choice(["AA", "UA", "ZZ", ""], ROWS),
        }
    )
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(table, file)
    return file


def score(rows, model_uri, folder, **changes):
    job = InferenceJob(
        model_uri=model_uri,
        source=Source.parquet(str(rows)),
        sink=Sink.parquet(str(folder / "scores")),
        report_uri=str(folder / "report.json"),
        batch_rows=64,
        **changes,
    )
    report = run_inference(job)
    found = pq.read_table(report.output_uri).to_pandas().sort_values("id", ignore_index=True)
    assert len(found) == ROWS
    return report, found


def onnx_runtime(file):
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_an_onnx_file_scores_as_onnx_runtime_itself_does(spark, rows, tmp_path):
    file = onnx_models.classifier(tmp_path / "classifier.onnx")
    alias = str(tmp_path / "production.alias")
    uri = publish_model(
        file,
        str(tmp_path / "model"),
        columns=["b", {"name": "pair", "width": 2}, "a"],
        alias=alias,
        metrics={"auc": 0.9},
    )
    report, found = score(rows, alias, tmp_path)
    matrix = np.column_stack([found["b"], np.stack(found["pair"]), found["a"]]).astype("float32")
    label, probabilities = onnx_runtime(file).run(None, {"X": matrix})
    assert (report.engine, report.model_uri) == ("onnx", uri)
    assert found["label"].tolist() == label.tolist()
    assert set(label) == {10, 20, 30}
    assert np.array_equal(np.stack(found["probabilities"]), probabilities)
    assert directory.read_manifest(uri).metrics == {"auc": 0.9}
    with pytest.raises(EngineError, match="it is there for 'onnx' alone"):
        score(rows, uri, tmp_path, engine="tensorflow")


def test_words_and_numbers_fill_inputs_by_their_names(spark, rows, tmp_path):
    file = onnx_models.with_words(tmp_path / "words.onnx")
    uri = publish_model(file, str(tmp_path / "model"), columns={"carrier": "carrier", "wind": ["a"]})
    _, found = score(rows, uri, tmp_path)
    words = found["carrier"].to_numpy(object)[:, None]
    (expected,) = onnx_runtime(file).run(
        None, {"carrier": words, "wind": found["a"].to_numpy("float32")[:, None]}
    )
    assert np.array_equal(found["prediction"], expected[:, 0])


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """A SavedModel of TensorFlow alone, with two inputs and three outputs."""
    import tensorflow as tf

    class Made(tf.Module):
        def __init__(self):
            self.weights = tf.Variable([[1.0], [10.0]])

        @tf.function(input_signature=[tf.TensorSpec((None, 2)), tf.TensorSpec((None,), tf.string)])
        def __call__(self, x, word):
            total = tf.linalg.matmul(x, self.weights)
            length = tf.strings.length(word)
            return {"total": total, "length": length, "unwanted": tf.constant("x")}

    folder = str(tmp_path_factory.mktemp("saved") / "exported")
    made = Made()
    tf.saved_model.save(made, folder, signatures=made.__call__)
    return folder


def test_a_saved_model_scores_as_tensorflow_itself_does(spark, rows, saved_model, tmp_path):
    import tensorflow as tf

    uri = publish_model(
        saved_model,
        str(tmp_path / "model"),
        columns={"x": ["b", "a"], "word": "carrier"},
        outputs=["length", "total"],
    )
    report, found = score(rows, uri, tmp_path)
    serve = tf.saved_model.load(saved_model).signatures["serving_default"]
    expected = serve(
        x=tf.constant(found[["b", "a"]].to_numpy("float32")), word=tf.constant(found["carrier"].to_numpy())
    )
    assert report.engine == "tensorflow"
    assert np.array_equal(found["length"], expected["length"])
    assert np.allclose(found["total"], expected["total"][:, 0], rtol=1e-6)
    assert "unwanted" not in found
    with pytest.raises(EngineError, match="it is there for 'tensorflow' alone"):
        score(rows, uri, tmp_path, engine="onnx")


def test_outputs_that_a_savedmodel_does_not_give_are_told_when_it_is_loaded(saved_model):
    signature = Signature((), (OutputSpec("total", "float32", (1,)), OutputSpec("letters", "int32", ())))
    manifest = Manifest(framework="tensorflow", entry="", signature=signature, files=())
    with pytest.raises(ModelSignatureError, match=r"gives the outputs .*'length'.*, and not \['letters'\]"):
        predictors.load("m", manifest, Path(saved_model), None, 1, engines.PREDICTOR)


def test_a_keras_file_that_needs_no_code(tmp_path):
    import keras

    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    made.save(tmp_path / "made.keras")
    uri = publish_model(tmp_path / "made.keras", str(tmp_path / "model"), columns=["a", "b"])
    manifest = directory.read_manifest(uri)
    assert (manifest.framework, manifest.entry) == ("keras", "model.keras")
    assert [column.name for column in manifest.signature.columns] == ["a", "b"]
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)]).save(tmp_path / "l.keras")
    found = foreign.attempt(Foreign("m", "keras", tmp_path, "l.keras", ["a", "b"]))
    assert isinstance(found, UnpublishableModelError)
    assert re.search(r"it holds .*Lambda.*model\.export\(folder\)", str(found))


def attempt(file, columns=("a", "b"), **more):
    """Look at an ONNX file in this process."""
    return foreign.attempt(Foreign("m", "onnx", file.parent, file.name, list(columns), **more))


@pytest.mark.parametrize(
    ("make", "arguments", "problem"),
    [
        (lambda file: onnx_models.linear(file, (1, 2)), {}, r"has shape \[1, 2\], for batches of 1 alone"),
        (
            lambda file: onnx_models.linear(file, (None, None)),
            {},
            r"has shape \[\?, \?\]: every dimension but",
        ),
        (lambda file: onnx_models.linear(file, ()), {}, "has no first dimension for the rows"),
        (lambda file: onnx_models.linear(file, None), {}, "has no first dimension for the rows"),
        (lambda file: onnx_models.linear(file, kind=onnx.TensorProto.BFLOAT16), {}, "'x' is of bfloat16"),
        (lambda file: onnx_models.linear(file, kind=onnx.TensorProto.INT64), {}, "MatMul"),
        (onnx_models.linear, {"columns": ["a"] * 3}, "twice"),
        (onnx_models.linear, {"columns": "abc"}, r"takes 2 values a row .* hold 3: 'a', 'b', 'c'"),
        (onnx_models.linear, {"outputs": ["y"]}, "outputs names 'y'"),
        (onnx_models.with_words, {}, "give the columns of each, as in {'carrier': ..., 'wind': ...}"),
        (onnx_models.zipped, {}, "output 'p' is of sequence.*zipmap"),
        (onnx_models.of_one_row, {}, "Reshape"),
        (onnx_models.squeezed, {}, r"has shape \[\] for one row and \[3\] for three"),
        (onnx_models.normalized_by_batch, {}, "something else for a row in a batch of three"),
        (
            lambda file: onnx_models.normalized_by_batch(file, onnx.TensorProto.INT64),
            {},
            "something else for a row in a batch of three",
        ),
        (
            lambda file: onnx_models.normalized_by_batch(file, by="ReduceMax"),
            {},
            "something else for a row in a batch of three",
        ),
        (
            onnx_models.normalized_by_batch,
            {"example": {"a": 1, "b": 2}},
            "something else for a row in a batch of three",
        ),
        (onnx_models.looked_up, {"columns": ["n"]}, "refuses made-up rows; give a real one.*indices"),
        (onnx_models.looked_up, {"columns": ["n"], "example": {"m": 1}}, "example has no value for 'n'"),
        (onnx_models.looked_up, {"columns": ["n"], "example": {"n": 7}}, "refuses the row of example"),
        (lambda file: file.write_bytes(b"\x08\x0a no model"), {}, "no ONNX file"),
        (lambda file: file.write_bytes(b""), {}, "no ONNX file"),
    ],
)
@pytest.mark.small
def test_what_could_not_be_scored_is_refused(make, arguments, problem, tmp_path):
    make(tmp_path / "m.onnx")
    found = attempt(tmp_path / "m.onnx", **arguments)
    assert isinstance(found, UnpublishableModelError), found
    assert re.search(f"model 'm' is not published: .*{problem}", str(found), re.DOTALL), found


@pytest.mark.small
def test_what_is_published_is_what_the_file_says_and_the_model_answers(tmp_path):
    onnx_models.zipped(tmp_path / "m.onnx")
    signature = attempt(tmp_path / "m.onnx", outputs=["raw"])
    assert [(spec.name, spec.dtype, spec.shape) for spec in signature.outputs] == [("raw", "float32", (2,))]
    onnx_models.looked_up(tmp_path / "m.onnx")
    signature = attempt(tmp_path / "m.onnx", ["n"], example={"n": 102})
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("place", ())]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("prediction", ())]


@pytest.mark.small
@pytest.mark.parametrize(
    ("place", "name", "stand_in", "problem"),
    [
        (afresh, "TIMEOUT_S", 0.0, "a fresh process did not end within 0 s"),
        (filesystems, "list_files", mock.Mock(side_effect=OSError("503")), "it cannot be read: 503"),
    ],
)
def test_a_model_that_is_not_to_blame_is_tried_again(place, name, stand_in, problem, tmp_path, monkeypatch):
    file = onnx_models.linear(tmp_path / "m.onnx")
    monkeypatch.setattr(place, name, stand_in)
    with pytest.raises(UnpublishableModelError, match=problem) as caught:
        publish_model(file, str(tmp_path / "model"), columns=["a", "b"])
    assert Failure.of(caught.value).retryable


@pytest.mark.small
def test_weights_in_other_files_are_published_with_the_model(tmp_path):
    file = onnx_models.linear(
        tmp_path / "made" / "net.onnx",
        save_as_external_data=True,
        location="net.weights",
        size_threshold=0,
    )
    uri = publish_model(file, str(tmp_path / "model"), columns=["a", "b"])
    manifest, folder = directory.open_model(uri)
    assert [entry.path for entry in manifest.files] == ["onnx/net.onnx", "onnx/net.weights"]
    (tmp_path / "made" / "net.weights").unlink()
    session = onnx_runtime(str(folder / manifest.entry))
    assert session.run(None, {"x": np.ones((1, 2), "float32")})[0].tolist() == [[11.0]]
    with pytest.raises(UnpublishableModelError, match="lie in other files, and one of them is not there"):
        publish_model(file, uri, columns=["a", "b"])
    assert directory.open_model(uri)[0] == manifest


@pytest.mark.small
def test_weights_outside_the_folder_of_the_model_are_refused(tmp_path):
    file = onnx_models.linear(
        tmp_path / "made" / "net.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../../etc/passwd"
    (tmp_path / "made" / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnpublishableModelError, match="'../../etc/passwd', which is not below the folder"):
        publish_model(file, str(tmp_path / "model"), columns=["a", "b"])
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.small
def test_a_failure_leaves_the_old_model_and_nothing_else(tmp_path):
    good = onnx_models.linear(tmp_path / "good.onnx")
    bad = onnx_models.linear(tmp_path / "bad.onnx", (1, 2))
    uri = publish_model(good, str(tmp_path / "out" / "model"), columns=["a", "b"])
    before = directory.read_manifest(uri)
    with pytest.raises(UnpublishableModelError):
        publish_model(bad, uri, columns=["a", "b"])
    (tmp_path / "out" / "bad.alias").write_text("{}")
    with pytest.raises(NotAnAliasError):
        publish_model(good, uri, columns=["b", "a"], alias=str(tmp_path / "out" / "bad.alias"))
    assert directory.open_model(uri)[0] == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bad.alias", "model"]


@pytest.mark.parametrize(
    ("made", "model", "problem"),
    [
        ([], "m.onnx", "there is no such file"),
        (["m.onnx/part"], "m.onnx", "it is a folder; expected a file"),
        ([], "m", "there is nothing; expected a .onnx file"),
        (["m/1/saved_model.pb"], "m", "found '1/saved_model.pb' in it"),
        (["m/net.onnx", "m/config.json"], "m", "found 'net.onnx' in it"),
    ],
)
@pytest.mark.small
def test_where_no_model_lies(made, model, problem, tmp_path):
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UnpublishableModelError, match=problem):
        publish_model(tmp_path / model, str(tmp_path / "out" / "model"), columns=["a"])
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.small
def test_a_retry_finds_the_model_of_the_try_before_and_sets_the_alias(tmp_path, monkeypatch):
    file = onnx_models.linear(tmp_path / "m.onnx")
    alias = str(tmp_path / "p.alias")
    job = PublishJob(model=file, model_uri=str(tmp_path / "model"), columns=["a", "b"], alias=alias, run=RUN)
    with monkeypatch.context() as patched:
        patched.setattr(aliases, "set_alias", lambda *given, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publication.run_publication(job)
    (tmp_path / "m.onnx").unlink()
    report = publication.run_publication(job)
    assert (report.reused, report.alias) == (True, alias)
    assert report.model_version == aliases.resolve(alias).version
    assert aliases.read_alias(alias).set_by["task_id"] == "publish"
    newer = publish_model(
        onnx_models.linear(tmp_path / "m.onnx"), str(tmp_path / "newer"), columns=["b", "a"], alias=alias
    )
    report = publication.run_publication(job)  # one more try, after a worker was thought to be dead
    assert (report.reused, report.alias) == (True, None)
    assert aliases.resolve(alias).uri == newer
    with pytest.raises(SharedModelUriError):
        publication.run_publication(dataclasses.replace(job, run=dataclasses.replace(RUN, task_id="other")))
    cleared = dataclasses.replace(job, run=dataclasses.replace(RUN, clear_number=2))
    assert not publication.run_publication(cleared).reused
    assert json.loads((tmp_path / "model" / "manifest.json").read_text())["run"]["clear_number"] == 2


def test_an_operator_publishes_by_a_process_of_its_own(tmp_path, monkeypatch):
    onnx_models.linear(tmp_path / "late.onnx")
    monkeypatch.chdir(tmp_path)  # a path on the worker, relative as a user may write it

    def operator(columns):
        return PublishModelOperator(
            task_id="publish",
            model="late.onnx",
            model_uri=str(tmp_path / "models" / "{{ run_id }}"),
            columns=columns,
            alias=str(tmp_path / "models" / "production.alias"),
            outlets=[Asset("late")],
        )

    ran = run_task(operator(["a", "b"]))
    report = ran.xcoms["report"]
    version = directory.read_manifest(ran.return_value).version
    assert (report["framework"], report["model_version"], report["reused"]) == ("onnx", version, False)
    assert report["inputs"] == {"x": {"columns": ["a", "b"], "dtype": "float32", "shape": [2]}}
    assert [extra["model_version"] for extra in ran.outlet_extra.values()] == [version]
    assert run_task(operator(["a", "b"])).xcoms["report"]["reused"]
    with pytest.raises(AirflowFailException, match=r"UnpublishableModelError: .*takes 2 values a row"):
        run_task(operator(["a", "b", "id"]))
    assert aliases.resolve(str(tmp_path / "models" / "production.alias")).version == version
