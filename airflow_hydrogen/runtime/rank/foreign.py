"""A model that was trained elsewhere: what it takes and gives, and whether it scores rows."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from airflow_hydrogen.contract.errors import HydrogenError, ModelSignatureError, UnpublishableModelError
from airflow_hydrogen.contract.publications import KERAS, ONNX, SAVED_MODEL, TORCH, given_columns
from airflow_hydrogen.contract.signatures import OutputSpec, Signature
from airflow_hydrogen.runtime import afresh
from airflow_hydrogen.runtime.models import (
    engines,
    keras_file,
    matching,
    onnx_file,
    predictors,
    torch_program,
)
from airflow_hydrogen.runtime.models.inputs import model_inputs
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.matching import Specs
from airflow_hydrogen.runtime.models.predictors import Arrays, Predict
from airflow_hydrogen.runtime.rank import publishing, twins
from airflow_hydrogen.runtime.rank.rehearsal import probe
from airflow_hydrogen.runtime.rank.trial import describe

_NEEDS = {
    ONNX: ("onnx", "onnxruntime"),
    SAVED_MODEL: ("tensorflow",),
    KERAS: ("tensorflow", "keras"),
    TORCH: ("torch",),
}
_EXTRAS = {ONNX: "onnx", SAVED_MODEL: "tensorflow", KERAS: "tensorflow", TORCH: "torch"}


@dataclass(frozen=True)
class Foreign:
    """A model as it was brought.

    Attributes:
        name: what messages call it.
        framework: "onnx", "tensorflow", "keras" or "torch".
        folder: where it lies.
        entry: its file or folder there.
        columns: as the user gave them.
        outputs: those that become columns; None: all.
        example: column -> value of a real row; None: there is none.
    """

    name: str
    framework: str
    folder: Path
    entry: str
    columns: Any
    outputs: Sequence[str] | None = None
    example: Mapping[str, Any] | None = None


def require_installed(name: str, framework: str) -> None:
    """Find out that the model could not be looked at here.

    Raises:
        UnpublishableModelError: naming the extra that is missing.
    """
    missing = [module for module in _NEEDS[framework] if importlib.util.find_spec(module) is None]
    if missing:
        raise UnpublishableModelError(
            name,
            f"it is tried before it is published, and {' and '.join(missing)} is not installed in this "
            f"environment: install the extra '{_EXTRAS[framework]}' where it is published",
        )


def examine(model: Foreign) -> Signature:
    """The signature of a model, which has scored rows as a scorer will.

    Raises:
        UnpublishableModelError: it cannot be scored.
    """
    try:
        found = afresh.call(attempt, model)
    except afresh.FreshProcessError as error:
        # It may have been killed for the memory of others.
        raise UnpublishableModelError(model.name, str(error), retryable=True) from None
    if isinstance(found, HydrogenError):
        raise found
    return found


def attempt(model: Foreign) -> Signature | UnpublishableModelError:
    """Look at a model in this process."""
    try:
        return _signature(model)
    except Exception as error:  # of whatever framework and file it is
        return UnpublishableModelError(model.name, describe(error))


def _signature(model: Foreign) -> Signature:
    inputs, outputs = _TENSORS[model.framework](model.folder / model.entry)
    matching.require_dtypes(inputs)
    columns = given_columns(model.columns)
    signature = Signature(
        matching.fill_inputs(inputs, columns), matching.choose_outputs(outputs, model.outputs)
    )
    manifest = Manifest(framework=model.framework, entry=model.entry, signature=signature, files=())
    predict = predictors.load(model.name, manifest, model.folder, None, 1, engines.PREDICTOR)
    answers = _rehearse(predict, signature, model.example)
    return dataclasses.replace(
        signature, outputs=tuple(_as_it_answers(spec, answers) for spec in signature.outputs)
    )


def _rehearse(predict: Predict, signature: Signature, example: Mapping[str, Any] | None) -> list[Arrays]:
    """Predictions for one row and for three, of which the first and the last are that one.

    Raises:
        ModelSignatureError: the model refuses rows, or what it predicts for one depends on the others.
    """
    one, other = _two_rows(predict, signature, example)
    alone, again, others = predict(one), predict(one), predict(other)
    together = predict({name: np.concatenate([one[name], other[name], one[name]]) for name in one})
    for name, values in together.items():
        shapes = [np.shape(alone[name]), np.shape(values)]
        if [shape[:1] for shape in shapes] != [(1,), (3,)]:
            raise ModelSignatureError(
                f"its output {name!r} has shape {[*shapes[0]]} for one row and {[*shapes[1]]} for three: "
                "expected a first dimension for the rows of a batch"
            )
    # What gives other numbers each time says nothing.
    is_steady = twins.compare(alone, again) is not None
    for place, expected in ((0, alone), (1, others), (2, alone)) if is_steady else ():
        if twins.compare(expected, {name: values[place, None] for name, values in together.items()}) is None:
            raise ModelSignatureError(
                "it predicts something else for a row in a batch of three than for that row alone, so that "
                "scores would depend on how rows are cut into batches: was it exported in training mode? "
                "(PyTorch: model.eval() first)"
            )
    return [alone, together]


def _two_rows(
    predict: Predict, signature: Signature, example: Mapping[str, Any] | None
) -> tuple[Arrays, Arrays]:
    """Two rows that the model answers: the example, if there is one, and another one, if it answers that.

    Raises:
        ModelSignatureError: it refuses the example, or made-up rows where there is none.
    """
    made_up = probe(signature)
    # Of whole numbers and of words alone, what is made up are zeros and empty texts.
    ones, zeros = (
        {name: np.full_like(row, text if row.dtype == object else number) for name, row in made_up.items()}
        for number, text in ((1, "1"), (0, ""))
    )
    answered: list[Arrays] = []
    problem = ""
    first = made_up if example is None else _row(example, signature)
    for row in (first, ones, zeros, made_up):
        try:
            predict(row)
        except Exception as error:  # in whichever way its engine refuses rows
            problem = problem or describe(error)
            if example is not None and not answered:
                raise ModelSignatureError(f"it refuses the row of example: {problem}") from None
        else:
            answered.append(row)
    if not answered:
        raise ModelSignatureError(
            f"it refuses made-up rows; give a real one, as in example={{'column': value}}: {problem}"
        )
    others = [
        row for row in answered if any(not np.array_equal(row[name], answered[0][name]) for name in row)
    ]
    return answered[0], others[-1] if others else answered[0]


def _row(example: Mapping[str, Any], signature: Signature) -> Arrays:
    names = [column.name for column in signature.columns]
    if missing := [name for name in names if name not in example]:
        raise ModelSignatureError(f"example has no value for {', '.join(map(repr, missing))}")
    batch = pa.RecordBatch.from_pydict({name: [example[name]] for name in names})
    return model_inputs(batch, signature.inputs)


def _as_it_answers(spec: OutputSpec, answers: Sequence[Arrays]) -> OutputSpec:
    """An output with the shape that it has had for every batch.

    Raises:
        ModelSignatureError: its shape depends on the rows, or it is of another dtype than it says.
    """
    shapes = {np.shape(answer[spec.name])[1:] for answer in answers}
    if len(shapes) > 1:
        shown = " and ".join(str(list(shape)) for shape in sorted(shapes))
        raise ModelSignatureError(f"its output {spec.name!r} has rows of shapes {shown}")
    values = np.asarray(answers[0][spec.name])
    dtype = "string" if values.dtype.kind in "OSU" else str(values.dtype)
    if dtype != spec.dtype:
        raise ModelSignatureError(f"its output {spec.name!r} is of {dtype}, and it says {spec.dtype}")
    return dataclasses.replace(spec, shape=shapes.pop())


# --- what each framework says of a model -----------------------------------------------------------------


def _of_onnx(file: Path) -> tuple[Specs, Specs]:
    model = onnx_file.read(file)
    inputs = {
        item.name: (
            item.dtype,
            () if item.dtype not in matching.INPUT_DTYPES else matching.row_shape(item.name, item.dimensions),
        )
        for item in onnx_file.inputs_of(model)
    }
    # Their shapes show when the model answers; many files do not say them.
    return inputs, {item.name: (item.dtype, ()) for item in onnx_file.outputs_of(model)}


def _of_keras(file: Path) -> tuple[Specs, Specs]:
    objects = keras_file.named_objects(file)
    if not keras_file.is_plain(objects):
        named = sorted({named.name for named in objects if not keras_file.is_plain([named])})
        raise ModelSignatureError(
            f"it holds {', '.join(named)}, which Keras does not load without code of yours: save it with "
            "model.export(folder) and publish that SavedModel"
        )
    return publishing.keras_tensors(predictors.load_keras(file))


_TENSORS: dict[str, Callable[[Path], tuple[Specs, Specs]]] = {
    ONNX: _of_onnx,
    SAVED_MODEL: publishing.saved_model_tensors,
    KERAS: _of_keras,
    TORCH: torch_program.tensors,
}
