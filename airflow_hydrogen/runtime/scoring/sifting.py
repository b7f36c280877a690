"""Score what can be scored of a task's rows, and set the others aside.

A batch that goes through costs nothing more than it does otherwise. Of one that does not, bad values are
found by columns (`bad_rows`), and rows that the model fails on by halving the batch: `k` such rows among `n`
take at most `2 k log2(n) + 3` calls of the model, and `2 n + 3` where all fail.

**Whose fault an exception is.** A model that fails whatever it is given (a service that is down, a lost GPU)
must fail the job, and not set 1e9 rows aside. So rows are blamed only where the model scores others:

- a row that it scored earlier in this task is scored again, before a batch is halved and after it;
- where it has scored none yet, it has to score one of `TRIALS` rows that are spread evenly over the batch.
  Where that fails in a task of very few rows, the driver decides: another task must have scored some.

Memory that is out and modules that are not there are no row's fault at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from airflow_hydrogen.contract.errors import (
    HydrogenError,
    ModelFailedError,
    NullValueError,
    RaggedTensorError,
    ValueRangeError,
)
from airflow_hydrogen.contract.signatures import InputSpec
from airflow_hydrogen.runtime.models.predictors import Arrays, Predict
from airflow_hydrogen.runtime.scoring.bad_rows import BadRows, find_bad_rows

TRIALS = 32

# TensorFlow's and PyTorch's names for memory that is out; neither is imported here.
_OUT_OF_MEMORY = {"ResourceExhaustedError", "OutOfMemoryError"}
_BEGINNING, _END = 100, 400


class Sifter:
    """Scores the batches of one task.

    Args:
        inputs: the model's.
        to_arrays: makes them of a batch, or raises the error of a value that they cannot hold.
        predict: the model.
        assemble: makes of some rows and the model's outputs for them what is written.
        set_aside: takes the rows that cannot be scored, as a batch and what is wrong with each.

    Attributes:
        unproven: rows that were set aside because the model failed, which has scored none in this task.
        failure: the first exception of the model among those, as text.
    """

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        to_arrays: Callable[[pa.RecordBatch], Arrays],
        predict: Predict,
        assemble: Callable[[pa.RecordBatch, Arrays], pa.RecordBatch],
        set_aside: Callable[[pa.RecordBatch, BadRows], None],
    ) -> None:
        self._inputs = inputs
        self._to_arrays = to_arrays
        self._predict = predict
        self._assemble = assemble
        self._set_aside = set_aside
        self._scored_before: Arrays | None = None
        self.unproven = 0
        self.failure = ""

    def score(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """What is written of a batch: its good rows in their order, in one or more pieces.

        Raises:
            ModelFailedError: the model fails whatever the row.
        """
        try:
            arrays = self._to_arrays(batch)
        except (NullValueError, RaggedTensorError, ValueRangeError):
            found = find_bad_rows(batch, self._inputs)
            if not found and batch.num_rows == 1:
                raise
        else:
            return self._score_arrays(batch, arrays)
        if found:
            return self._score_without(batch, found)
        # Each row is one for itself, and they make no one tensor: lists of 2 x 3 and of 3 x 2 numbers.
        middle = batch.num_rows // 2
        return [*self.score(batch.slice(0, middle)), *self.score(batch.slice(middle))]

    def _score_without(self, batch: pa.RecordBatch, found: Sequence[BadRows]) -> list[pa.RecordBatch]:
        good = np.ones(batch.num_rows, bool)
        for bad in found:
            good[bad.rows] = False
            self._put_aside(batch, bad)
        return self.score(batch.filter(pa.array(good))) if good.any() else []

    def _score_arrays(self, batch: pa.RecordBatch, arrays: Arrays) -> list[pa.RecordBatch]:
        try:
            outputs = self._call(arrays, 0, batch.num_rows)
        except Exception as error:
            failure = error
        else:
            return [self._assemble(batch, outputs)]
        _require_row_error(failure)
        self._require_working(arrays, batch.num_rows, failure)
        good: list[tuple[int, int, Arrays]] = []
        bad: list[tuple[int, Exception]] = []
        self._halve(arrays, 0, batch.num_rows, failure, good, bad)
        if bad and self._scored_before is not None:
            self._require_still_working(failure)
        by_fault: dict[str, list[tuple[int, str]]] = {}
        for row, cause in bad:
            fault = f"the model failed with {type(cause).__name__}"
            by_fault.setdefault(fault, []).append((row, f"the model failed with {_text(cause)}"))
        for fault, rows in by_fault.items():
            places, reasons = zip(*rows, strict=True)
            self._put_aside(batch, BadRows(fault, np.array(places), reasons))
        return [self._assemble(batch.slice(start, stop - start), outputs) for start, stop, outputs in good]

    def _halve(
        self,
        arrays: Arrays,
        start: int,
        stop: int,
        failure: Exception,
        good: list[tuple[int, int, Arrays]],
        bad: list[tuple[int, Exception]],
    ) -> None:
        """Look for the rows on which the model fails, in a span on which it has failed."""
        if stop - start == 1:
            bad.append((start, failure.with_traceback(None)))  # which would keep the arrays alive
            return
        for first, last in pairwise((start, (start + stop) // 2, stop)):
            try:
                good.append((first, last, self._call(arrays, first, last)))
                continue
            except Exception as error:
                again = error
            _require_row_error(again)
            self._halve(arrays, first, last, again, good, bad)

    def _call(self, arrays: Arrays, start: int, stop: int) -> Arrays:
        outputs = self._predict({name: array[start:stop] for name, array in arrays.items()})
        if self._scored_before is None:
            self._scored_before = {name: array[start : start + 1].copy() for name, array in arrays.items()}
            self.unproven = 0
        return outputs

    def _require_working(self, arrays: Arrays, rows: int, failure: Exception) -> None:
        """Raise unless the model scores any row at all."""
        if self._scored_before is not None:
            self._require_still_working(failure)
            return
        for row in np.unique(np.linspace(0, rows - 1, min(rows, TRIALS)).astype(int)).tolist():
            try:
                self._call(arrays, row, row + 1)
            except Exception as error:
                again = error
            else:
                return
            _require_row_error(again)
        self.unproven += rows
        self.failure = self.failure or _text(failure)
        if self.unproven > TRIALS:
            raise ModelFailedError(
                self.failure, f"it scores none of {min(rows, TRIALS)} rows one by one"
            ) from failure

    def _require_still_working(self, failure: Exception) -> None:
        assert self._scored_before is not None
        try:
            self._predict(self._scored_before)
        except Exception as error:
            evidence = "it does not score a row any more that it scored before"
            raise ModelFailedError(_text(failure), evidence) from error

    def _put_aside(self, batch: pa.RecordBatch, bad: BadRows) -> None:
        self._set_aside(batch.take(pa.array(bad.rows)), bad)


def _require_row_error(error: Exception) -> None:
    """Raise an exception of the model again that no row can be blamed for."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, (MemoryError, ImportError, HydrogenError)) or names & _OUT_OF_MEMORY:
        raise error


def _text(error: Exception) -> str:
    """An exception in one line: of a long one its beginning and its end, where TensorFlow says what it is."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if len(text) <= _BEGINNING + _END:
        return text
    return f"{text[:_BEGINNING]} ... {text[-_END:]}"
