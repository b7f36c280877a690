"""The Spark side: what a training function imports, and `HorovodRunner`.

Never imports airflow: this package is zipped and shipped to clusters that have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_hydrogen.runtime.models.exports import ExportedModel
from airflow_hydrogen.runtime.rank.context import TrainContext, get_context, get_dataset_shard, report
from airflow_hydrogen.runtime.runner import HorovodRunner

if TYPE_CHECKING:
    from airflow_hydrogen.runtime import keras
    from airflow_hydrogen.runtime.publication import publish_model

__all__ = [
    "ExportedModel",
    "HorovodRunner",
    "TrainContext",
    "get_context",
    "get_dataset_shard",
    "keras",
    "publish_model",
    "report",
]


def __getattr__(name: str) -> Any:
    """Import on first use: a rank without Keras must not pay the five seconds of TensorFlow."""
    if name == "keras":
        import importlib

        return importlib.import_module("airflow_hydrogen.runtime.keras")
    if name == "publish_model":
        from airflow_hydrogen.runtime.publication import publish_model

        return publish_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
