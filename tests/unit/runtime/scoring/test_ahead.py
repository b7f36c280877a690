"""Reading ahead: the same batches, in bounded memory, and nothing left behind."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest

from airflow_hydrogen.runtime.scoring.ahead import read_ahead
from airflow_hydrogen.runtime.scoring.sizing import Trial, scored

BATCH_BYTES = 800


def batch(number):
    return pa.record_batch([pa.array([number] * 100, pa.int64())], ["x"])


class Reader:
    """Gives batches, and knows how many it was asked for."""

    def __init__(self, count, fails=None):
        self.read = 0
        self.closed = threading.Event()
        self.asked = threading.Condition()
        self._count, self._fails = count, fails

    def batches(self):
        try:
            for number in range(self._count):
                if number == self._fails:
                    raise OSError("the store is gone")
                with self.asked:
                    self.read += 1
                    self.asked.notify_all()
                yield batch(number)
        finally:
            self.closed.set()

    def wait_for(self, count):
        with self.asked:
            assert self.asked.wait_for(lambda: self.read >= count, 10), self.read


def numbers(batches):
    return [found.column(0)[0].as_py() for found in batches]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize("limit", [1, BATCH_BYTES, 3 * BATCH_BYTES, 2**30])
def test_the_same_batches_come_in_the_same_order(limit):
    reader = Reader(50)
    assert numbers(read_ahead(reader.batches(), limit)) == list(range(50))
    assert reader.closed.is_set()
    assert not threads()


def test_as_many_wait_as_the_limit_has_room_for():
    reader = Reader(50)
    ahead = read_ahead(reader.batches(), 3 * BATCH_BYTES)
    next(ahead)
    reader.wait_for(4)  # one was taken, three wait
    assert reader.read == 4
    next(ahead)
    reader.wait_for(5)
    assert reader.read == 5
    ahead.close()


@pytest.mark.parametrize(("limit", "wait"), [(1, 1), (BATCH_BYTES, 1), (3 * BATCH_BYTES, 3)])
def test_none_is_read_that_has_to_wait_beyond_the_limit(limit, wait):
    """One that the reader holds is in memory too: batches may have a gigabyte."""
    reader = Reader(100)
    for taken, _ in enumerate(read_ahead(reader.batches(), limit), 1):
        reader.wait_for(min(taken + wait, 100))
        assert reader.read <= taken + wait


def test_an_error_comes_behind_the_batches_that_were_read_before():
    ahead = read_ahead(Reader(50, fails=7).batches(), 2**30)
    assert numbers(next(ahead) for _ in range(7)) == list(range(7))
    with pytest.raises(OSError, match="the store is gone"):
        next(ahead)
    assert not threads()


@pytest.mark.parametrize("taken", [1, 4])
def test_who_stops_early_has_the_reader_end_and_close_its_files(taken):
    reader = Reader(50)
    ahead = read_ahead(reader.batches(), 2 * BATCH_BYTES)
    for _ in range(taken):
        next(ahead)
    ahead.close()
    assert reader.closed.is_set()
    assert not threads()
    assert reader.read <= taken + 4


def test_nothing_is_read_before_the_first_is_wanted():
    reader = Reader(1)
    read_ahead(reader.batches(), 1)
    assert reader.read == 0
    assert not threads()


def test_nothing_is_read_while_a_call_is_measured():
    """What the reader takes of memory and processors would be held against the rows of the call."""
    began, ended, seen = [], [], []

    def batches():
        for number in range(50):
            began.append(number)
            np.sort(np.random.default_rng(number).random(20_000))  # lets other threads run
            ended.append(number)
            yield batch(number)

    def score(rows):
        before = len(began)
        np.sort(np.random.default_rng(0).random(20_000))
        seen.append((len(ended), before, len(began)))
        return [rows]

    trial = Trial(rows=100)
    for rows in read_ahead(batches(), 2**30):
        trial.is_over, trial.rows = False, 100
        assert list(scored(trial, score, lambda: 0, rows)) == [rows]
    assert all(len(set(counts)) == 1 for counts in seen)
    assert len(seen) == 50
