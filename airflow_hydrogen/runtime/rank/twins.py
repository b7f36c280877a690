"""The twin of a model for ONNX Runtime: converted in a fresh process, and held against the model.

Conversion is done by tf2onnx, from the SavedModel of what a scorer would load. What it leaves out, such as a
layer's checks of its input, would give predictions for rows that the model refuses. So both get odd rows as
well, and there is a twin only where both say the same of each, be it an error.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from airflow_hydrogen.contract.signatures import InputSpec, Signature
from airflow_hydrogen.runtime import afresh
from airflow_hydrogen.runtime.models import engines, onnx_session, predictors
from airflow_hydrogen.runtime.models.inputs import model_inputs
from airflow_hydrogen.runtime.models.manifest import Manifest, Twin
from airflow_hydrogen.runtime.models.predictors import Arrays, Predict
from airflow_hydrogen.runtime.rank.trial import describe

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 4_096
"""Rows of the training data on which twins are compared, where they are not too large."""

_BYTES = 2**26  # of these rows: images in thousands would take all of a rank's memory
_VALUE_BYTES = 8

FILE = "model.onnx"
TOLERANCE = 1e-3
"""How far apart predictions may be, as a share of the largest of an output: another order of additions."""

_OPSET = 18
_TINY = float(np.finfo("float32").tiny)
# Their effect is an error, and conversion leaves them out.
_CHECKS = ("Assert", "CheckNumerics", "CheckNumericsV2")
# ONNX Runtime's error: the node, which is called after its layer, and its operation.
_LACKING = re.compile(r'In Node, \("([^"]+)", (\w+),.*No Op registered for', re.DOTALL)
_WORDS = ("", "\x7f not a word of any vocabulary", "ü" * 100)


@dataclass(frozen=True)
class Conversion:
    """A model to convert.

    Attributes:
        folder: the model's; the twin's file is written there.
        manifest: as far as loading needs it.
        rows: of the training data; None where they are not known.
    """

    folder: Path
    manifest: Manifest
    rows: Arrays | None


@dataclass(frozen=True)
class Converted:
    """What came of it: the twin, or why there is none."""

    twin: Twin | None = None
    problem: str | None = None


def rows_for(signature: Signature) -> int:
    """How many rows of the training data twins of a model are compared on: fewer where they are large."""
    values = sum(math.prod(spec.shape) for spec in signature.inputs)
    return max(1, min(ROWS, _BYTES // (_VALUE_BYTES * max(values, 1))))


def convert(folder: Path, manifest: Manifest, read: Callable[[], pa.RecordBatch | None]) -> Twin | None:
    """Write a model's twin beside it.

    Args:
        folder: the saved model's.
        manifest: as far as it is known: framework, entry, signature and modules.
        read: reads rows of the training data, with the columns that the model takes; None where they are
            not known.

    Returns:
        The twin; None where there is none, and the log says why.
    """
    if (folder / FILE).exists():
        print(
            f"the model has no ONNX twin: a file {FILE} is there, which `main` has saved itself", flush=True
        )
        return None
    try:
        rows = read()
        arrays = None if rows is None else model_inputs(rows, manifest.signature.inputs)
        found = afresh.call(attempt, Conversion(folder, manifest, arrays))
    except Exception as error:  # whatever it is, the model itself is trained
        found = Converted(problem=describe(error))
    if found.twin is None:
        (folder / FILE).unlink(missing_ok=True)
        print(
            f"the model has no ONNX twin, and scores with {manifest.framework}: {found.problem}", flush=True
        )
        return None
    on = (
        f"{found.twin.rows:,} rows of the training data and for made-up ones"
        if found.twin.rows
        else ("made-up rows alone, as no rows of the training data with the model's columns are known")
    )
    print(
        f"the model's ONNX twin predicts the same for {on}; at most {found.twin.difference:.1e} of an "
        "output's largest value apart",
        flush=True,
    )
    return found.twin


def attempt(conversion: Conversion) -> Converted:
    """Convert and compare, in this process."""
    manifest, folder = conversion.manifest, conversion.folder
    if manifest.predictor is not None or manifest.framework not in _SAVERS:
        return Converted(problem=f"a model of framework {manifest.framework!r} cannot be converted")
    model = predictors.load(str(folder), manifest, folder, None, 1, engines.PREDICTOR)
    try:
        _write(conversion)
        twin = onnx_session.load(str(folder), folder / FILE, manifest.signature, 1, is_twin=True)
    except ModuleNotFoundError as error:
        return Converted(problem=f"{error.name} is not installed here: install the extra 'onnx'")
    except Exception as error:
        lacking = _LACKING.search(str(error))
        why = f"ONNX has no {lacking[2]}, of {lacking[1]!r}" if lacking else describe(error)
        return Converted(problem=f"it cannot be converted: {why}")
    rows = 0
    difference = 0.0
    has_predicted = False
    batches = [] if conversion.rows is None else [conversion.rows]
    for batch in (*batches, *odd_rows(manifest.signature, conversion.rows)):
        is_odd = batch is not conversion.rows
        expected = _answer(model, batch)
        if expected is None and not is_odd:
            return Converted(problem="it refuses rows of the training data, on which both are compared")
        has_predicted |= expected is not None
        apart = compare(expected, _answer(twin, batch), is_nan=is_odd and _has_nan(batch))
        if apart is None:
            shown = f"a made-up row, {_show(batch)}" if is_odd else "rows of the training data"
            return Converted(problem=f"its ONNX form predicts something else for {shown}")
        if not is_odd:
            rows = len(next(iter(batch.values())))
            difference = apart
    if not has_predicted:
        return Converted(problem="it refuses each made-up row, and no rows of the training data are known")
    return Converted(
        Twin(engine=engines.ONNX, entry=FILE, rows=rows, tolerance=TOLERANCE, difference=difference)
    )


def compare(expected: Arrays | None, found: Arrays | None, is_nan: bool = False) -> float | None:
    """How far apart two predictions for the same rows are, as a share of the largest of an output.

    Args:
        expected: the model's; None where it refuses the rows.
        found: the twin's.
        is_nan: the rows hold NaN, so the twin may predict NaN whatever the model does: the ReLU that
            TensorFlow joins to a dense layer makes 0 of NaN, and the one that stands alone does not.

    Returns:
        None: further than they may be, or one of them refuses the rows and the other one does not.
    """
    if expected is None or found is None:
        return 0.0 if expected is found else None
    apart = 0.0
    for name, wanted in expected.items():
        wanted, given = np.asarray(wanted), np.asarray(found[name])
        if given.shape != wanted.shape:
            return None
        if "float" not in str(wanted.dtype):
            if [*map(_as_text, wanted.ravel())] != [*map(_as_text, given.ravel())]:
                return None
            continue
        wanted, given = wanted.astype("float64"), given.astype("float64")
        if is_nan:
            wanted = np.where(np.isnan(given), np.nan, wanted)
        finite = np.isfinite(wanted)
        if not np.array_equal(finite, np.isfinite(given)):
            return None
        if not np.array_equal(wanted[~finite], given[~finite], equal_nan=True):
            return None
        largest = max(float(np.abs(wanted[finite]).max(initial=0.0)), _TINY)
        apart = max(apart, float(np.abs(wanted[finite] - given[finite]).max(initial=0.0)) / largest)
    return apart if apart <= TOLERANCE else None


def odd_rows(signature: Signature, rows: Arrays | None) -> Iterator[Arrays]:
    """Single rows which a model may well refuse: words that nobody knows, numbers out of any range.

    Args:
        signature: the model's.
        rows: of the training data: the first one is what is made odd, one input after the other.
    """
    plain = {
        spec.name: np.zeros((1, *spec.shape), predictors.numpy_dtype(spec.dtype))
        if spec.dtype != "string"
        else np.full((1, *spec.shape), "", object)
        for spec in signature.inputs
    }
    base = plain if rows is None else {name: array[:1] for name, array in rows.items()}
    yield plain
    for spec in signature.inputs:
        for value in _odd_values(spec):
            yield {**base, spec.name: np.full_like(base[spec.name], value)}


def _odd_values(spec: InputSpec) -> tuple[Any, ...]:
    if spec.dtype == "string":
        return _WORDS
    if spec.dtype == "bool":
        return (False, True)
    if "float" in spec.dtype:
        return (-1.0, 0.5, 1e4, -1e4, np.nan)
    limits = np.iinfo(spec.dtype)
    return tuple(value for value in (-1, 1, 127, limits.max, limits.min) if limits.min <= value <= limits.max)


def _answer(predict: Predict, batch: Arrays) -> Arrays | None:
    try:
        return predict(batch)
    except Exception:  # it refuses the rows, in whichever way its engine does
        return None


def _has_nan(batch: Arrays) -> bool:
    return any(array.dtype.kind == "f" and np.isnan(array).any() for array in batch.values())


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _show(batch: Arrays) -> str:
    return ", ".join(f"{name!r}={array.ravel()[:1].tolist()[0]!r}" for name, array in batch.items())


# --- conversion ------------------------------------------------------------------------------------------


def _write(conversion: Conversion) -> None:
    from tf2onnx import convert, handler

    handler.tf_op("Erfc")(_Erfc)  # of Keras's GELU
    handler.tf_op("Bucketize")(_Bucketize)  # of its Discretization
    manifest = conversion.manifest
    saved = Path(tempfile.mkdtemp(prefix="airflow-hydrogen-twin-"))
    try:
        _SAVERS[manifest.framework](conversion.folder / manifest.entry, manifest, saved)
        _refuse_checks(saved)
        arguments = [
            "tf2onnx",
            *("--saved-model", str(saved), "--tag", "serve", "--signature_def", "serving_default"),
            *("--output", str(conversion.folder / FILE), "--opset", str(_OPSET)),
        ]
        with mock.patch.object(sys, "argv", arguments):  # its command is what it promises to keep
            convert.main()
    finally:
        shutil.rmtree(saved, ignore_errors=True)


def _save_keras(path: Path, manifest: Manifest, folder: Path) -> None:
    model = predictors.load_keras(path)
    _save(predictors.tensor_function(model, manifest), model, manifest.signature, folder)


def _save_saved_model(path: Path, manifest: Manifest, folder: Path) -> None:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    names = [spec.name for spec in manifest.signature.outputs]

    def call(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(names, function(**arrays).values(), strict=True))  # as it is called to score

    _save(call, loaded, manifest.signature, folder)


def _save(call: Any, model: Any, signature: Signature, folder: Path) -> None:
    """Save a SavedModel whose inputs and outputs have names of ours."""
    import tensorflow as tf

    specs = predictors.tensor_specs(tf, signature)
    inputs = {spec.name: onnx_session.twin_input(number) for number, spec in enumerate(signature.inputs)}

    def serve(**arrays: Any) -> dict[str, Any]:
        outputs = call({spec.name: arrays[inputs[spec.name]] for spec in signature.inputs})
        return {
            onnx_session.twin_output(number): tf.identity(outputs[spec.name])
            for number, spec in enumerate(signature.outputs)
        }

    concrete = tf.function(serve).get_concrete_function(
        **{name: tf.TensorSpec(specs[own].shape, specs[own].dtype, name=name) for own, name in inputs.items()}
    )
    module = tf.Module()
    module.model = model  # its weights and tables are saved with it
    tf.saved_model.save(module, str(folder), signatures={"serving_default": concrete})


_SAVERS = {"keras": _save_keras, "tensorflow": _save_saved_model}


def _refuse_checks(saved: Path) -> None:
    """Refuse a graph with checks of its input, which the twin would not have."""
    from tensorflow.core.protobuf import saved_model_pb2

    document = saved_model_pb2.SavedModel()
    document.ParseFromString((saved / "saved_model.pb").read_bytes())
    graph = document.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    if found := sorted({f"{node.op} ({node.name})" for node in nodes if node.op in _CHECKS}):
        raise ValueError(f"it checks its input, which ONNX cannot: {', '.join(found[:3])}")


class _Erfc:
    """1 - Erf(x), which ONNX has."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **kwargs: Any) -> None:
        from tf2onnx import utils

        dtype = utils.map_onnx_to_numpy_type(ctx.get_dtype(node.output[0]))
        node.type = "Erf"
        one = ctx.make_const(utils.make_name("one"), np.array(1, dtype)).output[0]
        ctx.insert_new_node_on_output("Sub", node.output[0], inputs=[one, node.output[0]])


class _Bucketize:
    """How many boundaries are not above x: all of them where it is NaN, as TensorFlow has it.

    Boundaries are float32, and so TensorFlow compares whole numbers as float32 too.
    """

    @classmethod
    def version_13(cls, ctx: Any, node: Any, **kwargs: Any) -> None:
        from onnx import TensorProto
        from tf2onnx import utils

        given = node.input[0]
        dtype = utils.map_onnx_to_numpy_type(ctx.get_dtype(given))
        if np.issubdtype(dtype, np.integer):
            given = ctx.make_node("Cast", [given], attr={"to": TensorProto.FLOAT}).output[0]
            dtype = np.float32
        boundaries = ctx.make_const(
            utils.make_name("boundaries"), np.array(node.get_attr_value("boundaries"), dtype)
        ).output[0]
        last = ctx.make_const(utils.make_name("last"), np.array([-1], np.int64)).output[0]
        values = ctx.make_node("Unsqueeze", [given, last]).output[0]
        above = ctx.make_node("Less", [values, boundaries]).output[0]
        passed = ctx.make_node(
            "Cast", [ctx.make_node("Not", [above]).output[0]], attr={"to": TensorProto.INT32}
        )
        name, outputs = node.name, node.output
        shapes, dtypes = node.output_shapes, node.output_dtypes
        ctx.remove_node(node.name)
        ctx.make_node(
            "ReduceSum",
            [passed.output[0], last],
            attr={"keepdims": 0},
            name=name,
            outputs=outputs,
            shapes=shapes,
            dtypes=dtypes,
        )
