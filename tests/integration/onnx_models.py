"""ONNX files as other frameworks' converters write them, made of the operators of ONNX itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def tensor(name, kind=FLOAT, shape=("rows", 2)):
    """An input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def save(file, nodes, inputs, outputs, constants=None, **how):
    """Write a file of these nodes, and return its path."""
    weights = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "made_elsewhere", inputs, outputs, weights)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(helper.make_model(graph, opset_imports=domains, ir_version=10), str(file), **how)
    return str(file)


def node(operation, inputs, outputs, **attributes):
    """A node; operators of classical machine learning are found by their names."""
    domain = "ai.onnx.ml" if operation in ("Scaler", "LinearClassifier", "LabelEncoder", "ZipMap") else ""
    return helper.make_node(operation, inputs, outputs, domain=domain, **attributes)


def linear(file, shape=("rows", 2), kind=FLOAT, output=("rows", 1), **how):
    """prediction = a + 10 b."""
    weights = {"w": np.array([[1.0], [10.0]], "float32")}
    nodes = [node("MatMul", ["x", "w"], ["dense/MatMul:0"])]
    return save(
        file, nodes, [tensor("x", kind, shape)], [tensor("dense/MatMul:0", FLOAT, output)], weights, **how
    )


def classifier(file):
    """Three classes from four numbers, as skl2onnx writes StandardScaler and LogisticRegression."""
    random = np.random.default_rng(7)
    nodes = [
        node("Scaler", ["X"], ["scaled"], offset=[1.0, 2.0, 3.0, 4.0], scale=[0.5, 2.0, 1.5, 0.25]),
        node(
            "LinearClassifier",
            ["scaled"],
            ["label", "scores"],
            classlabels_ints=[10, 20, 30],
            coefficients=random.normal(size=12).astype("float32").tolist(),
            intercepts=[0.1, -0.2, 0.3],
            multi_class=1,
            post_transform="SOFTMAX",
        ),
        node("Identity", ["scores"], ["probabilities"]),
    ]
    outputs = [tensor("label", INT64, (None,)), tensor("probabilities", FLOAT, (None, 3))]
    return save(file, nodes, [tensor("X", FLOAT, (None, 4))], outputs)


def with_words(file):
    """Two inputs: a word that has a number, and a number beside it."""
    nodes = [
        node(
            "LabelEncoder",
            ["carrier"],
            ["number"],
            keys_strings=["AA", "UA"],
            values_floats=[1.0, 2.0],
            default_float=-1.0,
        ),
        node("Add", ["number", "wind"], ["delay"]),
    ]
    inputs = [tensor("carrier", STRING, ("n", 1)), tensor("wind", FLOAT, ("n", 1))]
    return save(file, nodes, inputs, [tensor("delay", FLOAT, None)])


def looked_up(file):
    """A table of five rows, from 100 on: it refuses any other number."""
    nodes = [node("Sub", ["place", "first"], ["row"]), node("Gather", ["table", "row"], ["value"])]
    constants = {"first": np.array(100, "int64"), "table": np.arange(5, dtype="float32")}
    return save(file, nodes, [tensor("place", INT64, ("n",))], [tensor("value", FLOAT, ("n",))], constants)


def normalized_by_batch(file, kind=FLOAT, by="ReduceMean"):
    """x less its mean over the batch, as a model does it that was exported in training mode."""
    nodes = [
        node("Cast", ["x"], ["numbers"], to=FLOAT),
        node(by, ["numbers", "axes"], ["mean"], keepdims=1),
        node("Sub", ["numbers", "mean"], ["y"]),
    ]
    constants = {"axes": np.array([0], "int64")}
    return save(file, nodes, [tensor("x", kind)], [tensor("y")], constants)


def squeezed(file):
    """Of one row it gives a lone number, as `squeeze()` of PyTorch does."""
    nodes = [node("ReduceSum", ["x", "axes"], ["sums"], keepdims=1), node("Squeeze", ["sums"], ["y"])]
    return save(file, nodes, [tensor("x")], [tensor("y", FLOAT, None)], {"axes": np.array([1], "int64")})


def of_one_row(file):
    """It says that it takes batches, and reshapes each to one row."""
    constants = {"shape": np.array([1, 2], "int64")}
    return save(file, [node("Reshape", ["x", "shape"], ["y"])], [tensor("x")], [tensor("y")], constants)


def zipped(file):
    """Probabilities as a list of mappings, as skl2onnx writes them by default."""
    of = helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, []))
    output = helper.make_value_info("p", helper.make_sequence_type_proto(of))
    nodes = [node("ZipMap", ["x"], ["p"], classlabels_int64s=[0, 1]), node("Identity", ["x"], ["raw"])]
    return save(file, nodes, [tensor("x")], [output, tensor("raw")])
