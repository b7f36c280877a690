"""Arrow batches -> predictions: what runs in Spark's Python workers."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_hydrogen.contract.errors import (
    ModelSignatureError,
    PartitionValueError,
    RaggedTensorError,
    UndecodableError,
    ValueRangeError,
)
from airflow_hydrogen.runtime.data.columns import stack, to_numpy
from airflow_hydrogen.runtime.data.streams import FAULT, RAW
from airflow_hydrogen.runtime.models.manifest import InputSpec, Manifest, OutputSpec
from airflow_hydrogen.runtime.models.predictors import Arrays, Predict, load_predictor
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT, Account
from airflow_hydrogen.runtime.scoring.bad_rows import BadRows
from airflow_hydrogen.runtime.scoring.quarantine import BadRowsFile, Quarantine
from airflow_hydrogen.runtime.scoring.sifting import Sifter

_TOLD = 200

# One model per Python worker process, kept from task to task while Spark reuses the process, and its files.
_loaded: dict[tuple[str, str, str | None], Predict] = {}
_files = ExitStack()


@dataclass(frozen=True)
class Sifting:
    """What a task does with rows that cannot be scored.

    Attributes:
        target: the partition that is written, for messages.
        quarantine: where they go; None: they are dropped.
        limit: how many a task may have before it fails, so that a hopeless night ends early; None: any.
    """

    target: str
    quarantine: Quarantine | None
    limit: int | None


@dataclass(frozen=True)
class Scorer:
    """Scores the batches of one task; a value, so that it pickles without a closure.

    Attributes:
        model_uri: the model's folder.
        manifest: of the model that the driver checked: no other one is used, whatever lies at the URI.
        predictor: loader in place of the manifest's own, or None.
        keep: columns of the source that pass through untouched.
        outputs: output name -> column name.
        constants: columns that must hold one value in every row: the partition that is written.
        batch_rows: rows of one call of the model.
        threads: math threads of one worker.
        sifting: what becomes of rows that cannot be scored; None: the first one fails the task.
    """

    model_uri: str
    manifest: Manifest
    predictor: str | None
    keep: tuple[str, ...]
    outputs: Mapping[str, str]
    constants: Mapping[str, str]
    batch_rows: int
    threads: int
    sifting: Sifting | None = None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Score one task's batches; the model is loaded when the first row comes."""
        if self.sifting is not None:
            yield from self._sift(batches, self.sifting)
            return
        for batch in rebatch(batches, self.batch_rows):
            self._require_constants(batch)
            _require_decoded(batch)
            outputs = self._model()(model_inputs(batch, self.manifest.signature.inputs))
            yield self._assemble(batch, outputs)

    def _sift(self, batches: Iterable[pa.RecordBatch], sifting: Sifting) -> Iterator[pa.RecordBatch]:
        """Score what can be scored; the last row of the task is its account."""
        account, sifter, schema = Account(), None, None
        inputs = self.manifest.signature.inputs
        with BadRowsFile(sifting.quarantine) if sifting.quarantine else nullcontext() as file:

            def set_aside(rows: pa.RecordBatch, bad: BadRows) -> None:
                account.bad[bad.fault] += rows.num_rows
                if file is not None:
                    file.add(rows, bad.reasons)

            for batch in rebatch(_counted(batches, account), self.batch_rows):
                self._require_constants(batch)
                if sifter is None:
                    to_arrays = partial(model_inputs, inputs=inputs)
                    sifter = Sifter(inputs, to_arrays, self._model(), self._assemble, set_aside)
                    schema = self._schema(batch).append(pa.field(ACCOUNT, pa.string()))
                decoded = _decoded(batch, set_aside)
                for scored in sifter.score(decoded) if decoded is not None else ():
                    yield scored.append_column(ACCOUNT, pa.nulls(scored.num_rows, pa.string()))
                account.require_few(sifting.limit, sifting.target, " so far in one task")
        if sifter is None or schema is None:
            return  # no rows
        account.files = [file.name] if file is not None and file.name else []
        account.unproven, account.failure = sifter.unproven, sifter.failure
        nulls = [pa.nulls(1, field.type) for field in schema][:-1]
        yield pa.RecordBatch.from_arrays([*nulls, pa.array([account.dumps()])], schema=schema)

    def _schema(self, batch: pa.RecordBatch) -> pa.Schema:
        """The columns that are written of a batch."""
        nothing = {
            spec.name: np.empty((0, *spec.shape), object if spec.dtype == "string" else spec.dtype)
            for spec in self.manifest.signature.outputs
        }
        return self._assemble(batch.slice(0, 0), nothing).schema

    def _model(self) -> Predict:
        key = (self.model_uri, self.manifest.version, self.predictor)
        if key not in _loaded:
            if _loaded:  # a worker that outlives a model must not hold two
                _loaded.clear()
                _files.close()
                gc.unfreeze()
            _loaded[key] = _files.enter_context(
                load_predictor(self.model_uri, self.manifest, self.predictor, self.threads)
            )
            # Spark's worker collects garbage after each task, and would look through all of the framework.
            gc.collect()
            gc.freeze()
        return _loaded[key]

    def _require_constants(self, batch: pa.RecordBatch) -> None:
        for column, value in self.constants.items():
            if column in batch.schema.names:
                _require_constant(column, batch.column(column), value)

    def _assemble(self, batch: pa.RecordBatch, outputs: Arrays) -> pa.RecordBatch:
        arrays = [batch.column(name) for name in self.keep]
        for spec in self.manifest.signature.outputs:
            if spec.name in self.outputs:
                arrays.append(output_column(spec, outputs, batch.num_rows))
        return pa.RecordBatch.from_arrays(arrays, [*self.keep, *self.outputs.values()])


def _counted(batches: Iterable[pa.RecordBatch], account: Account) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        account.rows_in += batch.num_rows
        yield batch


def rebatch(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Cut and join batches to `rows` rows each, the last one shorter; whole ones pass without a copy."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        start = 0
        while batch.num_rows - start >= rows - count:
            piece = batch.slice(start, rows - count)
            start += piece.num_rows
            yield _joined([*waiting, piece])
            waiting, count = [], 0
        if start < batch.num_rows:
            waiting.append(batch.slice(start))
            count += batch.num_rows - start
    if waiting:
        yield _joined(waiting)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def model_inputs(batch: pa.RecordBatch, inputs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """The arrays of each input: one copy from the columns of a batch.

    Args:
        batch: holds every column of the signature.
        inputs: the signature's inputs.

    Returns:
        Input name -> array of shape (rows, *shape) in the input's dtype; strings as objects.

    Raises:
        NullValueError, RaggedTensorError, ColumnTypeError, ValueRangeError: naming the column.
    """
    arrays = {}
    for spec in inputs:
        columns = [
            to_numpy(column.name, batch.column(batch.schema.get_field_index(column.name)), column.width)
            for column in spec.columns
        ]
        if spec.dtype == "string":
            arrays[spec.name] = columns[0].reshape(-1, *spec.shape)
            continue
        if "float" not in spec.dtype:
            for column, values in zip(spec.columns, columns, strict=True):
                if (lost := value_beyond(spec.dtype, values)) is not None:
                    raise ValueRangeError(column.name, spec.dtype, lost)
        matrix = columns[0] if len(columns) == 1 and not spec.shape else stack(columns, spec.dtype)
        if spec.shape and matrix.shape[1] != int(np.prod(spec.shape)):
            raise RaggedTensorError(spec.columns[0].name, int(np.prod(spec.shape)), [matrix.shape[1]])
        arrays[spec.name] = np.ascontiguousarray(matrix.reshape(-1, *spec.shape), dtype=spec.dtype)
    return arrays


def value_beyond(dtype: str, values: np.ndarray) -> Any:
    """A value that an integer or boolean dtype does not hold; None where it holds all."""
    wanted = np.dtype(dtype)
    if not values.size or np.can_cast(values.dtype, wanted, "safe"):
        return None
    if values.dtype.kind == "f" and not (whole := np.equal(np.floor(values), values)).all():  # NaN too
        return values[~whole][0]
    lowest, highest = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    # Python's own numbers: NumPy would compare uint64 with int64 as floats.
    smallest, largest = np.asarray(values.min()).item(), np.asarray(values.max()).item()
    return smallest if smallest < lowest else largest if largest > highest else None


def output_column(spec: OutputSpec, outputs: Arrays, rows: int) -> pa.Array:
    """An output tensor as a column: scalars of shape (rows,) or (rows, 1), vectors and more as lists.

    Raises:
        ModelSignatureError: the model gave another output or shape than its signature says.
    """
    if spec.name not in outputs:
        raise ModelSignatureError(
            f"the model gave outputs {', '.join(map(repr, outputs))}, its signature says {spec.name!r}"
        )
    values = np.asarray(outputs[spec.name])
    flattened = spec.shape == (1,) and values.shape == (rows,)
    if values.shape != (rows, *spec.shape) and not flattened:
        raise ModelSignatureError(
            f"output {spec.name!r} has shape {values.shape} for {rows} rows, its signature says "
            f"{(rows, *spec.shape)}"
        )
    if spec.dtype == "string":
        flat = pa.array(
            [item.decode() if isinstance(item, bytes) else item for item in values.ravel()], pa.string()
        )
    else:
        # Layers exist that give another type than their symbolic output says; Spark has no float16.
        dtype = "float32" if spec.dtype == "float16" else spec.dtype
        if "float" not in dtype and (lost := value_beyond(dtype, values)) is not None:
            raise ModelSignatureError(
                f"output {spec.name!r} gave {lost}, which its signature's {dtype} does not hold; cast it in "
                "the model"
            )
        flat = pa.array(np.ascontiguousarray(values, dtype=dtype).ravel())
    dimensions = () if spec.shape in ((), (1,)) else spec.shape
    for size in reversed(dimensions):
        offsets = np.arange(0, len(flat) + 1, size, dtype=np.int32)
        flat = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return flat


def _undecoded(batch: pa.RecordBatch) -> np.ndarray:
    """The places of rows that came from a message which is not what its schema says."""
    if FAULT not in batch.schema.names:
        return np.empty(0, int)
    return np.flatnonzero(batch.column(FAULT).is_valid().to_numpy(zero_copy_only=False))


def _require_decoded(batch: pa.RecordBatch) -> None:
    if (rows := _undecoded(batch)).size:
        first = int(rows[0])
        value = batch.column(RAW)[first].as_py()
        fault = batch.column(FAULT)[first].as_py()
        raise UndecodableError(rows.size, batch.num_rows, fault, _beginning(value))


def _decoded(
    batch: pa.RecordBatch, set_aside: Callable[[pa.RecordBatch, BadRows], None]
) -> pa.RecordBatch | None:
    """The rows that could be decoded, once the others are set aside; None where none could."""
    rows = _undecoded(batch)
    if not rows.size:
        return batch
    faults = np.array(batch.column(FAULT).take(pa.array(rows)).to_pylist(), object)
    for fault in dict.fromkeys(faults.tolist()):
        places = rows[faults == fault]
        set_aside(batch.take(pa.array(places)), BadRows(fault, places, [fault] * places.size))
    good = batch.filter(batch.column(FAULT).is_null())
    return good if good.num_rows else None


def _beginning(value: Any) -> str:
    """What came, in one line and not all of it."""
    text = repr(value)
    return text if len(text) <= _TOLD else f"{text[:_TOLD]} ..."


def _require_constant(name: str, column: pa.Array, value: str) -> None:
    """Compare as the column's own type: `hour=05` is the 5 of a column of integers."""
    found = pc.unique(column)
    if len(found) > 1 or (len(found) == 1 and found[0] != _partition_scalar(value, column.type)):
        raise PartitionValueError(name, value, [str(item) for item in found][:5])


def _partition_scalar(value: str, type_: pa.DataType) -> pa.Scalar | None:
    """A partition's text as a value of a column's type; None where it cannot be one."""
    ways = [type_]
    if pa.types.is_timestamp(type_):  # with an offset or without one, which then is UTC
        ways += [pa.timestamp(type_.unit, "UTC"), pa.timestamp(type_.unit)]
    for way in ways:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return pa.scalar(value, pa.string()).cast(way).cast(type_)
    return None
