"""Who works at a URI: the first one, until it is dead, or until a later try of the same work comes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import OwnershipLostError, UriInUseError
from airflow_hydrogen.runtime.storage import owners
from airflow_hydrogen.runtime.storage.owners import STALE_S, Owner, Ownership, Process, judge

RUN = {"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": 0}
OTHER = {**RUN, "map_index": 1}


def owned(path: Path, work: dict[str, object] = RUN, on_lost: object = None) -> Ownership:
    return Ownership(str(path / "model"), "model_uri", work, on_lost=on_lost or (lambda: None))  # type: ignore[arg-type]


def write_owner(path: Path, owner: Owner) -> None:
    (path / ".model.owner.json").write_bytes(owner.dumps())


def elsewhere(work: dict[str, object], age_s: float) -> Owner:
    return Owner("theirs", work, Process("another machine", 1, "1", "far"), at=time.time() - age_s)


def test_the_first_owns_the_uri_and_the_second_is_told_who_does(tmp_path):
    with owned(tmp_path), pytest.raises(UriInUseError) as refused, owned(tmp_path, OTHER):
        pass
    assert "task d.t[0] of run r" in str(refused.value)
    assert "{{ ti.map_index }}" in str(refused.value) and "{{ run_id }}" in str(refused.value)
    assert os.listdir(tmp_path) == [], "what is given back leaves nothing"
    with owned(tmp_path, OTHER):
        pass


def test_a_later_try_takes_over_and_the_earlier_one_leaves_everything_alone(tmp_path, monkeypatch):
    # Long enough for the second to come between two beats: one that writes meanwhile takes the URI back.
    monkeypatch.setattr(owners, "BEAT_S", 0.5)
    told = threading.Event()
    with owned(tmp_path, on_lost=told.set) as first:
        with owned(tmp_path) as second:
            assert told.wait(60)
            assert first.lost and not second.lost
            with pytest.raises(OwnershipLostError, match="taken over by task d.t"):
                first.require()
            second.require()
        assert not (tmp_path / ".model.owner.json").exists()


def test_one_that_ends_does_not_take_away_what_another_has_taken_over(tmp_path):
    with owned(tmp_path):
        write_owner(tmp_path, elsewhere(RUN, 0))
    assert Owner.loads((tmp_path / ".model.owner.json").read_bytes()).token == "theirs"


def test_a_dead_process_of_this_machine_owns_nothing(tmp_path):
    code = (
        "from airflow_hydrogen.runtime.storage.owners import Ownership; import sys, os;"
        f"Ownership({str(tmp_path / 'model')!r}, 'model_uri', {OTHER!r}, on_lost=print).__enter__();"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / ".model.owner.json").exists()
    with owned(tmp_path):
        pass


def test_a_process_number_that_is_used_again_is_another_process():
    me = Process.this()
    assert not me.is_dead()
    assert dataclasses.replace(me, started="1").is_dead()
    assert not dataclasses.replace(me, machine="another", started="1").is_dead(), "nobody here can know"


def test_an_owner_whose_heart_has_stopped_is_watched_first(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "_WATCH_S", 0.3)
    monkeypatch.setattr(owners, "_WATCH_POLL_S", 0.02)
    write_owner(tmp_path, elsewhere(OTHER, STALE_S + 1))
    with owned(tmp_path):
        pass
    # Its clock is behind, but it lives.
    alive = elsewhere(OTHER, STALE_S + 1)
    write_owner(tmp_path, alive)
    beat = threading.Timer(0.1, lambda: write_owner(tmp_path, dataclasses.replace(alive, beat=1)))
    beat.start()
    with pytest.raises(UriInUseError), owned(tmp_path):
        pass
    beat.join()


def test_a_file_that_holds_no_owner_is_no_owner(tmp_path):
    (tmp_path / ".model.owner.json").write_text("{")
    with owned(tmp_path) as mine:
        mine.require()


def test_of_many_at_once_one_is_the_first(tmp_path):
    ready, held, owning, refused = threading.Barrier(8), threading.Event(), [], []

    def try_it(index: int) -> None:
        ready.wait()
        try:
            with owned(tmp_path, {**RUN, "map_index": index}):
                owning.append(index)
                held.wait(10)
        except UriInUseError:
            refused.append(index)
        if len(refused) == 7:
            held.set()

    threads = [threading.Thread(target=try_it, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(owning), len(refused)) == (1, 7)


def test_a_store_without_links_lets_the_last_writer_win(tmp_path, monkeypatch):
    monkeypatch.setattr(owners.uris, "local_path", lambda uri: None)
    monkeypatch.setattr(owners, "_WATCH_POLL_S", 0.0)
    remote = Ownership((tmp_path / "model").as_uri(), "model_uri", RUN, on_lost=lambda: None)
    monkeypatch.setattr(remote, "_file", str(tmp_path / "owner.json"))
    monkeypatch.setattr(owners.filesystems, "write_bytes", lambda uri, data: Path(uri).write_bytes(data))
    monkeypatch.setattr(owners.filesystems, "read_bytes", lambda uri: Path(uri).read_bytes())
    monkeypatch.setattr(owners.filesystems, "remove", lambda uri: Path(uri).unlink())
    with remote:
        write = (tmp_path / "owner.json").write_bytes
        write(elsewhere(OTHER, 0).dumps())
        with pytest.raises(OwnershipLostError):
            remote.require()


@given(age_s=st.floats(-1e6, 1e6), same=st.booleans(), outside=st.booleans())
def test_nobody_who_beats_is_pushed_aside_but_by_a_later_try(age_s, same, outside):
    work: dict[str, object] = {} if outside else RUN
    found = Owner("x", work if same else OTHER, Process("elsewhere", 1, "1", "h"), at=-age_s)
    verdict = judge(found, work, 0.0)
    if same and not outside:
        assert verdict == "free"
    else:
        assert verdict == ("watch" if age_s > STALE_S else "taken")


def test_a_store_that_fails_at_the_end_does_not_change_how_the_work_ended(tmp_path, monkeypatch, capsys):
    def fail(uri: str) -> bytes:
        raise OSError("503 Slow Down")

    def work() -> None:
        with owned(tmp_path):
            monkeypatch.setattr(owners.filesystems, "read_bytes", fail)
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        work()
    assert "could not be removed: 503 Slow Down" in capsys.readouterr().out
