"""Models that break the hosts that score with them, and others that tell what they see there."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

FATAL = -1.0
"""A feature on which `kills_its_executor` does, the first time it sees it."""


def kills_its_executor(path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A predictor that doubles `a`; the model is a file that names the folder of the test."""
    folder = Path(Path(path).read_text())

    def predict(arrays: dict[str, Any]) -> dict[str, Any]:
        if (arrays["a"] == FATAL).any():
            begun = {str(file): file.stat().st_size for file in folder.rglob("part-*.parquet")}
            try:
                with (folder / "died").open("x") as died:
                    json.dump(begun, died)
            except FileExistsError:
                return {"p": arrays["a"] * 2}
            for parent in psutil.Process().parents():
                if any("CoarseGrainedExecutorBackend" in argument for argument in parent.cmdline()):
                    parent.kill()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"p": arrays["a"] * 2}

    return predict


_TOGETHER_S = 100.0
_WORK_S = 0.3


def tells_its_gpus(path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A predictor that gives `a`; the model is a file that names the folder where it tells what it sees."""
    folder = Path(Path(path).read_text())

    def predict(arrays: dict[str, Any]) -> dict[str, Any]:
        tell(folder, "score")
        return {"prediction": arrays["x"][:, 0]}

    return predict


def on_all_cores(spark: Any, frame: Any, folder: str, tasks: int) -> Any:
    """A `prepare` of four tasks that tell what they see, and a shuffle into as many tasks as are to score."""

    def told(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tell(Path(folder), "prepare")
        yield from batches

    return frame.repartition(4).mapInArrow(told, frame.schema).repartition(tasks)


def tell(folder: Path, what: str) -> None:
    """Write down what this task sees, once as many of its kind run as the file `what` says."""
    from pyspark import TaskContext

    task = TaskContext.get()
    gpus = task.resources().get("gpu")
    began = time.monotonic()
    (folder / f"{what}-{task.partitionId()}-{os.getpid()}.began").touch()
    while len(list(folder.glob(f"{what}-*.began"))) < int((folder / what).read_text()):
        assert time.monotonic() < began + _TOGETHER_S, "other tasks should run at the same time"
        time.sleep(0.02)
    time.sleep(_WORK_S)
    told = {
        "pid": os.getpid(),
        "assigned": gpus.addresses if gpus else [],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "growth": os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH"),
        "began": began,
        "ended": time.monotonic(),
    }
    (folder / f"{what}-{task.partitionId()}.json").write_text(json.dumps(told))
