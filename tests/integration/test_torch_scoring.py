"""Models of PyTorch, as programs of torch.export: what is published, what is refused, and what they score."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import ColumnTypeError, EngineError, UnpublishableModelError
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.runtime import publish_model
from airflow_hydrogen.runtime.models import directory, torch_program
from airflow_hydrogen.runtime.rank import foreign
from airflow_hydrogen.runtime.rank.foreign import Foreign
from airflow_hydrogen.runtime.scoring.application import run_inference

pytestmark = [
    pytest.mark.integration,
    pytest.mark.torch,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: make setup WITH=torch"
    ),
    # PyTorch's own, of what it calls itself.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]

ROWS = 500

_AFTER_TENSORFLOW = """
import sys
import tensorflow
from airflow_hydrogen.runtime.models import torch_program
program = torch_program.read(sys.argv[1])
print(*(node.target._schema.name for node in program.graph.nodes if node.op == "call_function"))
"""

# Says why nothing may be forked.
_PRELOAD = """
from airflow_hydrogen.runtime.rank.preloading import preload
print(preload(["torch", "torch.export._trace"], required=True))
"""


@pytest.fixture(scope="module", autouse=True)
def triton_left_out():
    """Triton's LLVM ends a process that has TensorFlow's, as this one has where other tests ran before."""
    if "tensorflow" in sys.modules:
        sys.modules.setdefault("triton", None)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows for all of these models."""
    random = np.random.default_rng(5)
    table = pa.table(
        {
            "id": range(ROWS),
            "a": random.normal(size=ROWS),
            "b": random.integers(-9, 9, ROWS).astype("int32"),
            "place": random.integers(0, 4, ROWS),
            "carrier": random.choice(["AA", "UA"], ROWS),
        }
    )
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(table, file, row_group_size=100)
    return file


def save(model, file, *given, dynamic_shapes=None):
    """Export a model for batches of any size, unless other shapes are given, and return it."""
    import torch

    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in given) if dynamic_shapes is None else dynamic_shapes
    torch.export.save(torch.export.export(model, given, dynamic_shapes=shapes), str(file))
    return model


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory):
    """A model of a matrix and of a place in a table, with layers that training mode changes; and its file."""
    import torch

    class TwoInputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Sequential(
                torch.nn.Linear(2, 8),
                torch.nn.BatchNorm1d(8),
                torch.nn.ReLU(inplace=True),
                torch.nn.Dropout(),
            )
            self.table = torch.nn.Embedding(4, 8)

        def forward(self, x, place):
            both = self.dense(x) + self.table(place)
            return {"late": torch.sigmoid(both.sum(1)), "both": both, "largest": both.argmax(1)}

    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("two") / "two_inputs.pt2"
    model = TwoInputs().eval()
    return save(model, file, torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), file


def job_of(rows, model_uri, folder, **changes):
    return InferenceJob(
        model_uri=model_uri,
        source=Source.parquet(str(rows)),
        sink=Sink.parquet(str(folder / "scores")),
        report_uri=str(folder / "report.json"),
        batch_rows=64,
        **changes,
    )


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_program_scores_as_pytorch_itself_does(spark, rows, two_inputs, tmp_path, engine):
    import torch

    model, file = two_inputs
    uri = publish_model(
        file,
        str(tmp_path / "model"),
        columns={"x": ["b", "a"], "place": "place"},
        outputs=["largest", "late", "both"],
    )
    manifest = directory.read_manifest(uri)
    assert (manifest.framework, manifest.entry) == ("torch", "model.pt2")
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.signature.inputs] == [
        ("x", "float32", (2,)),
        ("place", "int64", ()),
    ]
    report = run_inference(job_of(rows, uri, tmp_path, engine=engine))
    found = pq.read_table(report.output_uri).to_pandas().sort_values("id", ignore_index=True)
    assert (len(found), report.engine) == (ROWS, "torch")
    with torch.inference_mode():
        expected = model(
            torch.from_numpy(found[["b", "a"]].to_numpy("float32")),
            torch.from_numpy(found["place"].to_numpy()),
        )
    assert found["largest"].tolist() == expected["largest"].tolist()
    assert np.allclose(found["late"], expected["late"], rtol=1e-5)
    assert np.allclose(np.stack(found["both"]), expected["both"], rtol=1e-5, atol=1e-6)


def test_engines_that_do_not_run_it_are_refused_before_spark_starts(rows, two_inputs, tmp_path):
    _, file = two_inputs
    columns = {"x": ["b", "a"], "place": "place"}
    uri = publish_model(file, str(tmp_path / "model"), columns=columns)
    with pytest.raises(EngineError, match=r"there for 'torch' alone: torch\.onnx\.export makes"):
        run_inference(job_of(rows, uri, tmp_path, engine="onnx"))
    with pytest.raises(EngineError, match="there for 'torch' alone"):
        run_inference(job_of(rows, uri, tmp_path, engine="tensorflow"))


def test_a_column_of_texts_is_refused_before_a_row_is_read(spark, rows, two_inputs, tmp_path):
    _, file = two_inputs
    uri = publish_model(file, str(tmp_path / "model"), columns={"x": ["b", "a"], "place": "carrier"})
    with pytest.raises(ColumnTypeError, match="carrier"):
        run_inference(job_of(rows, uri, tmp_path))


def test_arguments_of_any_form_are_filled_by_name_and_outputs_have_names(tmp_path):
    import torch

    class Nested(torch.nn.Module):
        def forward(self, given, scale, *, shift):
            total = given["a"] * scale + given["b"].unsqueeze(1)
            return total, (total + shift).to(torch.float64), None

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        Nested(),
        ({"a": torch.zeros(4, 2), "b": torch.zeros(4)}, 3.0),
        {"shift": torch.zeros(4, 1)},
        dynamic_shapes={"given": {"a": batch, "b": batch}, "scale": None, "shift": batch},
    )
    torch.export.save(program, str(tmp_path / "m.pt2"))
    columns = {"given_a": "pair", "given_b": "b", "shift": "c"}
    refused = foreign.attempt(Foreign("m", "torch", tmp_path, "m.pt2", columns))
    assert re.search("output 'output_2' is of NoneType", str(refused))
    named = Foreign("m", "torch", tmp_path, "m.pt2", columns, outputs=["output_1", "output_0"])
    signature = foreign.attempt(named)
    assert [(spec.name, spec.dtype, spec.shape) for spec in signature.outputs] == [
        ("output_1", "float64", (2,)),
        ("output_0", "float32", (2,)),
    ]
    manifest = manifest_of(signature)
    predict = torch_program.load("m", tmp_path / "m.pt2", manifest, 1)
    given = {
        "given_a": np.array([[1, 2]], "float32"),
        "given_b": np.array([10], "float32"),
        "shift": np.array([[0.5]], "float32"),
    }
    for array in given.values():
        array.flags.writeable = False  # as what Arrow has
    found = predict(given)
    assert found["output_0"].tolist() == [[13.0, 16.0]]
    assert found["output_1"].tolist() == [[13.5, 16.5]]


def manifest_of(signature):
    from airflow_hydrogen.runtime.models.manifest import Manifest

    return Manifest(
        framework="torch", entry="m.pt2", signature=signature, files=(), versions={"torch": "9.9"}
    )


def attempt(file, columns=("a", "b"), **more):
    """Look at a program in this process."""
    return foreign.attempt(Foreign("m", "torch", file.parent, file.name, list(columns), **more))


def net(*layers):
    import torch

    return torch.nn.Sequential(torch.nn.Linear(2, 3), *layers)


def exported(model, file, shapes=None, given=None):
    import torch

    save(model, file, torch.zeros(8, 2) if given is None else given, dynamic_shapes=shapes)


class _Forward:
    """Makes a model of a function."""

    def __new__(cls, function):
        import torch

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x):
                return function(self, x)

        return Model()


def _counting(model, x):
    model.calls.add_(1)
    return x * model.calls


def _writing(model, x):
    x.clamp_(min=0)
    return x * 2


def dim(**limits):
    import torch

    return ({0: torch.export.Dim("batch", **limits)},)


REFUSED = {
    "a fixed batch": (
        lambda file: exported(net().eval(), file, ({},)),
        r"has shape \[8, 2\], for batches of 8 alone: .*"
        r"dynamic_shapes=\{'input': \{0: torch\.export\.Dim\('batch'\)\}\}",
    ),
    "a largest batch": (
        lambda file: exported(net().eval(), file, (dim(max=64)[0],)),
        "'input' is for batches of 64 rows at most",
    ),
    "a least batch": (
        lambda file: exported(net().eval(), file, (dim(min=4)[0],)),
        "'input' is for batches of 4 rows at least",
    ),
    "batches of even size": (
        lambda file: exported(net().eval(), file, ({0: 2 * dim()[0][0]},)),
        r"'input' is for batches of 2\*\w+ rows alone",
    ),
    "dropout in training mode": (
        lambda file: exported(net(_dropout()), file),
        r"its dropout was exported in training mode: call model\.eval\(\) first",
    ),
    "a model that counts its calls": (
        lambda file: exported(_Forward(_counting).eval(), file),
        "it writes into its buffers 'calls' whenever it is called",
    ),
    "a model that changes its rows": (
        lambda file: exported(_Forward(_writing).eval(), file),
        r"it writes into its inputs 'x': .*x = x\.clone\(\)",
    ),
    "a mean over the batch": (
        lambda file: exported(_Forward(lambda _, x: x - x.mean(0)).eval(), file),
        "something else for a row in a batch of three",
    ),
    "outputs in outputs": (
        lambda file: exported(_Forward(lambda _, x: {"y": [x, x + 1]}).eval(), file),
        "its output 'y' holds several",
    ),
    "a dtype without columns": (lambda file: exported(_bfloat16(), file, given=_numbers()), "is of bfloat16"),
    "no archive": (lambda file: file.write_bytes(b"no program"), r"finds no program of torch\.export in it"),
    "nothing": (lambda file: file.write_bytes(b""), r"finds no program of torch\.export in it"),
    "weights": (lambda file: _weights(file), r"finds no program of torch\.export in it"),
    "half a file": (lambda file: _half(file), r"finds no program of torch\.export in it"),
}


def _dropout():
    import torch

    return torch.nn.Dropout()


def _bfloat16():
    return net().bfloat16().eval()


def _numbers():
    import torch

    return torch.zeros(8, 2, dtype=torch.bfloat16)


def _weights(file):
    import torch

    torch.save(net().state_dict(), str(file))


def _half(file):
    exported(net().eval(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_scored_is_refused(case, tmp_path):
    make, problem = REFUSED[case]
    make(tmp_path / "m.pt2")
    found = attempt(tmp_path / "m.pt2")
    assert isinstance(found, UnpublishableModelError), found
    assert re.search(f"model 'm' is not published: .*{problem}", str(found), re.DOTALL), found


def test_what_loads_programs_may_be_imported_before_workers_are_forked():
    found = subprocess.run([sys.executable, "-c", _PRELOAD], text=True, capture_output=True, check=True)
    assert found.stdout.splitlines()[-1] == "None"


def test_a_worker_that_has_scored_with_tensorflow_scores_with_pytorch(tmp_path):
    exported(net().eval(), tmp_path / "m.pt2")
    command = [sys.executable, "-c", _AFTER_TENSORFLOW, str(tmp_path / "m.pt2")]
    found = subprocess.run(command, text=True, capture_output=True, check=True)
    assert found.stdout.splitlines()[-1] == "aten::linear"


def test_a_worker_with_an_older_pytorch_is_told_of(tmp_path):
    exported(net().eval(), tmp_path / "m.pt2")
    signature = attempt(tmp_path / "m.pt2")
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("prediction", (3,))]
    (tmp_path / "m.pt2").write_bytes(b"of a format that is not known yet")
    with pytest.raises(EngineError, match=r"It was published with PyTorch 9\.9: install one as new"):
        torch_program.load("m", tmp_path / "m.pt2", manifest_of(signature), 1)
