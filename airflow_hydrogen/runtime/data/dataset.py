"""A rank's shard of a Parquet dataset: row groups -> Arrow -> tf.data, in constant memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    ColumnTypeError,
    DataError,
    EmptyDatasetError,
    InvalidJobError,
    MissingColumnError,
)
from airflow_hydrogen.runtime.data.columns import ColumnSpec, dtype_of, stack, to_numpy
from airflow_hydrogen.runtime.data.files import DataFile, DatasetFiles, list_dataset, read_footers
from airflow_hydrogen.runtime.data.opened import OpenedFile
from airflow_hydrogen.runtime.data.shards import RowSlice, assign_shards, rows_per_rank, shuffled_order
from airflow_hydrogen.runtime.data.windows import plan_windows, read_windows

if TYPE_CHECKING:
    import tensorflow as tf

Layout = Literal["matrix", "columns"]

_PROBE_BYTES = 64 * 1024


@dataclass(frozen=True)
class FeatureLayout:
    """How `to_tf` turned columns into the model's input: the model's signature is made from it."""

    layout: Layout
    features: tuple[ColumnSpec, ...]


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
        seed: of the shuffle.
        shuffle: False keeps the files' order.

    Raises:
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
        self.rank, self.size, self.name = rank, size, name
        self.seed, self.shuffle = seed, shuffle
        self.layout: FeatureLayout | None = None
        self.error: DataError | None = None
        self._epoch: int | None = None
        self._next_epoch = 0
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
        rest: pa.Table | None = None
        for window in self._windows(self._checked("columns", columns), self._begin_epoch(), batch_size):
            table = window if rest is None else pa.concat_tables([rest, window])
            whole = table.num_rows - table.num_rows % batch_size
            for start in range(0, whole, batch_size):
                yield _one_batch(table.slice(start, batch_size))
            rest = table.slice(whole) if whole < table.num_rows else None
        if rest is not None:
            yield _one_batch(rest)

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

        if batch_size < 1:
            raise InvalidJobError(f"batch_size must be at least 1, found {batch_size}")
        labels = [label] if isinstance(label, str) else list(label or [])
        self._checked("label", labels)
        wanted = self._checked(
            "feature",
            [name for name in self.schema.names if name not in labels] if features is None else features,
        )
        self.layout = FeatureLayout(layout, tuple(self._spec(name) for name in wanted))
        encode = _Encoder(self.layout, tuple(self._spec(name) for name in labels), isinstance(label, str))

        def windows() -> Iterator[Any]:
            try:
                for table in self._windows([*wanted, *labels], self._begin_epoch(), batch_size):
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

    # --- reading -------------------------------------------------------------------------------------

    def _begin_epoch(self) -> int:
        epoch = self._next_epoch if self._epoch is None else self._epoch
        self._next_epoch = epoch + 1
        self._epoch = None
        return epoch

    def _slices(self, epoch: int) -> list[RowSlice]:
        counts = [group.rows for group in self._groups]
        order = shuffled_order(len(counts), self.seed, epoch) if self.shuffle else None
        return assign_shards(counts, self.size, order)[self.rank]

    def _windows(self, columns: Sequence[str], epoch: int, batch_size: int) -> Iterator[pa.Table]:
        """The rank's rows of an epoch in shuffled windows of bounded size."""
        sizes = [self.files.columns[name] for name in columns]
        remote = uris.local_path(self.files.uri) is None
        plan = plan_windows(sizes, self.total_rows / len(self._groups), batch_size, remote=remote)
        if not self.shuffle:
            plan = replace(plan, groups=1)
        random = np.random.default_rng([self.seed, epoch, self.rank])

        def open_group(number: int) -> tuple[OpenedFile, int]:
            group = self._groups[number]
            return self.files.open(group.file, plan.buffer_bytes), group.index

        # Files may differ in whether they allow nulls: the tables that are made of them must not.
        schema = pa.schema([self.schema.field(name).with_nullable(True) for name in columns])
        for table in read_windows(self._slices(epoch), plan, schema, batch_size, open_group):
            yield table.take(random.permutation(table.num_rows)) if self.shuffle else table

    # --- columns -------------------------------------------------------------------------------------

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


class _Encoder:
    """A window of rows -> the arrays that `to_tf` yields."""

    def __init__(self, layout: FeatureLayout, labels: tuple[ColumnSpec, ...], single_label: bool) -> None:
        self._layout, self._labels, self._single_label = layout, labels, single_label
        if layout.layout == "matrix":
            for spec in layout.features:
                if spec.dtype == "string":
                    raise ColumnTypeError(
                        spec.name, "a number", "string", "a matrix holds numbers: use layout='columns'"
                    )

    def __call__(self, table: pa.Table) -> Any:
        arrays = {
            spec.name: to_numpy(spec.name, table.column(spec.name), spec.width)
            for spec in (*self._layout.features, *self._labels)
        }
        features = [arrays[spec.name] for spec in self._layout.features]
        inputs: Any = (
            stack(features)
            if self._layout.layout == "matrix"
            else {spec.name: arrays[spec.name] for spec in self._layout.features}
        )
        if not self._labels:
            return inputs
        if self._single_label:
            return inputs, arrays[self._labels[0].name]
        return inputs, {spec.name: arrays[spec.name] for spec in self._labels}

    def tensor_specs(self, tf: Any) -> Any:
        """TensorFlow's description of what `__call__` returns."""

        def spec_of(spec: ColumnSpec) -> Any:
            shape = (None,) if spec.width is None else (None, spec.width)
            return tf.TensorSpec(
                shape, tf.string if spec.dtype == "string" else tf.dtypes.as_dtype(spec.dtype)
            )

        features = self._layout.features
        inputs: Any = (
            tf.TensorSpec((None, sum(spec.values for spec in features)), tf.float32)
            if self._layout.layout == "matrix"
            else {spec.name: spec_of(spec) for spec in features}
        )
        if not self._labels:
            return inputs
        if self._single_label:
            return inputs, spec_of(self._labels[0])
        return inputs, {spec.name: spec_of(spec) for spec in self._labels}


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]
