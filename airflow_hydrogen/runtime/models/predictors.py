"""Model directory -> predict function: one loader per framework."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from airflow_hydrogen.contract.errors import ModelModuleError, ModelSignatureError
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.runtime import memory
from airflow_hydrogen.runtime.entrypoints import resolve_import_path
from airflow_hydrogen.runtime.models import engines, onnx_copies, onnx_session, torch_program
from airflow_hydrogen.runtime.models.directory import hold_model, pinned
from airflow_hydrogen.runtime.models.manifest import Manifest

Arrays = Mapping[str, np.ndarray]
Predict = Callable[[Arrays], Arrays]
"""Input name -> array of shape (rows, ...) to output name -> array of shape (rows, ...)."""


@contextmanager
def load_predictor(
    uri: str, manifest: Manifest, override: str | None, threads: int, engine: str
) -> Iterator[Predict]:
    """Load one version of a model, whatever lies at the URI by now.

    Args:
        uri: the model's folder; its files are held against the manifest's hashes first.
        manifest: of the version that is wanted.
        override: `package.module:function` in place of the manifest's own loader.
        threads: math threads of this process.
        engine: what `engines.choose` has chosen.

    Returns:
        The predict function. The files that it was loaded from stay for as long as the block lasts.

    Raises:
        ModelReplacedError: another model was published, before or while this one was loaded.
        ModelError: the model cannot be used.
        EntrypointError: the predictor does not import.
    """
    with hold_model(uri, manifest) as held, ExitStack() as stack:
        with pinned(uri, manifest):
            packed = None
            if _is_in_onnx(manifest, override, engine):
                entry, is_twin = _onnx_file(manifest)
                packed = stack.enter_context(onnx_copies.shared(held, entry, is_twin=is_twin))
            predict = load(uri, manifest, held.folder, override, threads, engine, packed)
            if packed is not None:
                memory.give_back()
            held.require_untouched()
        yield predict


def load(
    uri: str,
    manifest: Manifest,
    folder: Path,
    override: str | None,
    threads: int,
    engine: str,
    packed: Path | None = None,
) -> Predict:
    """Load a model from a folder whose files are what its manifest says; of `packed` see `onnx_copies`."""
    predictor = override or manifest.predictor
    if predictor is not None:
        predict: Predict = resolve_import_path(predictor)(str(folder / manifest.entry))
        return predict
    if _is_in_onnx(manifest, override, engine):
        entry, is_twin = _onnx_file(manifest)
        file, is_packed = packed or folder / entry, packed is not None
        return onnx_session.load(uri, file, manifest.signature, threads, is_twin=is_twin, is_packed=is_packed)
    if manifest.framework == engines.TORCH:
        return torch_program.load(uri, folder / manifest.entry, manifest, threads)
    if manifest.framework not in _LOADERS:
        raise ModelSignatureError(
            f"model {uri!r} has framework {manifest.framework!r} and no predictor; known frameworks are "
            f"{', '.join((*_LOADERS, engines.ONNX, engines.TORCH))}: pass predictor='package.module:function'"
        )
    for module in manifest.modules:
        with _needed(uri, module):
            importlib.import_module(module)
    _limit_threads(threads)
    return _LOADERS[manifest.framework](folder / manifest.entry, manifest)


def _is_in_onnx(manifest: Manifest, override: str | None, engine: str) -> bool:
    return not (override or manifest.predictor) and engines.ONNX in (engine, manifest.framework)


def _onnx_file(manifest: Manifest) -> tuple[str, bool]:
    """The ONNX file of a model, and whether it is that of a twin."""
    twin = manifest.twin(engines.ONNX)
    return (manifest.entry, False) if twin is None else (twin.entry, True)


def require_modules(uri: str, manifest: Manifest) -> None:
    """Look for the modules that register the model's custom layers, without importing them.

    Raises:
        ModelModuleError: naming the one that is not there.
    """
    for module in manifest.modules:
        with _needed(uri, module):
            if importlib.util.find_spec(module) is None:
                raise ModuleNotFoundError(f"No module named {module!r}", name=module)


@contextmanager
def _needed(uri: str, module: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ModelModuleError(uri, module, f"{type(error).__name__}: {error}") from error


def _load_keras(path: Path, manifest: Manifest) -> Predict:
    return predict_function(load_keras(path), manifest)


def load_keras(path: Path) -> Any:
    """The Keras model of a file; modules that register custom layers of it have to be imported."""
    import keras

    return keras.models.load_model(path, compile=False, safe_mode=True)


def predict_function(model: Any, manifest: Manifest) -> Predict:
    """A Keras model as a function from arrays to arrays, traced once for batches of any length."""
    import tensorflow as tf

    # One trace for every number of rows: the last, short batch must not compile the model again.
    signature = [tensor_specs(tf, manifest.signature)]
    call = tf.function(tensor_function(model, manifest), input_signature=signature, jit_compile=False)
    return lambda arrays: {name: value.numpy() for name, value in call(dict(arrays)).items()}


def tensor_function(model: Any, manifest: Manifest) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A Keras model as a function from tensors by their names to tensors by their names."""
    import keras

    names = [spec.name for spec in manifest.signature.outputs]
    # A Sequential model, and a functional one of a lone tensor, take the tensor itself.
    single = isinstance(model, keras.Sequential) or not isinstance(model.input, (Mapping, list, tuple))

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = model(next(iter(inputs.values())) if single else inputs, training=False)
        if isinstance(outputs, Mapping):
            return dict(outputs)
        return dict(zip(names, outputs if isinstance(outputs, (list, tuple)) else [outputs], strict=True))

    return call


def _load_saved_model(path: Path, manifest: Manifest) -> Predict:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    names = [spec.name for spec in manifest.signature.outputs]
    given = [*function.structured_outputs]
    if len(given) > 1 and (missing := [name for name in names if name not in given]):
        raise ModelSignatureError(f"the SavedModel gives the outputs {given}, and not {missing}")

    def predict(arrays: Arrays) -> Arrays:
        outputs = function(**{name: tf.convert_to_tensor(value) for name, value in arrays.items()})
        if len(outputs) == 1:  # it was renamed when it was published
            outputs = dict(zip(names, outputs.values(), strict=True))
        return {name: outputs[name].numpy() for name in names}

    predict.keep_alive = loaded  # type: ignore[attr-defined]  # TensorFlow frees what nobody holds
    return predict


_LOADERS: dict[str, Callable[[Path, Manifest], Predict]] = {
    "keras": _load_keras,
    "tensorflow": _load_saved_model,
}


def numpy_dtype(name: str) -> Any:
    """NumPy's dtype of an input; TensorFlow brings those that NumPy itself has not."""
    if name != "bfloat16":
        return np.dtype(name)
    import tensorflow as tf

    return tf.bfloat16.as_numpy_dtype


def tensor_specs(tf: Any, signature: Signature) -> dict[str, Any]:
    """Input name -> what TensorFlow is told of it: batches of any length."""
    return {
        spec.name: tf.TensorSpec(
            (None, *spec.shape), tf.string if spec.dtype == "string" else tf.dtypes.as_dtype(spec.dtype)
        )
        for spec in signature.inputs
    }


def _limit_threads(threads: int) -> None:
    """Give TensorFlow's pools the task's cores and no more; too late once it has run something."""
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        return  # a second model in this worker: the pools have the first one's size, which is the same
