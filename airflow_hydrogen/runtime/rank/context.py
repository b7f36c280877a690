"""What `main` can ask about the gang it runs in."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.runtime import progress

if TYPE_CHECKING:
    from airflow_hydrogen.runtime.data.dataset import DatasetShard
    from airflow_hydrogen.runtime.data.files import DatasetFiles


@dataclass
class TrainContext:
    """The place of this process in the gang, and what the job gave it.

    Attributes:
        rank, size: Horovod's rank and size.
        local_rank, local_size: among the ranks of this host.
        cross_rank, cross_size: among the hosts.
        hostname: this host's name in the gang.
        datasets: name -> URI of the Parquet files that the job prepared.
        checkpoints_uri: folder of the checkpoints, or None where the job keeps none.
        events_uri: folder for TensorBoard's event files, or None.
        fingerprint: the job's; a checkpoint of another job is not resumed.
        parts: of the job, by which the log says what has changed.
        attempt: 0 for the first start of the gang within the application.
        history: what rank 0 reported so far, one mapping a line.
        resumed_from_epoch: set by the checkpoint callback when it restored one.
        partial_epoch: the epoch of which a resumed training sees only the rest.
        weights_compared: the ranks were found to have the same weights while they trained.
        dataset_files: name -> the list of these files that the driver made: all ranks read by it.
        shards: what `get_dataset_shard` gave, by name, seed and shuffle; what was asked for last stands last.
    """

    rank: int
    size: int
    local_rank: int = 0
    local_size: int = 1
    cross_rank: int = 0
    cross_size: int = 1
    hostname: str = "localhost"
    datasets: Mapping[str, str] = field(default_factory=dict)
    checkpoints_uri: str | None = None
    events_uri: str | None = None
    fingerprint: str = ""
    parts: Mapping[str, str] = field(default_factory=dict, repr=False)
    attempt: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    resumed_from_epoch: int | None = None
    partial_epoch: int | None = None
    weights_compared: bool = False
    dataset_files: Mapping[str, DatasetFiles] = field(default_factory=dict, repr=False)
    shards: dict[tuple[str, int, bool], DatasetShard] = field(default_factory=dict, repr=False)
    on_report: Callable[[Mapping[str, float], float | None], None] = field(
        default=lambda metrics, seconds_left: None, repr=False
    )


_current: TrainContext | None = None


def enter(context: TrainContext) -> None:
    """Make `context` this process's own. The rank's process calls it once, before `main`."""
    global _current
    _current = context


def get_context() -> TrainContext:
    """The context of this process.

    Outside a gang of this package it is read from the variables that `horovodrun` sets, and without
    those it is that of a gang of one: a training function can be run by itself.
    """
    global _current
    if _current is None:
        _current = TrainContext(
            rank=_horovod_number("rank", 0),
            size=_horovod_number("size", 1),
            local_rank=_horovod_number("local_rank", 0),
            local_size=_horovod_number("local_size", 1),
            cross_rank=_horovod_number("cross_rank", 0),
            cross_size=_horovod_number("cross_size", 1),
            hostname=os.environ.get("HOROVOD_HOSTNAME", "localhost"),
        )
    return _current


def _horovod_number(name: str, default: int) -> int:
    return int(os.environ.get(f"HOROVOD_{name.upper()}", default))


def get_dataset_shard(name: str = "train", *, seed: int = 0, shuffle: bool = True) -> DatasetShard:
    """This rank's shard of one of the job's datasets.

    The same arguments give the same shard, which counts its epochs. Others give a shard of its own over the
    same files: the rows to train on in one order, and the same rows unshuffled to evaluate.

    Args:
        name: the dataset's name: "train" for `train_data`, "validation" for `validation_data`.
        seed: of the shuffle, 0 or more. It decides which rank reads which rows: it must be the same on every
            rank, and in a run that goes on from a checkpoint.
        shuffle: False gives the rows in the files' order, each rank its part.

    Raises:
        InvalidJobError: the job has no dataset of that name, or `seed` is no whole number.
    """
    from airflow_hydrogen.runtime.data.dataset import DatasetShard

    context = get_context()
    if name not in context.datasets:
        raise InvalidJobError(
            f"the job has no dataset {name!r}; it has {', '.join(map(repr, context.datasets)) or 'none'}: "
            "pass train_data, validation_data or datasets"
        )
    shard = context.shards.pop((name, seed, shuffle), None)
    if shard is None:
        data = context.dataset_files.get(name, context.datasets[name])
        shard = DatasetShard(
            data, rank=context.rank, size=context.size, name=name, seed=seed, shuffle=shuffle
        )
    context.shards[name, seed, shuffle] = shard
    return shard


def report(metrics: Mapping[str, Any], *, seconds_left: float | None = None) -> None:
    """Write one line of the model's history, and of the task's log.

    Call it on every rank, once an epoch: rank 0's numbers are kept. To the watchdog it is progress.

    Args:
        metrics: name -> number, for example `{"epoch": 3, "loss": 0.21}`. Of an array each number gets a
            name of its own: `f1_score_0`, `f1_score_1`.
        seconds_left: how long the training will still take, for the log alone.

    Raises:
        InvalidJobError: a value that is neither a number nor an array of them, or two of one name.
    """
    progress.current().tick()
    line = scalars(metrics)
    context = get_context()
    if context.rank == 0:
        context.history.append(line)
    context.on_report(line, seconds_left)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as Python numbers: an array's get names of their own, by their places.

    A metric for each class, such as `keras.metrics.F1Score()`, is an array. One of a single number keeps its
    name.

    Raises:
        InvalidJobError: a value that is neither a number nor an array of them, or two of one name.
    """
    line: dict[str, float] = {}
    for name, value in metrics.items():
        for key, number in _numbers(name, value):
            if key in line:
                raise InvalidJobError(f"report: there are two numbers {key!r}: rename one of the metrics")
            line[key] = number
    return line


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    is_array = isinstance(value, (list, tuple)) or getattr(value, "shape", None)
    try:
        if not is_array:
            return [(name, value if isinstance(value, int) else float(value))]
        import numpy as np  # here: it is there wherever there are arrays

        array = np.asarray(value).astype("float64", casting="same_kind")
    except (TypeError, ValueError):
        raise InvalidJobError(
            f"report: {name!r} must be a number or an array of numbers, found {value!r}"
        ) from None
    if array.size == 1:
        return [(name, array.item())]
    return [("_".join([name, *map(str, place)]), number) for place, number in np.ndenumerate(array)]


def dump_history(history: list[dict[str, float]]) -> str:
    """The text of `history.jsonl`. NaN and infinity, which JSON does not have, become null."""
    return "".join(
        json.dumps({name: value if math.isfinite(value) else None for name, value in line.items()}) + "\n"
        for line in history
    )
