"""What a user keeps beside a DAG: a training without a framework, whose epochs end when a test says so."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime.storage.checkpoints import CheckpointStore


def prepare(spark: Any, frame: Any, look: str, token: str) -> Any:
    """On the driver: say where it is and what it sees."""
    conf = spark.sparkContext.getConf()
    Path(look).write_text(
        json.dumps(
            {
                "cwd": os.getcwd(),
                "mode": oct(Path("..").stat().st_mode & 0o777),
                "job": oct(Path("../job.json").stat().st_mode & 0o777),
                "environment": dict(os.environ),
                "conf": dict(conf.getAll()),
                "python": sys.executable,
                "file": Path("note.txt").read_text(),
            }
        )
    )
    return frame


def train(folder: str, epochs: int = 1, waits: bool = False) -> hydrogen.ExportedModel:
    """Train nothing: one checkpoint an epoch, each epoch once the test says so."""
    context = hydrogen.get_context()
    store = CheckpointStore(context.checkpoints_uri, context.fingerprint)
    latest = store.latest(context.fingerprint)
    first = latest.step if latest else 0
    context.resumed_from_epoch = first or None
    for epoch in range(first, epochs):
        Path(folder, f"in-epoch-{epoch}-rank-{context.rank}").touch()
        while waits and not Path(folder, f"after-epoch-{epoch}").exists():
            time.sleep(0.05)
        hydrogen.report({"epoch": epoch})
        if context.rank == 0:
            store.save(epoch + 1, lambda target: (target / "weights").write_text("w"), {})
    model = Path(os.environ.get("TMPDIR", "/tmp"), f"doubler-{os.getpid()}")
    model.write_text("2")
    x = ColumnSpec("x", "float32")
    return hydrogen.ExportedModel(
        path=str(model),
        framework="doubler",
        predictor="clusterproject:load",
        signature=Signature((InputSpec("x", (x,), "float32", (1,)),), (OutputSpec("y", "float32", (1,)),)),
    )


def load(path: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    factor = float(Path(path).read_text())
    return lambda arrays: {"y": arrays["x"] * factor}
