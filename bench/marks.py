"""Marks of what a cold scoring has reached, by its driver and its workers, and the predictor that sets them.

It imports no other module of the benchmarks: what a predictor's code names decides what workers import early.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

MARKS = "BENCH_MARKS"


def mark(name: str) -> None:
    """Write when this was reached; nothing for an empty name."""
    if name:
        with Path(os.environ[MARKS]).open("a") as marks:
            marks.write(json.dumps([time.time(), name]) + "\n")


def load(path: str) -> Any:
    """The predictor: loads as the model's own does, with a mark at each stage."""
    mark("Python worker")
    import keras  # noqa: F401

    mark("framework imported")
    from airflow_hydrogen.runtime.models import directory, predictors

    manifest = directory.read_manifest(str(Path(path).parent))
    predict = predictors._LOADERS[manifest.framework](Path(path), manifest)
    mark("model loaded")

    def marked(arrays: predictors.Arrays) -> predictors.Arrays:
        outputs = predict(arrays)
        mark("rows scored")
        return outputs

    return marked
