"""A rank's shard of a Parquet dataset: row groups -> Arrow -> tf.data, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract.errors import (
    ColumnTypeError,
    DataError,
    EmptyDatasetError,
    InvalidJobError,
    MissingColumnError,
)
from airflow_hydrogen.runtime import progress
from airflow_hydrogen.runtime.data.columns import ColumnSpec, dtype_of, stack, to_numpy
from airflow_hydrogen.runtime.data.shards import RowSlice, assign_shards, rows_per_rank, shuffled_order
from airflow_hydrogen.runtime.storage import filesystems

if TYPE_CHECKING:
    import tensorflow as tf

Layout = Literal["matrix", "columns"]

_READ_ROWS = 8_192
_WINDOW_ROWS = 65_536
_WINDOW_BYTES = 32 * 1024 * 1024
_STREAM_BYTES = 1024 * 1024


@dataclass(frozen=True)
class FeatureLayout:
    """How `to_tf` turned columns into the model's input: the model's signature is made from it."""

    layout: Layout
    features: tuple[ColumnSpec, ...]


@dataclass(frozen=True)
class _RowGroup:
    file: str
    index: int
    rows: int


class DatasetShard:
    """The rows of one rank.

    Every rank reads the same number of rows in an epoch (`shards.assign_shards`), whatever the number of
    rows, row groups and ranks: all take the same number of steps. Which rows, and in which order, is a
    function of `seed` and the epoch: row groups are dealt out in another order each epoch, and rows are
    shuffled within windows of at most 65,536 rows and 32 MB, so memory does not depend on the size of
    the data.

    Args:
        uri: a folder of Parquet files with one schema, or one file.
        rank, size: this rank and the number of ranks.
        name: the dataset's name, for messages.
        seed: of the shuffle.
        shuffle: False keeps the files' order.

    Raises:
        EmptyDatasetError: no rows.
    """

    def __init__(
        self,
        uri: str,
        *,
        rank: int = 0,
        size: int = 1,
        name: str = "train",
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.uri, self.rank, self.size, self.name = uri, rank, size, name
        self.seed, self.shuffle = seed, shuffle
        self.layout: FeatureLayout | None = None
        self.error: DataError | None = None
        self._epoch: int | None = None
        self._next_epoch = 0
        self._filesystem, self._root = filesystems.resolve(uri)
        self._files = parquet_files(uri)
        self._groups, self._row_bytes = self._read_footers()
        self.total_rows = sum(group.rows for group in self._groups)
        if not self.total_rows:
            raise EmptyDatasetError(name, f"{len(self._files)} Parquet files in {uri}")

    def __len__(self) -> int:
        """Rows that this rank reads in an epoch: the same on every rank."""
        return rows_per_rank(self.total_rows, self.size)

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the files."""
        with pq.ParquetFile(self._open(self._files[0])) as file:
            return file.schema_arrow

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
            NullValueError, RaggedTensorError: while reading.
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

    def _open(self, file: str) -> Any:
        return self._filesystem.open_input_file(file)

    def _read_footers(self) -> tuple[list[_RowGroup], Mapping[str, float]]:
        groups: list[_RowGroup] = []
        column_bytes: dict[str, int] = {}
        for file in self._files:
            with self._open(file) as stream:
                metadata = pq.read_metadata(stream)
            for index in range(metadata.num_row_groups):
                group = metadata.row_group(index)
                if group.num_rows:
                    groups.append(_RowGroup(file, index, group.num_rows))
                for position in range(group.num_columns):
                    column = group.column(position)
                    top = column.path_in_schema.partition(".")[0]
                    column_bytes[top] = column_bytes.get(top, 0) + column.total_uncompressed_size
        rows = max(1, sum(group.rows for group in groups))
        return groups, {name: size / rows for name, size in column_bytes.items()}

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
        row_bytes = max(1.0, sum(self._row_bytes.get(name, 8.0) for name in columns))
        limit = max(batch_size, min(_WINDOW_ROWS, int(_WINDOW_BYTES / row_bytes)))
        random = np.random.default_rng([self.seed, epoch, self.rank])
        waiting: list[pa.Table] = []
        rows = 0
        for chunk in self._chunks(columns, self._slices(epoch), min(_READ_ROWS, limit)):
            progress.current().tick()
            waiting.append(chunk)
            rows += chunk.num_rows
            if rows >= limit:
                yield self._shuffled(waiting, random)
                waiting, rows = [], 0
        if waiting:
            yield self._shuffled(waiting, random)

    def _shuffled(self, chunks: list[pa.Table], random: np.random.Generator) -> pa.Table:
        table = pa.concat_tables(chunks)
        return table.take(random.permutation(table.num_rows)) if self.shuffle else table

    def _chunks(self, columns: Sequence[str], slices: Sequence[RowSlice], rows: int) -> Iterator[pa.Table]:
        for part in slices:
            group = self._groups[part.row_group]
            # Buffered and not read ahead: a column chunk streams through, however large the row group is.
            with pq.ParquetFile(self._open(group.file), buffer_size=_STREAM_BYTES, pre_buffer=False) as file:
                position = 0
                for batch in file.iter_batches(rows, row_groups=[group.index], columns=list(columns)):
                    start, stop = max(part.start - position, 0), min(part.stop - position, batch.num_rows)
                    if start < stop:
                        yield pa.Table.from_batches([batch.slice(start, stop - start)]).select(columns)
                    position += batch.num_rows
                    if position >= part.stop:
                        break

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
        with pq.ParquetFile(self._open(group.file)) as file:
            first = next(file.iter_batches(1, row_groups=[group.index], columns=[name]))
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


def parquet_files(uri: str) -> list[str]:
    """Paths of the Parquet files below a URI, hidden ones and Spark's markers left out, in name order."""
    from pyarrow.fs import FileType

    filesystem, root = filesystems.resolve(uri)
    if filesystem.get_file_info(root).type == FileType.File:
        return [root]
    return [f"{root}/{name}" for name, size in filesystems.list_files(uri) if size and not _is_hidden(name)]


def has_partition_folders(uri: str) -> bool:
    """Whether columns hide in folder names, as in `ds=2013-01-01/`."""
    return any("=" in name for name, _size in filesystems.list_files(uri))


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in name.split("/"))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]
