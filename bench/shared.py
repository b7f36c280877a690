"""Memory of eight Python workers that score with a model of half a gigabyte, against that of one.

All are Spark's, forked from this package's daemon, which is counted in. A page that several processes share
counts in each by its part (PSS), so that the sum is what the host needs. It is taken when every worker has
scored, and has its model in memory still.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.measure import Result, Target, alternate, compare, spark_submit

_MANY = 8
_WIDTH = 2048
_LAYER_MB = _WIDTH * _WIDTH * 4 // 2**20
_MODEL_MB = 500
_FEATURES = [f"f{number:02d}" for number in range(32)]
_ROWS = 4_096


def measure(folder: Path, quick: bool) -> list[Result]:
    """Many workers are ours, one is the baseline."""
    layers = (64 if quick else _MODEL_MB) // _LAYER_MB
    model, rows = _publish(folder, layers), folder / "rows.parquet"
    random = np.random.default_rng(1)
    pq.write_table(
        pa.table({name: random.standard_normal(_ROWS, dtype="float32") for name in _FEATURES}), rows
    )
    application = folder / "score.py"
    application.write_text("from bench.workers import score\n\nscore()\n")

    def memory_mb(workers: int) -> float:
        # Copies for this host lie in the temporary folder, and end with the benchmark.
        return float(spark_submit(application, workers, model, str(rows), str(folder), TMPDIR=str(folder)))

    return [
        compare(
            f"memory of {_MANY} workers with an ONNX model of {layers * _LAYER_MB} MB",
            alternate(partial(memory_mb, _MANY), partial(memory_mb, 1), 1 if quick else 3),
            unit="MB",
            against="one worker",
            target=Target("<=", 1.5),
        )
    ]


def _publish(folder: Path, layers: int) -> str:
    """Publish dense layers as an ONNX file of another framework."""
    from airflow_hydrogen.runtime import publish_model
    from tests.integration.onnx_models import node, save, tensor

    random = np.random.default_rng(0)
    shapes = [(len(_FEATURES), _WIDTH), *[(_WIDTH, _WIDTH)] * layers, (_WIDTH, 1)]
    weights = {
        f"w{number}": random.standard_normal(shape, dtype="float32") * np.float32(shape[0] ** -0.5)
        for number, shape in enumerate(shapes)
    }
    names = ["x", *(f"y{number}" for number in range(len(shapes)))]
    nodes = [node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(len(shapes))]
    inputs, outputs = [tensor("x", shape=("rows", len(_FEATURES)))], [tensor(names[-1], shape=("rows", 1))]
    file = save(folder / "model.onnx", nodes, inputs, outputs, weights)
    return publish_model(file, str(folder / "model"), columns=_FEATURES)
