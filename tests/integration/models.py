"""Models that tests publish as the training application does."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime.data.encoding import FeatureLayout
from airflow_hydrogen.runtime.models import directory
from airflow_hydrogen.runtime.models.exports import ExportedModel
from airflow_hydrogen.runtime.rank import publishing
from airflow_hydrogen.runtime.rank.context import TrainContext


class _Shard:
    """As much of a dataset shard as publishing looks at."""

    name = "train"
    schema = pa.schema([])

    def __init__(self, layout):
        self.layout = layout


def publish(value, uri, layout=None, exports=()):
    """Publish a model as the training application does."""
    context = TrainContext(rank=0, size=1)
    if layout is not None:
        context.shards["train", 0, True] = _Shard(layout)
    staged = directory.staging_uri(uri)
    made = publishing.save(value, staged, context, exports)
    directory.publish(staged, uri, made.manifest(), keep_checkpoints=False)
    return uri


def matrix_layout(*names):
    return FeatureLayout("matrix", tuple(ColumnSpec(name, "float32") for name in names))


def dense(weights):
    """A linear model of one matrix input with known weights."""
    import keras

    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(np.shape(weights)[1])])
    model.layers[0].set_weights([np.array(weights, "float32"), np.zeros(np.shape(weights)[1], "float32")])
    return model


def load_plain(path):
    """A model without a framework, which takes no time to start: prediction = a + 10 b."""
    return lambda arrays: {"prediction": arrays["x"][:, 0] + 10 * arrays["x"][:, 1]}


def publish_plain(folder, text="{}"):
    """Publish a model, a file with a text, whose predictor is `load_plain`."""
    columns = (ColumnSpec("a", "float32"), ColumnSpec("b", "float32"))
    signature = Signature(
        (InputSpec("x", columns, "float32", (2,)),), (OutputSpec("prediction", "float32", ()),)
    )
    (folder / "model.json").write_text(text)
    value = ExportedModel(
        path=str(folder / "model.json"),
        framework="none",
        predictor="tests.integration.models:load_plain",
        signature=signature,
    )
    return publish(value, str(folder / "model"))
