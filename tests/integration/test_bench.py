"""The benchmarks run when somebody asks for them: here is seen that they find what they import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bench
from bench.measure import python
from tests.integration import onnx_models

pytestmark = pytest.mark.integration

REQUIREMENTS = Path(bench.__file__).parent.parent / "requirements"
MODULES = sorted(f"bench.{file.stem}" for file in Path(bench.__file__).parent.glob("[!_]*.py"))


def test_every_benchmark_is_imported():
    """In a process of its own, because some set what later imports read."""
    assert "bench.scoring" in MODULES
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(MODULES)}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_peers_score_in_the_engines_that_we_score_in():
    """Their environment is pinned by itself, because they cannot have all of our versions."""
    engines = re.compile(r"(keras|numpy|onnxruntime|tensorflow(-cpu)?)==")
    ours, theirs = (
        {line for line in (REQUIREMENTS / name).read_text().splitlines() if engines.match(line)}
        for name in ("dev.txt", "peers.txt")
    )
    assert ours == theirs
    assert any(line.startswith("onnxruntime==") for line in ours)


def test_plain_processes_score_every_row_once(tmp_path: Path):
    """The other systems are told to do the same by the same program; they are not installed here."""
    numbers = np.arange(6, dtype="float32")
    for folder in ("rows", "scores", "gate"):
        (tmp_path / folder).mkdir()
    for part, keys in enumerate(([0, 1], [2, 3], [4, 5])):
        table = pa.table({"id": keys, "a": numbers[keys], "b": 2 * numbers[keys]})
        pq.write_table(table, tmp_path / "rows" / f"{part}.parquet")
    task = {
        "system": "plain",
        "engine": "onnx",
        "model": onnx_models.linear(tmp_path / "model.onnx"),
        "source": str(tmp_path / "rows"),
        "target": str(tmp_path / "scores"),
        "few": str(tmp_path / "rows"),
        "gate": str(tmp_path / "gate"),
        "settings": {"batch_rows": 1},
    }
    found = json.loads(python("-m", "bench.peer", json.dumps(task)))
    assert 0 < found["seconds"] < found["seconds_with_start"]
    assert found["versions"]["onnxruntime"] == metadata.version("onnxruntime")
    written = pq.read_table(tmp_path / "scores").sort_by("id")
    assert written.to_pydict() == {"id": [*range(6)], "prediction": (21 * numbers).tolist()}
