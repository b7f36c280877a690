"""What the ranks of the benchmarks of starts run.

In a module of its own: `bench.measure` names OMP_NUM_THREADS, and ranks of an entry point that names it are
forked from a template without frameworks.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil


def first_allreduce() -> float:
    """On every rank: when it was done, on the machine's monotonic clock, which all processes share."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    total = hvd.allreduce(tf.constant([1.0]), op=hvd.Sum, name="first")
    done = time.monotonic()
    assert float(total[0]) == hvd.size()
    return done


def resident_mb() -> float:
    """On rank 0: of all ranks, each after an allreduce, and of their template."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    pids = [int(pid) for pid in hvd.allgather(tf.constant([os.getpid()]), name="pids")]
    template = os.getppid()
    if "airflow_hydrogen.runtime.rank.template" in psutil.Process(template).cmdline():
        pids.append(template)
    found = sum(_pss_kb(pid) for pid in pids) / 1024 if hvd.rank() == 0 else 0.0
    hvd.allreduce(tf.constant([1.0]), name="measured")  # nobody leaves before
    return found


def _pss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no Pss")


def step_and_die(folder: str) -> None:
    """On every rank: one allreduce; rank 1 of the first start is killed after it."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    from airflow_hydrogen.runtime import get_context

    context = get_context()
    hvd.init()
    hvd.allreduce(tf.constant([1.0]), name="step")
    if context.rank == 0:
        _note(folder, f"step.{context.attempt}")
    hvd.allreduce(tf.constant([1.0]), name="noted")
    if context.attempt == 0 and context.rank == 1:
        _note(folder, "killed")
        os.kill(os.getpid(), signal.SIGKILL)
    hvd.allreduce(tf.constant([1.0]), name="next")


def _note(folder: str, name: str) -> None:
    # The machine's monotonic clock, which all processes share.
    Path(folder, name).write_text(json.dumps(time.monotonic()))
