"""Entry points of the trainings that the tests of faults run; each rank says where it is in a folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.runtime.storage.checkpoints import CheckpointStore
from tests.processes import reader_of_output


def arrive(folder: str) -> None:
    """Write what this rank is and sees to `rank-<rank>.<attempt>.json`."""
    context = hydrogen.get_context()
    document = {
        "rank": context.rank,
        "size": context.size,
        "local_rank": context.local_rank,
        "host": context.hostname,
        "pid": os.getpid(),
        "parent": reader_of_output(),
        "environment": dict(os.environ),
    }
    hidden = Path(folder) / f".rank-{context.rank}.{context.attempt}"
    hidden.write_text(json.dumps(document))
    hidden.rename(Path(folder) / f"rank-{context.rank}.{context.attempt}.json")


def count(folder: str, epoch_s: float = 0.2) -> dict[str, Any]:
    """Count epochs with a checkpoint after each, without any framework, until there is a file `finish`."""
    context = hydrogen.get_context()
    arrive(folder)
    assert context.checkpoints_uri is not None
    store = CheckpointStore(context.checkpoints_uri, context.fingerprint)
    checkpoint = store.latest()
    begin = epoch = int(checkpoint.state["epoch"]) if checkpoint is not None else 0
    context.resumed_from_epoch = begin or None
    while not (Path(folder) / "finish").exists():
        time.sleep(epoch_s)  # the work of an epoch
        epoch += 1
        hydrogen.report({"epoch": epoch})
        if context.rank == 0:
            store.save(epoch, lambda target: (target / "x").write_bytes(b"x"), {"epoch": epoch})
            store.prune(2)
            (Path(folder) / "epoch").write_text(str(epoch))
    return {"size": context.size, "attempt": context.attempt, "begin": begin, "end": epoch}


def fit(folder: str, epochs: int, die_in_epoch: int | None = None, on_rank: int = 1) -> Any:
    """Fit a line with Keras; one rank is killed once, in the middle of an epoch."""
    import signal

    import keras

    context = hydrogen.get_context()
    arrive(folder)
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.02)), "mse")

    class DieOnce(keras.callbacks.Callback):  # type: ignore[misc]
        epoch = 0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if (self.epoch, batch, context.rank, context.attempt) == (die_in_epoch, 3, on_rank, 0):
                os.kill(os.getpid(), signal.SIGKILL)

    rows = hydrogen.get_dataset_shard("train").to_tf(32, label="y")
    callbacks = [*hydrogen.keras.callbacks(tensorboard=False), DieOnce()]
    model.fit(rows, epochs=epochs, callbacks=callbacks, verbose=0)
    return model


def skip_a_collective(folder: str, rank: int) -> None:
    """All ranks add up a number; one does not come to the fifth time."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    arrive(folder)
    for step in range(1000):
        if step == 4 and hvd.rank() == rank:
            while True:
                time.sleep(1)
        hvd.allreduce(tf.constant(1.0), name="total")


def never_come_to_init(folder: str, rank: int) -> None:
    """All ranks but one start Horovod, and wait for five seconds."""
    os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"] = "5"
    import horovod.tensorflow as hvd

    arrive(folder)
    while hydrogen.get_context().rank == rank:
        time.sleep(1)
    hvd.init()


def add_up(folder: str) -> float:
    """One allreduce."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    arrive(folder)
    while not (Path(folder) / "finish").exists():
        time.sleep(0.1)
    return float(hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum))


def shout(folder: str, lines: int) -> dict[str, float]:
    """Rank 1 prints as fast as it can; says how long that took."""
    context = hydrogen.get_context()
    arrive(folder)
    began = time.monotonic()
    if context.rank == 1:
        for number in range(lines):
            print(f"line {number} of a rank that has a lot to say about everything", flush=False)
        Path(folder, "seconds").write_text(str(time.monotonic() - began))
        print("the last line of all")
    while not Path(folder, "seconds").exists():
        time.sleep(0.05)
    return {"seconds": float(Path(folder, "seconds").read_text() or 0)}


def fail_on_rank(folder: str, rank: int) -> None:
    """Raise on one rank."""
    arrive(folder)
    if hydrogen.get_context().rank == rank:
        raise ValueError("the same every time")
    while True:
        time.sleep(1)
