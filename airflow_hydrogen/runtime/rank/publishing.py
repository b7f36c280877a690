"""Rank 0's part of publishing: save what `main` returned and describe it for the manifest."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import ModelSignatureError
from airflow_hydrogen.contract.publications import given_columns
from airflow_hydrogen.contract.signatures import InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.encoding import FeatureLayout
from airflow_hydrogen.runtime.models import keras_file, matching
from airflow_hydrogen.runtime.models.directory import describe_files
from airflow_hydrogen.runtime.models.exports import ExportedModel
from airflow_hydrogen.runtime.models.manifest import HISTORY, FileEntry, Manifest, Twin
from airflow_hydrogen.runtime.models.matching import Specs
from airflow_hydrogen.runtime.rank import rehearsal, twins
from airflow_hydrogen.runtime.rank.context import TrainContext, dump_history
from airflow_hydrogen.runtime.storage import filesystems

if TYPE_CHECKING:
    import pyarrow as pa

KERAS_FILE = "model.keras"
SAVED_MODEL_FOLDER = "saved_model"


@dataclasses.dataclass(frozen=True)
class Published:
    """What rank 0 saved: the part of the manifest that only it knows."""

    framework: str
    entry: str
    signature: Signature
    files: tuple[FileEntry, ...]
    predictor: str | None = None
    modules: tuple[str, ...] = ()
    twins: tuple[Twin, ...] = ()

    def manifest(self) -> Manifest:
        """As much of the manifest as loading the model needs."""
        return Manifest(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What rank 0 answers in a job.

    Attributes:
        published: what it saved, where `main` returned a model.
        value: what `main` returned, where that was not a model.
        history: what was reported, one mapping a line.
        resumed_from_epoch: the checkpoint that training went on from, or None.
    """

    published: Published | None
    value: Any
    history: list[dict[str, float]]
    resumed_from_epoch: int | None


def save(value: Any, staged_uri: str, context: TrainContext, exports: Sequence[str] = ()) -> Published | None:
    """Save a returned model to the staging folder.

    Args:
        value: what `main` returned.
        staged_uri: the staging folder.
        context: of this rank; its shards tell the columns.
        exports: for which other engines it is saved as well, where it can be converted.

    Returns:
        What was saved, or None where the value is not a model.

    Raises:
        ModelSignatureError: the model's inputs cannot be matched with columns.
        UnloadableModelError: no scorer could load what was saved.
    """
    if not (isinstance(value, ExportedModel) or _is_keras_model(value)):
        return None
    layout = _layout(context)
    filesystems.remove(staged_uri)  # of a start of the gang that died while it saved
    local = uris.local_path(staged_uri)
    folder = local if local is not None else Path(tempfile.mkdtemp(prefix="airflow-hydrogen-publish-"))
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(value, ExportedModel):
        published = _save_exported(value, folder, layout)
        rehearsal.rehearse_export(folder, published.manifest())
    else:
        published = _save_keras(value, folder, layout)
        rehearsal.rehearse_keras(folder, published.manifest(), value)
    if "onnx" in exports:
        published = _with_onnx_twin(published, folder, context)
    (folder / HISTORY).write_text(dump_history(context.history))
    if local is None:
        filesystems.upload(folder, staged_uri)
        shutil.rmtree(folder, ignore_errors=True)
    return published


def keras_tensors(model: Any) -> tuple[Specs, Specs]:
    """Inputs and outputs of a Keras model whose inputs are known: Functional, Sequential, or built by them.

    Raises:
        ModelSignatureError: it has none, or one of a shape that is not known.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ModelSignatureError(
            f"{type(model).__name__} has no symbolic inputs: build it with the functional API, or export it "
            "and return an ExportedModel with its inputs"
        )
    outputs = list(model.outputs)
    structure = None if isinstance(model, sys.modules["keras"].Sequential) else model.output
    if isinstance(structure, Mapping):
        output_names = list(structure)
        outputs = list(structure.values())
    else:
        output_names = list(model.output_names) if len(outputs) > 1 else [matching.SINGLE_OUTPUT]
    return (
        {tensor.name: (str(tensor.dtype), _row_shape(tensor.name, tensor.shape)) for tensor in inputs},
        {
            name: (str(tensor.dtype), _row_shape(name, tensor.shape))
            for name, tensor in zip(output_names, outputs, strict=True)
        },
    )


def saved_model_tensors(folder: Path) -> tuple[Specs, Specs]:
    """Inputs and outputs of a SavedModel's `serving_default`.

    Raises:
        ModelSignatureError: it has none, or one of a shape that is not known.
    """
    import tensorflow as tf

    function = tf.saved_model.load(str(folder)).signatures.get("serving_default")
    if function is None:
        raise ModelSignatureError("the SavedModel has no signature 'serving_default'")
    inputs, outputs = function.structured_input_signature[1], function.structured_outputs
    return (
        {
            name: (tensor.dtype.name, matching.row_shape(name, _dimensions(tensor)))
            for name, tensor in inputs.items()
        },
        {name: (tensor.dtype.name, _row_shape(name, tensor.shape)) for name, tensor in outputs.items()},
    )


def _saved_model_signature(
    folder: Path, layout: FeatureLayout | None, columns: Mapping[str, Sequence[str]] | None
) -> Signature:
    specs, outputs = saved_model_tensors(folder)
    if columns is not None:
        inputs = matching.fill_inputs(specs, given_columns(columns))
    else:
        inputs = _match_inputs(specs, layout)
    return Signature(inputs, _outputs(outputs))


def _outputs(specs: Specs) -> tuple[OutputSpec, ...]:
    single = len(specs) == 1
    return tuple(OutputSpec(matching.SINGLE_OUTPUT if single else name, *specs[name]) for name in specs)


def _match_inputs(specs: Specs, layout: FeatureLayout | None) -> tuple[InputSpec, ...]:
    """Find the columns of each input."""
    names = [*specs]
    if layout is not None and layout.layout == "matrix":
        width = sum(column.values for column in layout.features)
        if len(names) != 1 or specs[names[0]][1] != (width,):
            raise ModelSignatureError(
                f"the model has inputs {matching.show(specs)}, but the dataset gave one matrix of {width} "
                "columns; use to_tf(..., layout='columns') for named inputs"
            )
        return (InputSpec(names[0], layout.features, *specs[names[0]]),)
    if layout is None:
        raise ModelSignatureError(
            f"the columns of inputs {matching.show(specs)} are not known: read the dataset with "
            "get_dataset_shard(...).to_tf(...) or to_torch(...), or return an ExportedModel with its inputs"
        )
    columns = {column.name: column for column in layout.features}
    strangers = [name for name in names if name not in columns]
    if strangers:
        raise ModelSignatureError(
            f"inputs {', '.join(map(repr, strangers))} of the model have no column of that name; the dataset "
            f"has {', '.join(map(repr, columns))}"
        )
    return tuple(InputSpec(name, (columns[name],), *specs[name]) for name in names)


def _save_keras(model: Any, folder: Path, layout: FeatureLayout | None) -> Published:
    inputs, outputs = keras_tensors(model)
    signature = Signature(
        _match_inputs(inputs, layout), tuple(OutputSpec(name, *outputs[name]) for name in outputs)
    )
    model.save(folder / KERAS_FILE)
    modules = keras_file.custom_modules(keras_file.named_objects(folder / KERAS_FILE))
    return Published("keras", KERAS_FILE, signature, describe_files(folder, [KERAS_FILE]), modules=modules)


def _save_exported(model: ExportedModel, folder: Path, layout: FeatureLayout | None) -> Published:
    source = Path(model.path)
    entry = SAVED_MODEL_FOLDER if model.framework == "tensorflow" else source.name
    if source.is_dir():
        shutil.copytree(source, folder / entry)
    else:
        shutil.copy2(source, folder / entry)
    signature = model.signature or _saved_model_signature(folder / entry, layout, model.inputs)
    return Published(
        model.framework, entry, signature, describe_files(folder, [entry]), predictor=model.predictor
    )


def _with_onnx_twin(published: Published, folder: Path, context: TrainContext) -> Published:
    """The model with its twin for ONNX Runtime, or as it is: then the log says why."""
    manifest = published.manifest()
    twin = twins.convert(folder, manifest, partial(_training_rows, context, manifest.signature))
    if twin is None:
        return published
    files = (*published.files, *describe_files(folder, [twin.entry]))
    return dataclasses.replace(published, files=files, twins=(twin,))


def _training_rows(context: TrainContext, signature: Signature) -> pa.RecordBatch | None:
    """Rows of the training data with the columns that the model takes; None where nobody knows them."""
    shards = [*context.shards.values()]
    shard = next((shard for shard in shards if shard.name == "train"), shards[0] if shards else None)
    columns = [column.name for column in signature.columns]
    if shard is None or not {*columns} <= {*shard.schema.names}:
        return None
    return next(DatasetShard(shard.files, name=shard.name).to_batches(twins.rows_for(signature), columns))


def _layout(context: TrainContext) -> FeatureLayout | None:
    """How the training data was read: "train" as it was read last, else the first dataset that was read."""
    shards = [shard for shard in context.shards.values() if shard.layout is not None]
    training = [shard for shard in shards if shard.name == "train"]
    return next((shard.layout for shard in (*reversed(training), *shards)), None)


def _dimensions(tensor: Any) -> list[int | None] | None:
    """Those of a tensor of TensorFlow; None where not even their number is known."""
    dimensions: list[int | None] | None = None if tensor.shape.rank is None else tensor.shape.as_list()
    return dimensions


def _row_shape(name: str, shape: Any) -> tuple[int, ...]:
    dimensions = tuple(shape)[1:]
    if any(size is None for size in dimensions):
        raise ModelSignatureError(
            f"tensor {name!r} has shape {tuple(shape)}: every dimension but the first must be known"
        )
    return tuple(int(size) for size in dimensions)


def _is_keras_model(value: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.Model)
