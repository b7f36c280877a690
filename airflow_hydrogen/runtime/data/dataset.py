"""A rank's shard of a Parquet dataset: row groups -> Arrow -> tf.data or PyTorch, in constant memory."""

from __future__ import annotations

import itertools
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from airflow_hydrogen.contract.errors import (
    DataError,
    EmptyDatasetError,
    InvalidJobError,
    MissingColumnError,
)
from airflow_hydrogen.contract.signatures import ColumnSpec
from airflow_hydrogen.runtime.data.columns import dtype_of, to_numpy
from airflow_hydrogen.runtime.data.encoding import Encoder, FeatureLayout, Layout
from airflow_hydrogen.runtime.data.files import DataFile, DatasetFiles, list_dataset, read_footers
from airflow_hydrogen.runtime.data.opened import OpenedFile
from airflow_hydrogen.runtime.data.shards import (
    RowSlice,
    assign_shards,
    rows_per_rank,
    shuffled_order,
    split_batches,
)
from airflow_hydrogen.runtime.data.windows import plan_windows, read_windows

if TYPE_CHECKING:
    import tensorflow as tf

    from airflow_hydrogen.runtime.data.torch_dataset import ShardDataset

_PROBE_BYTES = 64 * 1024


@dataclass(frozen=True)
class _RowGroup:
    file: DataFile
    index: int
    rows: int


class DatasetShard:
    """The rows of one rank.

    Every rank reads the same number of rows in an epoch (`shards.assign_shards`), whatever the number of
    rows, row groups and ranks: all take the same number of steps. Which rows, and in which order, is a
    function of `seed` and the epoch: row groups are dealt out in another order each epoch, and rows are
    shuffled within windows of at most 65,536 rows and 32 MB. A window takes rows from up to 32 row groups
    at once, so that sorted files do not give sorted batches. Memory does not depend on the size of the data.

    Args:
        data: the list of files that the driver made, or the URI of a folder of Parquet files with one schema
            or of one file: then the list is made here.
        rank, size: this rank and the number of ranks.
        name: the dataset's name, for messages.
        seed: of the shuffle, 0 or more: the same on every rank.
        shuffle: False keeps the files' order.

    Raises:
        InvalidJobError: `seed` is no whole number of 0 or more.
        EmptyDatasetError: no rows.
        SchemaMismatchError: columns or types that differ between the files.
    """

    def __init__(
        self,
        data: str | DatasetFiles,
        *,
        rank: int = 0,
        size: int = 1,
        name: str = "train",
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if not isinstance(seed, int) or seed < 0:
            raise InvalidJobError(f"seed must be a whole number of 0 or more, found {seed!r}")
        self.rank, self.size, self.name = rank, size, name
        self.seed, self.shuffle = seed, shuffle
        self.layout: FeatureLayout | None = None
        self.error: DataError | None = None
        self._epoch: int | None = None
        self._next_epoch = 0
        # Memory that processes which read for this one see: its epoch, and the last that they have begun.
        self._told: Any = None
        self.files = data if isinstance(data, DatasetFiles) else read_footers(list_dataset(data))
        self.files.require_one_schema()
        self._groups = [
            _RowGroup(file, index, rows)
            for file in self.files.files
            for index, rows in enumerate(file.rows)
            if rows
        ]
        self.total_rows = sum(group.rows for group in self._groups)
        if not self.total_rows:
            raise EmptyDatasetError(name, f"{len(self.files.files)} Parquet files in {self.files.uri}")

    def __len__(self) -> int:
        """Rows that this rank reads in an epoch: the same on every rank."""
        return rows_per_rank(self.total_rows, self.size)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows; where the order of columns differs between files, the first file's."""
        return self.files.schema

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration belongs to, so that a resumed run goes on in the same order.

        Without it the n-th iteration is epoch n. `hydrogen.keras.callbacks()` calls it.
        """
        self._epoch = epoch
        if self._told is not None:
            self._told[0] = epoch

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch, the last one perhaps short."""
        return -(-len(self) // batch_size)

    def to_batches(self, batch_size: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """One epoch as Arrow batches of `batch_size` rows, the last one perhaps short.

        Args:
            batch_size: rows of a batch, on this rank.
            columns: columns to read, all by default; no others are read from storage.

        Raises:
            MissingColumnError: a column that is not there.
        """
        for table in self.read(self._checked("columns", columns), batch_size, epoch=self.begin_epoch()):
            for part in _batches_of(table, batch_size):
                yield part.combine_chunks().to_batches()[0]

    def to_tf(
        self,
        batch_size: int,
        label: str | Sequence[str] | None = None,
        *,
        features: Sequence[str] | None = None,
        layout: Layout = "matrix",
    ) -> tf.data.Dataset:
        """One epoch as a `tf.data.Dataset` of batches; iterate it again for the next epoch.

        Args:
            batch_size: rows of a batch, on this rank.
            label: column of the label; a list of columns gives a dict of labels, for a model with several
                outputs; None gives batches without labels.
            features: columns of the features in the model's order; by default all but the labels.
            layout: "matrix" stacks numbers, booleans and tensor columns side by side in one float32
                tensor of shape (rows, width); "columns" gives a dict, column name -> tensor of shape
                (rows,) or (rows, width) in the column's own type, for named inputs and for strings.

        Returns:
            Elements `features` or `(features, labels)`, with the number of steps known.

        Raises:
            MissingColumnError, ColumnTypeError: before anything is read; the columns are named.
            NullValueError, RaggedTensorError, DatasetChangedError: while reading.
        """
        import tensorflow as tf

        encode = self._encoder(batch_size, label, features, layout)

        def windows() -> Iterator[Any]:
            try:
                for table in self._windows(encode.columns, batch_size, self.begin_epoch()):
                    yield encode(table)
            except DataError as error:
                self.error = error  # TensorFlow passes on its text alone
                raise

        dataset = tf.data.Dataset.from_generator(windows, output_signature=encode.tensor_specs(tf))
        # `fit` warns of its own default, in each rank: the rows come in an order of their own each epoch.
        warnings.filterwarnings("ignore", "`shuffle=True` was passed, but will be ignored", UserWarning)
        # Whole windows cross from Python; TensorFlow cuts them into batches.
        dataset = dataset.rebatch(batch_size).apply(
            tf.data.experimental.assert_cardinality(self.steps(batch_size))
        )
        # There is nothing to tune here, and TensorFlow's tuner costs seconds: an iterator that goes away, at
        # the end of every epoch, joins its thread, which now and then misses the news and sleeps on.
        options = tf.data.Options()
        options.autotune.enabled = False
        return dataset.prefetch(2).with_options(options)

    def to_torch(
        self,
        batch_size: int,
        label: str | Sequence[str] | None = None,
        *,
        features: Sequence[str] | None = None,
        layout: Layout = "matrix",
    ) -> ShardDataset:
        """The rows as a `torch.utils.data.IterableDataset` of batches: for a loop, or for a `DataLoader`.

            rows = shard.to_torch(1024, "late")
            loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=2)
            for epoch in range(epochs):
                shard.set_epoch(epoch)
                for features, labels in loader:
                    ...

        The workers of a loader read a part of the rows each, and together every row once, in as many steps
        as without workers. The order is a function of seed, epoch and `num_workers`: without workers and with
        one it is that of `to_tf`. Unshuffled rows keep the order of the files with any number of workers,
        each of which then reads all of them. Workers do not see how often a loader was iterated: call
        `set_epoch`, which they follow with `persistent_workers` too.

        Args:
            batch_size: rows of a batch, on this rank.
            label: column of the label; a list of columns gives a dict of labels; None gives batches without
                labels.
            features: columns of the features in the model's order; by default all but the labels.
            layout: "matrix" stacks numbers, booleans and tensor columns side by side in one float32
                tensor of shape (rows, width); "columns" gives a dict, column name -> tensor of shape
                (rows,) or (rows, width) in the column's own type, and a list for strings.

        Returns:
            Elements `features` or `(features, labels)`; its length is the number of steps.

        Raises:
            MissingColumnError, ColumnTypeError: before anything is read; the columns are named.
            NullValueError, RaggedTensorError, DatasetChangedError: while reading. What a worker raises
                reaches the loop as PyTorch passes it on: as a RuntimeError with the whole text.
        """
        from airflow_hydrogen.runtime.data.torch_dataset import ShardDataset

        encode = self._encoder(batch_size, label, features, layout)
        if self._told is None:
            self._told = multiprocessing.RawArray("q", [self._coming_epoch, -1])
        return ShardDataset(self, batch_size, encode)

    @property
    def _coming_epoch(self) -> int:
        return self._next_epoch if self._epoch is None else self._epoch

    # --- reading -------------------------------------------------------------------------------------

    def begin_epoch(self) -> int:
        """The epoch of an iteration that begins in this process."""
        epoch = self._coming_epoch
        self._next_epoch = epoch + 1
        self._epoch = None
        return epoch

    def told_epoch(self, *, tell: bool) -> tuple[int, bool]:
        """The epoch of an iteration that begins in a process that reads for the rank's.

        Args:
            tell: whether this process is the one that says that it has begun.

        Returns:
            The epoch, and whether the one that tells has begun it before.
        """
        epoch, begun = self._told
        if tell:
            self._told[1] = epoch
        return epoch, tell and epoch == begun

    def read(
        self, columns: Sequence[str], batch_size: int, *, epoch: int, worker: int = 0, workers: int = 1
    ) -> Iterator[pa.Table]:
        """An epoch's rows in tables of whole batches; the last batch may be short.

        Args:
            columns: columns to read.
            batch_size: rows of a batch.
            epoch: decides the order.
            worker, workers: of processes from which one batch each is taken in turn, the place of this one.
        """
        if workers > 1 and not self.shuffle:
            # The files' order is kept, so each worker's batches lie in all row groups.
            tables = _whole_batches(self._windows(columns, batch_size, epoch), batch_size)
            batches = (batch for table in tables for batch in _batches_of(table, batch_size))
            return itertools.islice(batches, worker, None, workers)
        return _whole_batches(self._windows(columns, batch_size, epoch, worker, workers), batch_size)

    def _slices(self, epoch: int) -> list[RowSlice]:
        counts = [group.rows for group in self._groups]
        order = shuffled_order(len(counts), self.seed, epoch) if self.shuffle else None
        return assign_shards(counts, self.size, order)[self.rank]

    def _windows(
        self, columns: Sequence[str], batch_size: int, epoch: int, worker: int = 0, workers: int = 1
    ) -> Iterator[pa.Table]:
        """A worker's rows of an epoch in shuffled windows of bounded size."""
        sizes = [self.files.columns[name] for name in columns]
        plan = plan_windows(
            sizes, self.total_rows / len(self._groups), batch_size, remote=self.files.is_remote
        )
        if not self.shuffle:
            plan = replace(plan, groups=1)
        slices = self._slices(epoch)
        place = [self.seed, epoch, self.rank]
        if workers > 1:
            slices = split_batches(slices, batch_size, workers)[worker]
            place.append(worker)
        random = np.random.default_rng(place)

        def open_group(number: int) -> tuple[OpenedFile, int]:
            group = self._groups[number]
            return self.files.open(group.file, plan.buffer_bytes), group.index

        # Files may differ in whether they allow nulls: the tables that are made of them must not.
        schema = pa.schema([self.schema.field(name).with_nullable(True) for name in columns])
        for table in read_windows(slices, plan, schema, batch_size, open_group):
            yield table.take(random.permutation(table.num_rows)) if self.shuffle else table

    # --- columns -------------------------------------------------------------------------------------

    def _encoder(
        self,
        batch_size: int,
        label: str | Sequence[str] | None,
        features: Sequence[str] | None,
        layout: Layout,
    ) -> Encoder:
        """What turns tables into arrays, of checked arguments. The layout is kept for the signature."""
        if batch_size < 1:
            raise InvalidJobError(f"batch_size must be at least 1, found {batch_size}")
        labels = [label] if isinstance(label, str) else list(label or [])
        self._checked("label", labels)
        wanted = self._checked(
            "feature",
            [name for name in self.schema.names if name not in labels] if features is None else features,
        )
        self.layout = FeatureLayout(layout, tuple(self._spec(name) for name in wanted))
        return Encoder(self.layout, tuple(self._spec(name) for name in labels), isinstance(label, str))

    def _checked(self, role: str, names: Sequence[str] | None) -> list[str]:
        found = self.schema.names
        if names is None:
            return list(found)
        missing = set(names) - set(found)
        if missing:
            raise MissingColumnError(role, missing, found)
        return list(names)

    def _spec(self, name: str) -> ColumnSpec:
        dtype, tensor = dtype_of(name, self.schema.field(name).type)
        return ColumnSpec(name, dtype, self._width(name) if tensor else None)

    def _width(self, name: str) -> int:
        """Numbers in the first row's list; the other rows are held against it while they are read."""
        group = self._groups[0]
        file = self.files.open(group.file, _PROBE_BYTES)
        try:
            first = next(file.iter_batches(1, row_groups=[group.index], columns=[name]))
        finally:
            file.close()
        return int(to_numpy(name, first.column(0)).shape[1])


def _whole_batches(windows: Iterable[pa.Table], batch_size: int) -> Iterator[pa.Table]:
    """Windows cut anew, so that each but the last holds a multiple of `batch_size` rows."""
    rest: pa.Table | None = None
    for window in windows:
        table = window if rest is None else pa.concat_tables([rest, window])
        whole = table.num_rows - table.num_rows % batch_size
        if whole:
            yield table.slice(0, whole)
        rest = table.slice(whole) if whole < table.num_rows else None
    if rest is not None:
        yield rest


def _batches_of(table: pa.Table, batch_size: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, batch_size):
        yield table.slice(start, batch_size)
