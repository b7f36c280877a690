from __future__ import annotations

import os
import subprocess
import sys
import time
import weakref

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.scoring import sizing
from airflow_hydrogen.runtime.scoring.sizing import TRIED, Trial, scored

PLENTY = 2**40


def settled(seconds_of, grown_of=lambda rows: rows, room=PLENTY):
    """A trial that is over, and the sizes that it has tried."""
    trial, tried = Trial(), []
    while not trial.is_over:
        tried.append(trial.rows)
        trial.note(seconds_of(trial.rows), grown_of(trial.rows), room)
    return trial, [*dict.fromkeys(tried)]


@pytest.mark.parametrize(
    ("seconds_of", "rows", "last"),
    [
        (lambda rows: 0.001 + rows * 1e-9, 65536, 65536),  # a call costs more than its rows
        (lambda rows: rows * 1e-6, 64, 65536),  # rows cost the same, whatever a call holds: memory is saved
        (lambda rows: 0.0001 + rows * (1e-6 if rows <= 1024 else 2e-6), 1024, 16384),  # caches are full
        (lambda rows: 9 * rows if rows == 256 else 0.001 + rows * 1e-9, 65536, 65536),  # one size is unlucky
    ],
)
def test_the_fastest_is_kept_and_the_smallest_of_those(seconds_of, rows, last):
    trial, tried = settled(seconds_of)
    assert (trial.rows, tried[-1]) == (rows, last)


def test_the_first_call_of_a_size_does_not_count():
    trial = Trial()
    for seconds in (9.0, 0.25, 0.75):
        trial.note(seconds, 0, PLENTY)
    assert trial.rates == {64: 64 / 0.5}
    assert (trial.rows, trial.fastest) == (256, 64)


def test_what_other_work_takes_of_the_processors_does_not_count(monkeypatch):
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * os.cpu_count())
    ]
    try:
        began, cpu, watch = time.perf_counter(), time.process_time(), sizing._Watch()
        while time.process_time() - cpu < 0.3:
            pass
        seconds, wall = watch.seconds(), time.perf_counter() - began
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert 0.2 < seconds < 0.45 < wall


def test_what_measuring_takes_does_not_count(monkeypatch):
    def look():
        began = time.process_time()
        while time.process_time() - began < 0.2:
            pass
        return 0.0

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(sizing, "_waited_s", look)
    assert sizing._Watch().seconds() < 0.1


def test_nothing_is_tried_that_would_not_fit():
    trial, tried = settled(lambda rows: 0.001, grown_of=lambda rows: rows * 1000, room=4 * 1024 * 1000)
    assert (trial.rows, tried) == (4096, [64, 256, 1024, 4096])
    trial, tried = settled(lambda rows: 0.001, room=0)
    assert (trial.rows, tried) == (64, [64])


@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(0, 2**40)), min_size=1), st.integers(0, 2**40))
def test_whatever_is_measured_a_size_that_was_tried_is_kept(calls, room):
    trial, tried = Trial(), set()
    for seconds, grown in calls:
        tried.add(trial.rows)
        trial.note(seconds, grown, room)
        assert trial.rows in TRIED
        assert trial.fastest in tried
        if trial.is_over:
            assert trial.rows in trial.rates
            break


def batch_of(rows):
    return pa.record_batch({"a": pa.array(np.arange(rows))})


def run(trial, score, rows, bad_rows=lambda: 0):
    """Score that many rows as a task does; the rows that came out."""
    found, start, batch = [], 0, batch_of(rows)
    while start < rows:
        part = batch.slice(start, trial.rows)
        start += part.num_rows
        for piece in scored(trial, score, bad_rows, part):
            found += piece.column("a").to_pylist()
    return found


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        type("ResourceExhaustedError", (Exception,), {})("OOM when allocating tensor"),
        RuntimeError("bfc_arena.cc: Failed to allocate memory for requested buffer of size 4"),
    ],
)
def test_what_does_not_fit_is_scored_in_fewer_rows_and_each_row_once(error):
    given_rows = []

    def score(batch):
        if batch.num_rows > 256:
            raise error
        given_rows.extend(batch.column("a").to_pylist())
        return [batch]

    trial = Trial()
    assert run(trial, score, 20_000) == [*range(20_000)] == given_rows
    assert trial.is_over
    assert trial.rows <= 256


def test_a_call_that_does_not_fit_any_more_is_made_again_with_fewer_rows():
    free, given_rows = [4096], []

    def score(batch):
        if batch.num_rows > free[0]:
            raise MemoryError("no room")
        given_rows.extend(batch.column("a").to_pylist())
        return [batch]

    trial = Trial(rows=4096, is_over=True, rates={64: 1.0, 256: 2.0, 1024: 3.0, 4096: 4.0})
    assert run(trial, score, 8192) == [*range(8192)]
    free[0] = 300
    given_rows.clear()
    assert run(trial, score, 8192) == [*range(8192)] == given_rows
    assert (trial.rows, trial.is_over) == (256, True)
    free[0] = 10
    with pytest.raises(MemoryError, match="no room"):
        run(trial, score, 8192)


def test_a_call_that_is_made_again_has_the_memory_of_the_one_that_failed():
    class Tensor:
        pass

    alive = []

    def score(batch):
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        if batch.num_rows == 4096:
            raise MemoryError("no room")
        assert alive[0]() is None
        return [batch]

    run(Trial(rows=4096, is_over=True, rates={64: 1.0, 4096: 4.0}), score, 4096)


def test_a_first_call_that_does_not_fit_fails():
    def score(batch):
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        run(Trial(), score, 10)


def test_rows_that_were_set_aside_are_not_set_aside_again():
    bad = []

    def score(batch):
        if batch.num_rows > 64:
            bad.append(1)
            raise MemoryError("no room")
        return [batch]

    with pytest.raises(MemoryError, match="no room"):
        run(Trial(), score, 20_000, lambda: len(bad))
    assert len(bad) == 1


def test_a_call_with_bad_rows_and_a_last_short_one_say_nothing():
    bad = []

    def score(batch):
        bad.append(1)
        return [batch]

    trial = Trial()
    run(trial, score, 640, lambda: len(bad))
    assert (trial.rows, trial.fastest, trial.rates) == (64, 64, {})
    run(trial, lambda batch: [batch], 63)
    assert trial.rates == {}


def test_where_most_calls_have_bad_rows_more_rows_are_tried_all_the_same():
    bad = []

    def score(batch):
        bad.extend(value for value in batch.column("a").to_pylist() if value % 10 == 0)
        time.sleep(0.001)  # whatever the rows: more of them are faster
        return [batch]

    trial = Trial()
    run(trial, score, 300_000, lambda: len(bad))
    assert trial.rows > 4096


def test_room_is_a_part_of_what_is_free():
    assert 0 < sizing.room() < PLENTY


@pytest.mark.parametrize(
    ("folder", "limit", "used", "cached"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_files_that_a_container_has_read_take_none_of_its_room(
    folder, limit, used, cached, tmp_path, monkeypatch
):
    monkeypatch.setattr(sizing, "_CONTAINER", tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    container = tmp_path / folder
    container.mkdir(exist_ok=True)
    (container / limit).write_text("104857600\n")
    (container / used).write_text("104000000\n")
    (container / "memory.stat").write_text(f"anon 23\nactive_file 5\n{cached} 80000000\n")
    assert sizing.room() == (104857600 - 24000000) // 2 // 2
    (container / limit).write_text("max\n")
    assert sizing.room() > 2**25


def test_memory_that_a_call_takes_is_seen(monkeypatch):
    seen = []
    monkeypatch.setattr(Trial, "note", lambda self, seconds, grown, room: seen.append(grown))

    def score(batch):
        np.ones(2**24)  # and it is given back
        return [batch]

    list(scored(Trial(), score, lambda: 0, batch_of(64)))
    assert seen[0] > 100 * 2**20


def test_weights_that_a_call_maps_are_no_memory_that_it_takes(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Trial, "note", lambda self, seconds, grown, room: seen.append(grown))
    (tmp_path / "weights").write_bytes(bytes(2**27))
    weights = np.memmap(tmp_path / "weights", "uint8", "r")

    def score(batch):
        assert not weights[::4096].any()
        return [batch]

    list(scored(Trial(), score, lambda: 0, batch_of(64)))
    assert seen[0] < 2**26
