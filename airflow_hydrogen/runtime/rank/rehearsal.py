"""Make sure that a scorer can load what was trained, before it is published.

A model of Keras's own layers is loaded in rank 0's own process. Where code of the user's takes part, this
process knows more than a scorer will: classes of the DAG file, of `__main__`, of modules that nobody imports
there. Such a model is loaded in a fresh process, which imports nothing but what the manifest names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from airflow_hydrogen.contract.errors import EntrypointError, UnloadableModelError
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.runtime import afresh
from airflow_hydrogen.runtime.models import keras_file, predictors
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.predictors import Arrays
from airflow_hydrogen.runtime.rank.trial import Answer, Trial, attempt, describe

# Another device and another order of additions give other digits; other weights give other numbers.
_TOLERANCE = 0.02


def rehearse_keras(folder: Path, manifest: Manifest, model: Any) -> None:
    """Load a saved Keras model as a scorer does, and let it repeat a prediction of the one in memory.

    Args:
        folder: the saved model's.
        manifest: as far as it is known: framework, entry, signature and modules.
        model: the model in memory.

    Raises:
        UnloadableModelError: it cannot be loaded, or predicts something else.
    """
    objects = keras_file.named_objects(folder / manifest.entry)
    homeless = [named.name for named in objects if named.module == "__main__"]
    if homeless:
        raise UnloadableModelError(f"{', '.join(homeless)} was defined in the script itself (__main__)")
    if any(named.name == keras_file.LAMBDA for named in objects):
        raise UnloadableModelError("it holds a Python lambda, which Keras does not load in safe mode")
    batch = probe(manifest.signature)
    expected = _predictions(model, manifest, batch)
    # Without a prediction to repeat there is none to ask for: a model may well refuse a made-up row.
    trial = Trial(folder, manifest, None if expected is None else batch)
    answer = _attempt_here(trial) if keras_file.is_plain(objects) else _attempt_afresh(trial)
    _require_loaded(answer)
    if expected is not None and answer.outputs is not None:
        _require_same(expected, answer.outputs)


def rehearse_export(folder: Path, manifest: Manifest) -> None:
    """Load a model that `main` has saved itself as a scorer does.

    A SavedModel brings all that it needs. What a predictor of the user's needs, a GPU or a package, may be
    where it scores and not here, and a scoring may name another one: its failure is a line in the log.

    Raises:
        UnloadableModelError: a SavedModel that cannot be loaded, or a predictor that does not exist.
    """
    trial = Trial(folder, manifest, None)
    if manifest.predictor is None:
        _require_loaded(_attempt_here(trial))
        return
    answer = _attempt_afresh(trial)
    if answer.error_type == EntrypointError.__name__ and answer.missing is None:
        raise UnloadableModelError(str(answer.problem))
    if answer.problem is not None:
        print(
            f"predictor {manifest.predictor!r} does not load the model on this host, which need not score: "
            f"{answer.problem}",
            flush=True,
        )


def probe(signature: Signature) -> Arrays:
    """One made-up row: numbers between 0 and 1, whole numbers 0, empty strings."""
    batch: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        shape = (1, *spec.shape)
        if spec.dtype == "string":
            batch[spec.name] = np.full(shape, "", dtype=object)
        elif "float" in spec.dtype:
            numbers = np.linspace(0.1, 0.9, int(np.prod(shape))).reshape(shape)
            batch[spec.name] = numbers.astype(predictors.numpy_dtype(spec.dtype))
        else:
            batch[spec.name] = np.zeros(shape, dtype=spec.dtype)
    return batch


def _predictions(model: Any, manifest: Manifest, batch: Arrays) -> Arrays | None:
    """What the model in memory predicts, or None where that says nothing.

    A vocabulary without room for unknown words refuses made-up rows, a sampling layer never gives the same
    twice, and scorers run TensorFlow, whatever runs here.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        return None
    predict = predictors.predict_function(model, manifest)
    try:
        first, second = predict(batch), predict(batch)
    except Exception as error:
        print(
            f"the model predicts nothing for a made-up row, so that is not compared: {describe(error)}",
            flush=True,
        )
        return None
    same = all(np.array_equal(first[name], second[name], equal_nan=_is_float(first[name])) for name in first)
    return first if same else None


def _require_loaded(answer: Answer) -> None:
    if answer.missing == "tensorflow":
        print(
            "whether a scorer can load the model was not tried: TensorFlow is not installed here", flush=True
        )
    elif answer.problem is not None:
        raise UnloadableModelError(answer.problem)


def _require_same(expected: Arrays, found: Arrays) -> None:
    for name, wanted in expected.items():
        if not _is_float(wanted):  # a class that is the best of two close ones may be the other elsewhere
            continue
        wanted, given = wanted.astype("float64"), np.asarray(found[name]).astype("float64")
        finite = np.abs(wanted[np.isfinite(wanted)])
        slack = _TOLERANCE * (float(finite.max()) if finite.size else 0.0) + 1e-6
        if given.shape != wanted.shape or not np.allclose(given, wanted, _TOLERANCE, slack, equal_nan=True):
            raise UnloadableModelError(
                f"loaded again it predicts another {name!r} for the same row, {_show(given)} in place of "
                f"{_show(wanted)}, so that something it computes with is not in the saved file; a layer has "
                "to make its weights with add_weight and name other numbers in its get_config"
            )


def _show(values: np.ndarray) -> str:
    return np.array2string(values.ravel()[:4], precision=4, separator=", ")


def _is_float(values: np.ndarray) -> bool:
    return "float" in str(values.dtype)


def _attempt_here(trial: Trial) -> Answer:
    """In this process, on its CPU: the GPU's memory is the trained model's."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        return attempt(trial)


def _attempt_afresh(trial: Trial) -> Answer:
    """In a fresh process, which imports nothing but what the manifest names."""
    try:
        return afresh.call(attempt, trial)
    except afresh.FreshProcessError as error:
        return Answer(problem=str(error))
