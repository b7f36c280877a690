from __future__ import annotations

import threading
from types import ModuleType

import pytest

from airflow_hydrogen.runtime import progress
from airflow_hydrogen.runtime.progress import INIT, Progress, beat_interval_s, watch_horovod


def test_marks_count_and_name_what_is_done():
    now = [0.0]
    found = Progress(lambda: now[0])
    assert found.beat(60).marks == 0
    with found.waiting_in("allreduce 'x'"):
        now[0] = 5.0
        beat = found.beat(60)
        assert (beat.marks, beat.activity, beat.idle_s, beat.waiting) == (1, "allreduce 'x'", 5.0, True)
    assert (found.beat(60).activity, found.beat(60).waiting) == ("start", False)
    found.tick()
    assert (found.beat(60).marks, found.beat(60).activity) == (3, "start")


def test_an_idle_rank_says_where_its_main_thread_stands():
    (*_outer, inner) = Progress().beat(0).stack
    assert inner.endswith("in _stack")


@pytest.mark.parametrize(("timeout_s", "interval_s"), [(None, 5.0), (600.0, 5.0), (10.0, 1.0), (0.5, 0.2)])
def test_there_are_ten_beats_in_a_stall(timeout_s, interval_s):
    assert beat_interval_s(timeout_s) == interval_s


def test_horovods_functions_leave_marks(monkeypatch):
    monkeypatch.setattr(progress, "_progress", Progress())
    seen = []
    module = ModuleType("mpi_ops")
    module._allreduce = lambda tensor, name=None: seen.append(progress.current().beat(60).activity) or tensor
    module.init = lambda: seen.append(progress.current().beat(60).activity)
    module.size = size = lambda: 2
    watch_horovod(module)
    watch_horovod(module)
    module.init()
    assert module._allreduce(7, name="x") == 7
    assert module._allreduce(8) == 8
    assert seen == [INIT, "allreduce 'x'", "allreduce"]
    assert module.size is size
    assert progress.current().beat(60).marks == 6


def test_a_rank_says_at_once_that_it_comes_to_init_and_that_it_has_left_it(monkeypatch):
    monkeypatch.setattr(progress, "_progress", Progress())
    monkeypatch.setattr(progress, "_tell", progress._tell_nobody)
    beats, first = [], threading.Event()

    def send(beat):
        beats.append(beat)
        first.set()

    progress.start_beating(send, 600)
    assert first.wait(10)
    module = ModuleType("mpi_ops")
    module.init = lambda: None
    module.allreduce = lambda: None
    watch_horovod(module)
    module.init()
    module.allreduce()
    assert [beat.activity for beat in beats] == ["start", INIT, "start"]
