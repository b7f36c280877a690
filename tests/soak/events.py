"""What the soak of streams scores with: a model that takes its time, so that kills come in mid-batch."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime.models import directory
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.scoring.streams import Batches


def publish(uri: str, folder: Path) -> None:
    """A model that `load` makes: prediction = 2 a."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "nothing").write_text("")
    signature = Signature(
        (InputSpec("a", (ColumnSpec("a", "float64"),), "float64", ()),),
        (OutputSpec("prediction", "float64", ()),),
    )
    manifest = Manifest(
        framework="soak",
        entry="model",
        signature=signature,
        files=directory.describe_files(folder, ["model"]),
        predictor="tests.soak.events:load",
    )
    directory.publish(str(folder), uri, manifest, keep_checkpoints=False)


def deadly(spark: Any, rows: Any) -> Any:
    """A `prepare` that has the driver killed once a batch is at the sink, before Spark notes that."""

    def die(*_given: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Batches._note = die  # type: ignore[method-assign]
    return rows


def load(*_given):
    """The predict function."""

    def predict(arrays):
        time.sleep(0.2)
        return {"prediction": 2 * arrays["a"]}

    return predict
