"""The benchmarks run when somebody asks for them: here is seen that they find what they import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bench

pytestmark = pytest.mark.integration

MODULES = sorted(f"bench.{file.stem}" for file in Path(bench.__file__).parent.glob("[!_]*.py"))


def test_every_benchmark_is_imported():
    """In a process of its own, because some set what later imports read."""
    assert "bench.scoring" in MODULES
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(MODULES)}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
