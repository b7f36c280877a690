"""What the C library keeps of freed memory: measured in processes of their own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other library is told anything")

MODELS = """
import json, sys
from contextlib import contextmanager
import numpy as np
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.scoring import inference
from airflow_hydrogen.runtime.scoring.inference import Scorer
from tests.unit.runtime.test_memory import resident

class Model:
    def __init__(self, size):
        # Beside weights there is what the process has as long as it lives.
        self.weights = [(np.ones(size * 2**17), others.append(np.ones(1_000))) for _ in range(200 // size)]
        self.itself = self  # as a framework's: it goes only when garbage is collected

others, sizes = [], iter([10, 11, 12])

@contextmanager
def load(*_):
    yield Model(next(sizes))

inference.load_predictor = load
before, held = resident(), []
for created in "123":
    manifest = Manifest(framework="keras", entry="", signature=Signature((), ()), files=(), created=created)
    Scorer("m", manifest, None, "onnx", (), {}, {}, 1, 1)._model()
    held.append(resident("VmHWM") - before)
print(json.dumps(held))
"""

MATRICES = """
import json
import numpy as np
from airflow_hydrogen.runtime import memory
from tests.unit.runtime.test_memory import resident

memory.keep_freed()
before = resident()
np.ones(2 * 2**20)
kept = resident() - before
memory.give_back()
print(json.dumps([kept, resident() - before]))
"""


def resident(name="VmRSS"):
    """MB that a process has in memory, or had."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(f"{name}:")) // 1024


def measured(script, **environment):
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_what_is_freed_is_kept_until_it_is_to_be_given_back():
    kept, given_back = measured(MATRICES)
    assert kept >= 12, "a matrix of 16 MB"
    assert given_back <= 4


@pytest.mark.parametrize(
    "said", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_environment_says_to_the_library_counts(said):
    assert measured(MATRICES, **said)[0] <= 4


def test_a_worker_has_memory_for_one_model_at_a_time():
    first, *others = measured(MODELS)
    assert 190 <= first <= 240
    assert max(others) <= first + 40
