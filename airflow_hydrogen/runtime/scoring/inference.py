"""Arrow batches -> predictions: what runs in Spark's Python workers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from airflow_hydrogen.contract.errors import ModelSignatureError, UndecodableError
from airflow_hydrogen.contract.jobs import BatchRows
from airflow_hydrogen.contract.signatures import OutputSpec
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.runtime import devices, memory
from airflow_hydrogen.runtime.data.messages import FAULT, RAW
from airflow_hydrogen.runtime.models import engines
from airflow_hydrogen.runtime.models.inputs import model_inputs, value_beyond
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.predictors import Arrays, Predict, load_predictor
from airflow_hydrogen.runtime.scoring import sizing
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT, Account
from airflow_hydrogen.runtime.scoring.bad_rows import BadRows
from airflow_hydrogen.runtime.scoring.partitions import Partitions, counts, require_constant
from airflow_hydrogen.runtime.scoring.sifting import Sifter
from airflow_hydrogen.runtime.scoring.sizing import Trial
from airflow_hydrogen.runtime.sinks.divided_files import PARTITION, DividedFile
from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles
from airflow_hydrogen.runtime.storage import s3

ANSWER = pa.schema([(ACCOUNT, pa.string())])
"""What tasks answer that write their rows themselves."""

REASON = "reason"
"""The column of what is wrong with a bad row."""

_TOLD = 200
_ROWS_TOLD = 16384
_LARGEST = 2**30  # bytes of batches that are joined: a column of texts holds 2 GB
_Score = Callable[[pa.RecordBatch], Iterable[pa.RecordBatch]]
_SetAside = Callable[[pa.RecordBatch, BadRows], None]

# One model per Python worker process, kept from task to task while Spark reuses the process, its files, and
# what finds out how many rows it gets at once.
_loaded: dict[tuple[str, str, str | None, str], Predict] = {}
_trials: dict[tuple[str, str, str | None, str], Trial] = {}
_files = ExitStack()


@dataclass(frozen=True)
class Sifting:
    """What a task does with rows that cannot be scored.

    Attributes:
        target: what is written, for messages.
        limit: how many a task may have before it fails, so that a hopeless night ends early; None: any.
    """

    target: str
    limit: int | None


@dataclass(frozen=True)
class Scorer:
    """Scores the batches of one task; a value, so that it pickles without a closure.

    Attributes:
        model_uri: the model's folder.
        manifest: of the model that the driver checked: no other one is used, whatever lies at the URI.
        predictor: loader in place of the manifest's own, or None.
        engine: what runs the model, in every task the same.
        keep: columns of the source that pass through untouched.
        outputs: output name -> column name.
        added: columns that every row gets, behind the outputs -> their text.
        constants: columns that must hold one value in every row: the partition that is written.
        partitions: those that are written, where they are many; None: they are not.
        batch_rows: rows of one call of the model, or "auto": see `sizing`.
        threads: math threads of one worker.
        sifting: what becomes of rows that cannot be scored; None: the first one fails the task.
        output: where scored rows are written; None: Spark gets them.
        bad_output: where rows go that cannot be scored; None: they are dropped.
        s3: what opens S3.
        hides_gpus: a worker sees no GPUs but those that Spark gave to its task, which may be none.
    """

    model_uri: str
    manifest: Manifest
    predictor: str | None
    engine: str
    keep: tuple[str, ...]
    outputs: Mapping[str, str]
    constants: Mapping[str, str]
    batch_rows: BatchRows
    threads: int
    sifting: Sifting | None = None
    output: TaskFiles | None = None
    bad_output: TaskFiles | None = None
    added: Mapping[str, str] = field(default_factory=dict)
    partitions: Partitions | None = None
    s3: S3Access | None = field(default=None, repr=False)
    hides_gpus: bool = False

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Score one task's batches; the model is loaded when the first row comes.

        Yields:
            Scored rows, and at last the task's account in a row of its own. Where the task writes its rows
            itself there is a row for some of them instead, and the account: Spark sees how far it is.
        """
        s3.use(self.s3)  # each task anew: the process may have scored for another job
        if self.hides_gpus:
            devices.hold(devices.of_this_task())
        account, schema = Account(), ANSWER
        score: _Score | None = None
        sifter = None
        trial = self._trial()
        done = told = 0
        with _file(self.output) as written, _file(self.bad_output) as bad:
            for batch in rebatch(_counted(batches, account), lambda: trial.rows if trial else self.rows_told):
                self._require_constants(batch)
                if self.partitions is not None:
                    batch = self.partitions.numbered(batch)
                while written is not None and told < done // self.rows_told:
                    told += 1
                    yield _rows_of_nulls(ANSWER)
                done += batch.num_rows
                if score is None:
                    self._model()  # before the first call, which may be timed
                    set_aside = _set_aside(account, bad)
                    sifter = self._sifter(set_aside) if self.sifting else None
                    score = self._score if sifter is None else partial(_sifted, sifter, set_aside)
                    if trial is not None:
                        score = partial(sizing.scored, trial, score, lambda: account.rows_bad)
                    schema = ANSWER if written is not None else self._schema(batch)
                for scored in score(batch):
                    account.rows += scored.num_rows
                    if self.partitions is not None:
                        account.partitions.update(counts(scored))
                    if written is None:
                        yield scored.append_column(ACCOUNT, pa.nulls(scored.num_rows, pa.string()))
                    else:
                        written.add(scored)
                if self.sifting is not None:
                    account.require_few(self.sifting.limit, self.sifting.target, " so far in one task")
        if score is None:
            return  # no rows
        account.files = [] if written is None else written.names
        if trial is not None:
            account.batch_rows[trial.fastest] += account.rows_in
        account.bad_files = [] if bad is None else bad.names
        account.notes = _notes(self.engine)
        if sifter is not None:
            account.unproven, account.failure = sifter.unproven, sifter.failure
        yield _rows_of_nulls(schema).set_column(
            len(schema) - 1, schema.field(ACCOUNT), pa.array([account.dumps()])
        )

    def _score(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """All rows of a batch, or the error of the first that cannot be scored."""
        _require_decoded(batch)
        return [self._assemble(batch, self._model()(model_inputs(batch, self.manifest.signature.inputs)))]

    def _sifter(self, set_aside: _SetAside) -> Sifter:
        inputs = self.manifest.signature.inputs
        return Sifter(inputs, partial(model_inputs, inputs=inputs), self._model(), self._assemble, set_aside)

    def _schema(self, batch: pa.RecordBatch) -> pa.Schema:
        """The columns that Spark gets for a batch."""
        nothing = {
            spec.name: np.empty((0, *spec.shape), object if spec.dtype == "string" else spec.dtype)
            for spec in self.manifest.signature.outputs
        }
        return self._assemble(batch.slice(0, 0), nothing).schema.append(ANSWER.field(ACCOUNT))

    def _model(self) -> Predict:
        if (key := self._key) not in _loaded:
            if _loaded:  # a worker that outlives a model must not hold two
                _loaded.clear()
                _files.close()
                gc.unfreeze()
                gc.collect()
                memory.give_back()
            _loaded[key] = _files.enter_context(
                load_predictor(self.model_uri, self.manifest, self.predictor, self.threads, self.engine)
            )
            # Spark's worker collects garbage after each task, and would look through all of the framework.
            gc.collect()
            gc.freeze()
            memory.keep_freed()
        return _loaded[key]

    @property
    def rows_told(self) -> int:
        """Rows for which a task that writes them itself answers with one: Spark sees how far it is."""
        return _ROWS_TOLD if self.batch_rows == "auto" else self.batch_rows

    def _trial(self) -> Trial | None:
        """What finds out how many rows the model gets at once, from task to task; None: that is known."""
        if self.batch_rows != "auto":
            return None
        if self._key not in _trials:
            _trials.clear()
            _trials[self._key] = Trial()
        return _trials[self._key]

    @property
    def _key(self) -> tuple[str, str, str | None, str]:
        return (self.model_uri, self.manifest.version, self.predictor, self.engine)

    def _require_constants(self, batch: pa.RecordBatch) -> None:
        for column, value in self.constants.items():
            if column in batch.schema.names:
                require_constant(column, batch.column(column), value)

    def _assemble(self, batch: pa.RecordBatch, outputs: Arrays) -> pa.RecordBatch:
        arrays = [batch.column(name) for name in self.keep]
        for spec in self.manifest.signature.outputs:
            if spec.name in self.outputs:
                arrays.append(output_column(spec, outputs, batch.num_rows))
        arrays += [pa.repeat(pa.scalar(text, pa.string()), batch.num_rows) for text in self.added.values()]
        names = [*self.keep, *self.outputs.values(), *self.added]
        if self.partitions is not None:
            arrays.append(batch.column(PARTITION))
            names.append(PARTITION)
        return pa.RecordBatch.from_arrays(arrays, names)


def _notes(engine: str) -> list[str]:
    """What the driver's log has to say of a scoring that does not run where it was to run."""
    wanted = devices.held()
    if not wanted or engine != engines.TENSORFLOW:
        return []
    import tensorflow as tf

    seen = len(tf.config.list_physical_devices("GPU"))
    if seen == len(wanted):
        return []
    return [
        f"TensorFlow sees {seen} of the {len(wanted)} GPUs of a task: it has to be installed with CUDA where "
        "tasks run"
    ]


def _set_aside(account: Account, file: TaskFile | DividedFile | None) -> _SetAside:
    """What takes the rows that cannot be scored: into the account, and into a file where there is one."""

    def set_aside(rows: pa.RecordBatch, bad: BadRows) -> None:
        account.bad[bad.fault] += rows.num_rows
        if PARTITION in rows.schema.names:
            account.bad_partitions.update(counts(rows))
        if file is not None:
            file.add(rows.append_column(REASON, pa.array(bad.reasons, pa.string())))

    return set_aside


def _sifted(sifter: Sifter, set_aside: _SetAside, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    """What is written of a batch, once the rows that could not be decoded are set aside."""
    decoded = _decoded(batch, set_aside)
    return sifter.score(decoded) if decoded is not None else []


def _file(place: TaskFiles | None) -> AbstractContextManager[TaskFile | DividedFile | None]:
    if place is None:
        return nullcontext()
    return DividedFile(place) if place.divided else TaskFile(place)


def _rows_of_nulls(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(1, item.type) for item in schema], schema=schema)


def _counted(batches: Iterable[pa.RecordBatch], account: Account) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        account.rows_in += batch.num_rows
        yield batch


def rebatch(batches: Iterable[pa.RecordBatch], wanted: Callable[[], int]) -> Iterator[pa.RecordBatch]:
    """Cut and join batches to the rows that are wanted, the last one shorter; whole ones are not copied.

    Where that many rows are more than fits into a batch, there are several of fewer rows.

    Args:
        batches: of any size.
        wanted: is asked for the rows of the next batch whenever one was taken.
    """
    rows = wanted()
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        start = 0
        while batch.num_rows - start >= rows - count:
            piece = batch.slice(start, rows - count)
            start += piece.num_rows
            yield from _joined([*waiting, piece])
            waiting, count, rows = [], 0, wanted()
        if start < batch.num_rows:
            waiting.append(batch.slice(start))
            count += batch.num_rows - start
    if waiting:
        yield from _joined(waiting)


def _joined(batches: Sequence[pa.RecordBatch]) -> Sequence[pa.RecordBatch]:
    """One batch; those that are too large for a column of one stay as they are."""
    if len(batches) == 1 or sum(batch.nbytes for batch in batches) > _LARGEST:
        return batches
    joined: Sequence[pa.RecordBatch] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


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
        # A copy: rows wait to be written, and the model may use its array for the next batch.
        flat = pa.array(np.array(values, dtype=dtype).ravel())
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


def _decoded(batch: pa.RecordBatch, set_aside: _SetAside) -> pa.RecordBatch | None:
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
