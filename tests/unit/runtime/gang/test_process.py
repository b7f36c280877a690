"""Ranks as real processes, with mains that need no framework."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.runtime.gang import process
from airflow_hydrogen.runtime.gang.network import GangAddress
from airflow_hydrogen.runtime.gang.process import RankFailed, RankProcess
from airflow_hydrogen.runtime.gang.templates import TemplateSpec, secret_of_driver
from airflow_hydrogen.runtime.rank.task import Placement
from airflow_hydrogen.runtime.runner import rank_task


class Heard:
    """What a rank has said."""

    def __init__(self):
        self.lines, self.beats = [], []

    def line(self, text):
        self.lines.append(text)

    def report(self, metrics, seconds_left):
        raise AssertionError("no main here reports")

    def beat(self, beat):
        self.beats.append(beat)

    def returned(self):
        pass


def template_of_ours():
    """A template that imports no framework, for ranks of this process."""
    return TemplateSpec(secret_of_driver(), (), os.getpid())


def start(main, heard, rank=0, template=None, **kwargs):
    place = Placement(rank, 2, rank, 2, 0, 1, "localhost")
    here = GangAddress("127.0.0.1", "lo")
    return RankProcess(rank_task(main, (), kwargs), place, {}, here, heard, template)


@pytest.fixture(params=["started", "forked"])
def template(request):
    """Ranks that are started, and ranks that are forked: all that is tested here holds for both."""
    return template_of_ours() if request.param == "forked" else None


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def leave_behind(how, file):
    """Start a process that stays, in a session of its own where it can, and die."""
    if how == "os.fork":
        if (child := os.fork()) == 0:
            os.setsid()
            time.sleep(600)
            os._exit(0)
    elif how == "subprocess":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    else:
        started = multiprocessing.get_context(how).Process(target=time.sleep, args=(600,))
        started.start()
        child = started.pid
    Path(file).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["os.fork", "fork", "spawn", "subprocess"])
def test_a_rank_that_dies_is_noticed_while_what_it_started_lives_and_that_ends_too(
    how, template, tmp_path, eventually
):
    started = time.monotonic()
    with pytest.raises(RankFailed, match=r"its process was killed by signal 9 \(SIGKILL\)"):
        start(leave_behind, Heard(), template=template, how=how, file=str(tmp_path / "child")).wait(
            lambda: False
        )
    assert time.monotonic() - started < 20
    child = int((tmp_path / "child").read_text())
    eventually(lambda: is_gone(child), "what it started is gone", 5)  # killed already, it may still be ending


PARENT = """
import sys
from tests.unit.runtime.gang.test_process import Heard, fork_and_wait, start, template_of_ours
template = template_of_ours() if sys.argv[2] == "forked" else None
start(fork_and_wait, Heard(), template=template, file=sys.argv[1]).wait(lambda: False)
"""


def fork_and_wait(file):
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
    Path(file).with_suffix(".tmp").write_text(f"{os.getpid()} {child}")
    Path(file).with_suffix(".tmp").rename(file)
    time.sleep(600)


@pytest.mark.parametrize("how", ["started", "forked"])
def test_where_the_parent_is_killed_too_the_forked_process_dies_with_its_rank(how, tmp_path, eventually):
    file = tmp_path / "pids"
    root = str(Path(__file__).parents[4])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(file), how], env={**os.environ, "PYTHONPATH": root}
    )
    eventually(file.exists, "the rank has forked", 60)
    rank, child = map(int, file.read_text().split())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    eventually(lambda: is_gone(rank) and is_gone(child), "both are gone", 5)


def fork_from_a_thread():
    """Whether the child still answers once the thread that forked it has ended, to the last."""
    questions, ask = os.pipe()
    answers, answer = os.pipe()
    threads = []

    def run():
        threads.append(threading.get_native_id())
        if os.fork() == 0:
            while True:
                os.write(answer, b"x")  # at first: it has made its arrangements
                os.read(questions, 1)
        os.read(answers, 1)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    os.close(answer)
    while os.path.exists(f"/proc/self/task/{threads[0]}"):
        time.sleep(0.001)
    os.write(ask, b"x")
    return os.read(answers, 1)  # nothing, if it is dead


def test_a_process_that_another_thread_forks_does_not_end_with_that_thread(template):
    assert (
        pickle.loads(start(fork_from_a_thread, Heard(), template=template).wait(lambda: False).value) == b"x"
    )


def report_from_a_child():
    child = os.fork()
    if child == 0:
        try:
            hydrogen.report({"loss": 1.0})
        except OSError as error:
            print(error, flush=True)
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_process_that_reports_is_told_why_it_cannot(template):
    heard = Heard()
    assert pickle.loads(start(report_from_a_child, heard, template=template).wait(lambda: False).value) == 7
    assert any("was forked by a rank and has no line to the gang" in line for line in heard.lines)


def leave(how):
    atexit.register({"crash": lambda: os.kill(os.getpid(), signal.SIGSEGV), "fail": lambda: os._exit(3)}[how])
    return 5


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("crash", "its process was killed by signal 11 (SIGSEGV)"),
        ("fail", "its process ended with exit code 3"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_result_that_was_delivered_counts_whatever_happens_at_the_exit(how, said, rank, template):
    heard = Heard()
    answer = pickle.loads(start(leave, heard, rank, template, how=how).wait(lambda: False).value)
    assert answer == (5 if rank == 0 else None)
    assert f"{said}, after its result was delivered: the result counts" in heard.lines


def test_an_exit_that_hangs_takes_no_result_back_either(template, monkeypatch):
    monkeypatch.setattr(process, "_EXIT_GRACE_S", 0.3)

    def main():
        atexit.register(time.sleep, 600)
        return 5

    heard = Heard()
    assert pickle.loads(start(main, heard, template=template).wait(lambda: False).value) == 5
    assert heard.lines[-1].startswith("its process did not end within 0.3 s, after its result was delivered")
