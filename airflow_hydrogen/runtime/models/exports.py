"""What `main` returns to publish a model that is not a Keras model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import is_import_path

if TYPE_CHECKING:
    from airflow_hydrogen.contract.signatures import Signature


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A model that `main` has saved itself.

    Attributes:
        path: the local file or folder that was saved; its content is copied into the model directory.
        framework: "tensorflow" for a SavedModel (`keras.Model.export`, `tf.saved_model.save`), else any name.
        predictor: `package.module:function` that loads it: called with the model's local path, it returns a
            function from a dict of input arrays to a dict of output arrays. Needed for other frameworks.
        inputs: input name -> columns that fill it. For a SavedModel whose inputs the dataset's layout does
            not tell.
        signature: inputs and outputs; needed for other frameworks.
    """

    path: str
    framework: str = "tensorflow"
    predictor: str | None = None
    inputs: Mapping[str, Sequence[str]] | None = None
    signature: Signature | None = None

    def __post_init__(self) -> None:
        if self.predictor is not None and not is_import_path(self.predictor):
            raise InvalidJobError(
                f"predictor must have the form 'package.module:function', found {self.predictor!r}"
            )
        if self.framework != "tensorflow" and (self.predictor is None or self.signature is None):
            raise InvalidJobError(
                f"an ExportedModel of framework {self.framework!r} needs a predictor and a signature; only "
                "'tensorflow' (SavedModel) brings both itself"
            )
