"""What scores without Spark: Ray Data, Daft, and plain processes. A program, which `bench.peers` runs.

Every one reads the same Parquet files, runs the same model file in the same engine in two workers of one math
thread each, and writes a key and the prediction as Parquet. The workers wait for each other when they have
the model, and then the clock starts: neither the start of a system nor `import tensorflow` is measured, and
nothing was read before.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORKERS = 2
KEY = "id"
PREDICTION = "prediction"
_WAIT_S = 180.0
_BUFFER_BYTES = 128 * 1024  # faster than 1 MB

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DAFT_ANALYTICS_ENABLED": "0",
    # As our workers have it (`runtime/memory.py`): plain processes take a tenth and more of their time less.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Task:
    """What a system is to do.

    Attributes:
        system: "ray", "daft" or "plain".
        engine: "tensorflow" or "onnx".
        model: the file.
        source: folder of Parquet files: a key and features.
        target: folder to write; it is there and empty.
        few: folder of Parquet files of a few rows: a system reads and writes them first, without a model, so
            that the processes which it has for that are there when the clock starts.
        gate: folder in which workers find each other, and those few rows go; it is there and empty.
        settings: the system's own.
    """

    system: str
    engine: str
    model: str
    source: str
    target: str
    few: str
    gate: str
    settings: dict[str, Any]

    @property
    def files(self) -> list[str]:
        """The files to read."""
        return _files(self.source)


def _files(folder: str) -> list[str]:
    return sorted(map(str, Path(folder).glob("*.parquet")))


def main(argument: str) -> None:
    """Do a task, and print how long it took, with the versions of what did it."""
    task = Task(**json.loads(argument))
    started = time.time()
    os.environ |= _ENVIRONMENT
    ended = _SYSTEMS[task.system](task)
    ready = max(float(file.read_text()) for file in Path(task.gate).glob("*.ready"))
    found = {
        "seconds": ended - ready,
        "seconds_with_start": ended - started,
        "versions": _versions(task.system),
    }
    print(json.dumps(found), flush=True)


# --- the model, in every worker ----------------------------------------------------------------------------


class Model:
    """A model in one worker, which is made when all workers have theirs.

    Args:
        engine, path, gate: of the task.
    """

    def __init__(self, engine: str, path: str, gate: str) -> None:
        self._predict, features = _in_onnx(path) if engine == "onnx" else _in_tensorflow(path)
        self._predict(np.zeros((1, features), "float32"))
        _wait_for_all(Path(gate))

    def __call__(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """The predictions of rows whose features are given as columns."""
        # NumPy turns 32 columns in 0.4 of the time that putting them beside each other one by one takes.
        return self._predict(np.ascontiguousarray(np.stack(columns).T)).ravel()


def _in_onnx(path: str) -> tuple[Predict, int]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given, made = session.get_inputs()[0], session.get_outputs()[0].name
    return lambda matrix: session.run([made], {given.name: matrix})[0], given.shape[1]


def _in_tensorflow(path: str) -> tuple[Predict, int]:
    import keras
    import tensorflow as tf

    model = keras.models.load_model(path, compile=False)
    features = model.input_shape[1]
    signature = [tf.TensorSpec((None, features), tf.float32)]
    call = tf.function(lambda matrix: model(matrix, training=False), input_signature=signature)
    return lambda matrix: call(matrix).numpy(), features


def _wait_for_all(gate: Path) -> None:
    note = gate / f"{os.getpid()}-{time.monotonic_ns()}.ready"
    partial = note.with_suffix(".partial")
    partial.write_text(repr(time.time()))
    partial.rename(note)
    deadline = time.monotonic() + _WAIT_S
    while len(list(gate.glob("*.ready"))) < WORKERS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"there are no {WORKERS} workers after {_WAIT_S:g} s")
        time.sleep(0.002)


# --- the systems -------------------------------------------------------------------------------------------


def _by_plain_processes(task: Task) -> float:
    """Two processes, each with half of the files; when both have written. TensorFlow's end takes longer."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_score_files, args=(task, number)) for number in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a worker ended with {process.exitcode}")
    return max(float(file.read_text()) for file in Path(task.gate).glob("*.written"))


def _score_files(task: Task, worker: int) -> None:
    """One process: its part of the files, one after the other."""
    model = Model(task.engine, task.model, task.gate)
    schema = pa.schema([(KEY, pa.int64()), (PREDICTION, pa.float32())])
    target = Path(task.target, f"part-{worker}.parquet")
    with pq.ParquetWriter(target, schema, use_dictionary=[KEY]) as writer:
        waiting = []
        for path in task.files[worker::WORKERS]:
            file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES)
            for batch in file.iter_batches(task.settings["batch_rows"], use_threads=False):
                features = [batch.column(number).to_numpy() for number in range(1, batch.num_columns)]
                scored = [batch.column(KEY), pa.array(model(features))]
                waiting.append(pa.RecordBatch.from_arrays(scored, schema=schema))
        writer.write_table(pa.Table.from_batches(waiting))
    Path(task.gate, f"{worker}.written").write_text(str(time.time()))


def _by_ray(task: Task) -> float:
    """Ray Data's `map_batches` with an actor pool; when all is written."""
    import ray

    settings = task.settings

    class Scorer:
        def __init__(self) -> None:
            self._model = Model(task.engine, task.model, task.gate)

        def __call__(self, table: pa.Table) -> pa.Table:
            columns = [column.to_numpy() for column in table.columns[1:]]
            return pa.table({KEY: table.column(KEY), PREDICTION: self._model(columns)})

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=settings["cpus"],
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.wait_for_min_actors_s = int(_WAIT_S)
            ray.data.read_parquet(_files(task.few)).write_parquet(f"{task.gate}/few")
            scored = ray.data.read_parquet(task.files).map_batches(
                Scorer,
                batch_format="pyarrow",
                batch_size=settings["batch_rows"],
                compute=ray.data.ActorPoolStrategy(size=WORKERS),
                num_cpus=settings["cpus_per_actor"],
            )
            scored.write_parquet(task.target)
            ended = time.time()
        finally:
            ray.shutdown()  # before its folder goes
    return ended


def _by_daft(task: Task) -> float:
    """A class UDF of Daft's; when all is written."""
    import daft

    settings = task.settings
    daft.set_runner_native()

    @daft.cls(max_concurrency=WORKERS, use_process=settings["processes"])
    class Scorer:
        def __init__(self, engine: str, model: str, gate: str) -> None:
            self._model = Model(engine, model, gate)

        @daft.method.batch(return_dtype=daft.DataType.float32(), batch_size=settings["batch_rows"])
        def score(self, *columns: daft.Series) -> pa.Array:
            return pa.array(self._model([column.to_arrow().to_numpy() for column in columns]))

    scorer = Scorer(task.engine, task.model, task.gate)
    daft.read_parquet(_files(task.few)).write_parquet(f"{task.gate}/few")
    rows = daft.read_parquet(task.files)
    features = [daft.col(name) for name in rows.column_names if name != KEY]
    scored = rows.select(daft.col(KEY), scorer.score(*features).alias(PREDICTION))
    scored.write_parquet(task.target)
    return time.time()


_SYSTEMS = {"plain": _by_plain_processes, "ray": _by_ray, "daft": _by_daft}


def _versions(system: str) -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in (system, "pyarrow", "numpy", "tensorflow-cpu", "tensorflow", "keras", "onnxruntime"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package.removesuffix("-cpu")] = metadata.version(package)
    return found


if __name__ == "__main__":
    main(sys.argv[1])
