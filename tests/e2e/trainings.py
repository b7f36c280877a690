"""Entry points of the tests' trainings: what the ranks run."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import airflow_hydrogen.runtime as hydrogen


def fit_line(epochs: int, die_after_epoch: int | None = None, marker: str | None = None) -> Any:
    """Fit y = 2x.

    Args:
        epochs: passes.
        die_after_epoch: kill this process once, after the checkpoint of that epoch.
        marker: the file that says that this has happened.
    """
    import keras

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.05)), "mse")

    class DieOnce(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if marker is not None and epoch == die_after_epoch and not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)

    rows = hydrogen.get_dataset_shard("train").to_tf(50, label="y")
    model.fit(rows, epochs=epochs, callbacks=[*hydrogen.keras.callbacks(), DieOnce()], verbose=0)
    return model


def wait_for_ever(folder: str) -> None:
    """Write this rank's process id into a folder, then never return."""
    context = hydrogen.get_context()
    started = Path(folder) / f".rank-{context.rank}"
    started.write_text(str(os.getpid()))
    started.rename(Path(folder) / f"rank-{context.rank}")
    threading.Event().wait()
