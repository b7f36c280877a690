"""The weights of a model are once in the memory of a host: measured in processes that score together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest

from airflow_hydrogen.contract.errors import ModelChangedError
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime import afresh
from airflow_hydrogen.runtime.models import copies, directory, host_copies, onnx_copies, onnx_session
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.predictors import load_predictor
from tests.integration import onnx_models

pytestmark = pytest.mark.integration

WIDTH = 2048
MODEL_MB = 3 * WIDTH * WIDTH * 4 // 2**20

WORKER = """
import json, sys
import numpy as np
from airflow_hydrogen.runtime.models.directory import read_manifest
from airflow_hydrogen.runtime.models.predictors import load_predictor

def own_mb():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) // 1024

uri, engine, framework = sys.argv[1:]
__import__(framework)
before = own_mb()
rows = {"x": np.linspace(-1, 1, 14, dtype="float32").reshape(7, 2)}
with load_predictor(uri, read_manifest(uri), None, 1, engine) as predict:
    answer = predict(rows)["prediction"]
    print(json.dumps({"own_mb": own_mb() - before, "bytes": answer.tobytes().hex()}), flush=True)
    for _ in sys.stdin:
        again = predict(rows)["prediction"]
        print(json.dumps({"bytes": again.tobytes().hex()}), flush=True)
"""


class Worker:
    """A process that has a model in memory and predicts with it when it is asked."""

    def __init__(self, uri, engine, framework):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(uri), engine, framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError(self.process.stderr.read())

    def predict(self):
        self.process.stdin.write("once more\n")
        self.process.stdin.flush()
        return self.answer()["bytes"]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """Where this host's copies lie."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / f"airflow-hydrogen-models-{os.getuid()}"


def layers(file, **how):
    """A file with two matrices that kernels pack, and a table that they take as it is."""
    random = np.random.default_rng(3)
    weights = {
        "first": random.standard_normal((2, WIDTH), dtype="float32"),
        "second": random.standard_normal((WIDTH, WIDTH), dtype="float32"),
        "third": random.standard_normal((WIDTH, WIDTH), dtype="float32"),
        "table": random.standard_normal((WIDTH, WIDTH), dtype="float32"),
        "last": random.standard_normal((WIDTH, 1), dtype="float32"),
        "one": np.array([[1]], "int64"),
    }
    nodes = [
        onnx_models.node("MatMul", ["x", "first"], ["a"]),
        onnx_models.node("MatMul", ["a", "second"], ["b"]),
        onnx_models.node("Gemm", ["b", "third"], ["c"], transB=1),
        onnx_models.node("GatherND", ["table", "one"], ["row"]),
        onnx_models.node("Mul", ["c", "row"], ["d"]),
        onnx_models.node("MatMul", ["d", "last"], ["prediction"]),
    ]
    inputs = [onnx_models.tensor("x")]
    return onnx_models.save(
        file, nodes, inputs, [onnx_models.tensor("prediction", shape=("rows", 1))], weights, **how
    )


def publish_onnx(folder, make=layers, **how):
    """Publish an ONNX file without the training application."""
    folder.mkdir(exist_ok=True)
    make(folder / "model.onnx", **how)
    columns = (ColumnSpec("a", "float32"), ColumnSpec("b", "float32"))
    manifest = Manifest(
        framework="onnx",
        entry="model.onnx",
        signature=Signature(
            (InputSpec("x", columns, "float32", (2,)),), (OutputSpec("prediction", "float32", (1,)),)
        ),
        files=directory.describe_files(folder, sorted(os.listdir(folder))),
    )
    (folder / "manifest.json").write_text(manifest.dumps())
    return manifest


def unshared(folder, manifest):
    """What the file itself predicts, without this package's copies."""
    predict = onnx_session.load("m", folder / "model.onnx", manifest.signature, 1, is_twin=False)
    rows = np.linspace(-1, 1, 14, dtype="float32").reshape(7, 2)
    return predict({"x": rows})["prediction"].tobytes().hex()


def test_processes_with_an_onnx_model_have_its_weights_once(tmp_path):
    manifest = publish_onnx(tmp_path / "m")
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(tmp_path / "m", "onnx", "onnxruntime")) for _ in range(3)]
        answers = [worker.answer() for worker in workers]
    assert max(answer["own_mb"] for answer in answers) < MODEL_MB / 3
    assert {answer["bytes"] for answer in answers} == {unshared(tmp_path / "m", manifest)}


def test_a_worker_scores_on_when_the_models_files_are_cut_off_and_all_copies_are_removed(tmp_path, root):
    outside = {"save_as_external_data": True, "location": "model.data", "size_threshold": 0}
    manifest = publish_onnx(tmp_path / "m", **outside)
    expected = unshared(tmp_path / "m", manifest)
    with Worker(tmp_path / "m", "onnx", "onnxruntime") as worker:
        assert worker.answer()["bytes"] == expected
        os.truncate(tmp_path / "m" / "model.data", 0)
        shutil.rmtree(root)
        assert worker.predict() == expected


def load_once(folder, manifest):
    """Load a model and predict, in this process."""
    with load_predictor(str(folder), manifest, None, 1, "onnx") as predict:
        return predict({"x": np.array([[1.0, 2.0], [3.0, 4.0]], "float32")})["prediction"].ravel().tolist()


def copies_in(root):
    return [path for path in root.iterdir() if "-onnx-" in path.name]


@pytest.fixture
def linear(tmp_path, monkeypatch):
    """A small model, which is shared as large ones are."""
    monkeypatch.setattr(host_copies, "SHARED_BYTES", 0)
    return tmp_path / "m", publish_onnx(tmp_path / "m", onnx_models.linear)


def test_a_copy_that_something_else_has_been_at_is_made_anew(linear, root):
    assert load_once(*linear) == [21.0, 43.0]
    (copy,) = copies_in(root)
    (copy / onnx_copies.FILE).unlink()
    assert load_once(*linear) == [21.0, 43.0]
    assert (copy / onnx_copies.FILE).is_file()
    assert [path for path in root.iterdir() if path != copy] == []


def test_a_model_that_cannot_be_shared_is_tried_once_and_scores(linear, monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(afresh, "call", lambda function, packing, folder: tried.append(packing) or "no room")
    for _ in range(2):
        assert load_once(*linear) == [21.0, 43.0]
    assert len(tried) == 1
    assert capsys.readouterr().out.count("this Python worker has weights of its own: no room\n") == 2


def test_a_model_that_could_not_be_shared_is_tried_again_after_an_hour(linear, root, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(afresh, "call", lambda function, packing, folder: "no room")
        assert load_once(*linear) == [21.0, 43.0]
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(copies, "_sweep", lambda root, version: None)  # it was used all the time
    capsys.readouterr()
    assert load_once(*linear) == [21.0, 43.0]
    assert capsys.readouterr().out == ""
    (copy,) = copies_in(root)
    assert (copy / onnx_copies.FILE).is_file()


def test_what_predicts_something_else_is_not_used(linear, tmp_path, monkeypatch):
    folder, manifest = linear
    packing = onnx_copies.Packing("m", folder / "model.onnx", tmp_path, manifest.signature, False)
    assert onnx_copies.pack(packing) is None
    honest = onnx_session.load

    def load(*given, is_packed=False, **options):
        predict = honest(*given, is_packed=is_packed, **options)
        apart = np.float32(1e-6 if is_packed else 0.0)
        return lambda rows: {name: value + apart for name, value in predict(rows).items()}

    monkeypatch.setattr(onnx_session, "load", load)
    assert "predicts something else" in onnx_copies.pack(packing)


def test_a_model_that_is_written_while_it_is_copied_leaves_no_copy(linear, root, monkeypatch):
    folder, manifest = linear

    def call(function, packing, exchange):
        assert function(packing) is None
        (folder / "model.onnx").write_bytes(b"another one")

    monkeypatch.setattr(afresh, "call", call)
    with pytest.raises(ModelChangedError, match="was written while it was read"):
        load_once(folder, manifest)
    assert [*root.iterdir()] == []


def test_without_a_temporary_folder_each_process_has_its_own_weights(linear, root, capsys):
    root.write_text("no folder")
    assert load_once(*linear) == [21.0, 43.0]
    assert "this Python worker has weights of its own: " in capsys.readouterr().out
