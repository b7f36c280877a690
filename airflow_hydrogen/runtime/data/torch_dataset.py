"""A rank's rows for PyTorch: batches that the workers of a `DataLoader` read side by side.

Imported where PyTorch is asked for, and only there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import InvalidJobError

if TYPE_CHECKING:
    import pyarrow as pa

    from airflow_hydrogen.runtime.data.dataset import DatasetShard
    from airflow_hydrogen.runtime.data.encoding import Encoder


class ShardDataset(IterableDataset):  # type: ignore[misc]
    """What `DatasetShard.to_torch` gives. Its elements are whole batches.

    In the worker of a `DataLoader` it gives that worker's part of them.
    """

    def __init__(self, shard: DatasetShard, batch_size: int, encode: Encoder) -> None:
        self._shard, self._batch_size, self._encode = shard, batch_size, encode
        self._made_in = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_made_in"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _made_in=os.getpid())

    def __len__(self) -> int:
        """Batches of an epoch, of all workers together."""
        return self._shard.steps(self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        # No generator: the epoch is that of the moment in which the iteration begins.
        worker = get_worker_info()
        columns = self._encode.columns
        if worker is None:
            return self._batches(self._shard.read(columns, self._batch_size, epoch=self._shard.begin_epoch()))
        if self._made_in != os.getpid() and uris.local_path(self._shard.files.uri) is None:
            raise InvalidJobError(
                f"{self._shard.files.uri!r} is on an object store, whose connections do not survive that a "
                "process is forked: give the DataLoader multiprocessing_context='spawn', or num_workers=0"
            )
        epoch, repeated = self._shard.told_epoch(tell=worker.id == 0)
        if repeated and self._shard.shuffle:
            warnings.warn(
                f"dataset {self._shard.name!r} is read in the order of epoch {epoch} again: call "
                "set_epoch(epoch) of its shard before each epoch; workers of a DataLoader cannot count them",
                UserWarning,
                stacklevel=2,
            )
        tables = self._shard.read(
            columns, self._batch_size, epoch=epoch, worker=worker.id, workers=worker.num_workers
        )
        return self._batches(tables)

    def _batches(self, tables: Iterator[pa.Table]) -> Iterator[Any]:
        for table in tables:
            arrays = self._encode(table)
            for start in range(0, table.num_rows, self._batch_size):
                yield _tensors(arrays, slice(start, start + self._batch_size))


def _tensors(arrays: Any, rows: slice) -> Any:
    """Some rows of what the encoder gives, each tensor with memory of its own."""
    if isinstance(arrays, tuple):
        return tuple(_tensors(part, rows) for part in arrays)
    if isinstance(arrays, dict):
        return {name: _tensors(part, rows) for name, part in arrays.items()}
    return arrays[rows].tolist() if arrays.dtype == object else torch.tensor(arrays[rows])
