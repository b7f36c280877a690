"""Spark's Python daemon, which has imported the model's framework before it forks the first worker.

Spark starts one per executor (`spark.python.daemon.module`) and asks it for each Python worker. Its own daemon
imports nothing, so that every worker imports the framework for itself, and not before it has rows. Here that
is done once, while the driver still plans, and workers share the memory.

The environment that workers have, threads of math libraries among it, is the daemon's from its start. What a
worker sets itself, the size of TensorFlow's pools, counts because nothing has run when it is forked. Where the
imports fail, or leave a process that must not be forked, Spark's own daemon takes the place of this one.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from airflow_hydrogen.runtime.rank.preloading import draw_seeds, preload

MODULE = "airflow_hydrogen.runtime.scoring.daemon"
MODULES_VARIABLE = "AIRFLOW_HYDROGEN_WORKER_MODULES"

_SPARKS_OWN = "pyspark.daemon"
_MAX_OUTPUT_BYTES = 32768  # Spark reads what is written only when all has been imported; a pipe holds 64 KB


def main(arguments: Sequence[str]) -> None:
    """Import, check, and be Spark's daemon.

    Args:
        arguments: what Spark gives its daemon.
    """
    modules = [name for name in os.environ.get(MODULES_VARIABLE, "").split(",") if name]
    with _output_kept():
        refusal = _import(modules)
    if refusal is not None:
        print(
            f"airflow-hydrogen: Python workers import their frameworks for themselves: {refusal}",
            file=sys.stderr,
            flush=True,
        )
        os.execv(sys.executable, [sys.executable, "-m", _SPARKS_OWN, *arguments])
    from pyspark.daemon import manager

    _make_workers_differ(os.getpid())
    # Threads: those that are known.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    manager()


def _import(modules: Sequence[str]) -> str | None:
    """Import, for processes that never look at it again. Returns why none may be forked from this one."""
    if sys.platform != "linux":
        return f"{sys.platform} does not tell which threads a process has"
    gc.disable()
    refusal = preload(modules)
    # Else each worker's collection, which Spark has it do after every task, would look through all of it.
    gc.collect()
    gc.freeze()
    gc.enable()
    return refusal


@contextmanager
def _output_kept() -> Iterator[None]:
    """Have what imports write go to the log in the end: on standard output Spark waits for a port number."""
    kept = os.memfd_create("output") if sys.platform == "linux" else os.open(os.devnull, os.O_RDWR)
    saved = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(kept, number)
    try:
        yield
    finally:
        for number, file in zip((1, 2), saved, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.write(2, os.pread(kept, _MAX_OUTPUT_BYTES, 0))
        os.close(kept)


def _make_workers_differ(daemon: int) -> None:
    """Draw random states anew in each worker, but not in what a worker forks."""

    def draw() -> None:
        if os.getppid() == daemon:
            draw_seeds()

    os.register_at_fork(after_in_child=draw)


if __name__ == "__main__":
    main(sys.argv[1:])
