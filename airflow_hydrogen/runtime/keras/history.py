"""Callbacks that write down how a training goes: the history, and TensorBoard's event files."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from airflow_hydrogen.contract import uris
from airflow_hydrogen.runtime.rank.context import get_context, report, scalars

log = logging.getLogger(__name__)


class ShardEpochCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Tell the dataset shards which epoch begins: the order of their rows is a function of seed and epoch.

    So a resumed training reads its rows in the order in which it would have read them.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Before Keras opens the dataset for this epoch."""
        for shard in get_context().shards.values():
            shard.set_epoch(epoch)


class HistoryCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Report every epoch: one line of the model's history.

    A line holds the metrics (of a vector each number, as `f1_score_0`, `f1_score_1`), `epoch` (from 0),
    `seconds`, and `rows_per_second` of all ranks together where the job has training data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begin = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Report."""
        context = get_context()
        seconds = time.perf_counter() - self._begin
        line: dict[str, Any] = {"epoch": epoch, **(logs or {}), "seconds": round(seconds, 3)}
        shard = next((shard for shard in context.shards.values() if shard.name == "train"), None)
        if shard is not None and epoch != context.partial_epoch:
            rows = len(shard) * context.size  # every rank has as many
            line["rows_per_second"] = round(rows / max(seconds, 1e-9), 1)
        epochs_left = self.params.get("epochs", epoch + 1) - (epoch + 1)
        report(line, seconds_left=seconds * epochs_left)


class EventsCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Write TensorBoard's event files, from rank 0.

    `epoch_loss` and the like below `train/` and `validation/`, as `keras.callbacks.TensorBoard` names them.
    That one needs the package tensorboard on the cluster; this one writes the files with TensorFlow alone.

    Args:
        uri: a local folder; default: the job's (`context.events_uri`). Without either, and for other
            filesystems, it does nothing.
    """

    def __init__(self, uri: str | None = None) -> None:
        super().__init__()
        self.uri = uri
        self._writers: dict[str, Any] = {}
        self._folder: Path | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the folder."""
        context = get_context()
        uri = self.uri or context.events_uri
        if uri is None or context.rank != 0:
            return
        self._folder = uris.local_path(uri)
        if self._folder is None:
            log.warning("TensorBoard event files are written to local folders only, not to %r", uri)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's metrics."""
        if self._folder is None or not logs:
            return
        training = {name: value for name, value in logs.items() if not name.startswith("val_")}
        validation = {name[4:]: value for name, value in logs.items() if name.startswith("val_")}
        for run, metrics in (("train", training), ("validation", validation)):
            if metrics:
                self._write(run, epoch, metrics)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _write(self, run: str, epoch: int, metrics: Mapping[str, Any]) -> None:
        from tensorflow.core.framework.summary_pb2 import Summary
        from tensorflow.core.util.event_pb2 import Event

        if run not in self._writers:
            assert self._folder is not None  # on_epoch_end has looked
            folder = self._folder / run
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.0.v2"
            self._writers[run] = tf.io.TFRecordWriter(str(folder / name))
            first = Event(wall_time=time.time(), file_version="brain.Event:2")
            self._writers[run].write(first.SerializeToString())
        values = [
            Summary.Value(tag=f"epoch_{name}", simple_value=value) for name, value in scalars(metrics).items()
        ]
        event = Event(wall_time=time.time(), step=epoch, summary=Summary(value=values))
        self._writers[run].write(event.SerializeToString())
        self._writers[run].flush()
