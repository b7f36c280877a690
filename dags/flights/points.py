"""Points of a line, for the examples that need no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write(folder: str) -> list[float]:
    """Write 2,000 points of y = 3x + 1 as Parquet, columns `x` and `y`; returns slope and offset."""
    x = np.random.default_rng(7).uniform(-1, 1, 2_000).astype("float32")
    Path(folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": x, "y": 3 * x + 1}), f"{folder}/part-0.parquet", row_group_size=250)
    return [3.0, 1.0]
