from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.contract.errors import (
    EntrypointError,
    EntrypointPickleError,
    GangLostError,
    InvalidJobError,
    NotEnoughSlotsError,
    RankFailedError,
    RanksDivergedError,
)
from airflow_hydrogen.runtime import HorovodRunner
from airflow_hydrogen.runtime.gang import templates
from airflow_hydrogen.runtime.rank.task import TEMPLATE_MODULE
from airflow_hydrogen.runtime.runner import rank_task
from tests.processes import living

pytestmark = pytest.mark.integration

FACTOR = 7


def describe(x=1):
    context = hydrogen.get_context()
    print(f"line of rank {context.rank}")
    return {"rank": context.rank, "size": context.size, "x": x * FACTOR, "pid": os.getpid()}


def allreduce():
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    total = hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum)
    return float(total), hvd.size(), hvd.local_rank()


def return_models(apart, compared=False):
    """Of a stand-in for Keras: TensorFlow takes seconds to import."""

    context = hydrogen.get_context()
    context.weights_compared = compared
    kernel = np.full(3, apart * context.rank, "float32")

    class Variable:
        path = "dense/kernel"

        def __array__(self, dtype=None, copy=None):
            return kernel

    class Model:
        trainable_variables = (Variable(),)

    sys.modules["keras"] = types.SimpleNamespace(Model=Model)
    return Model()


def fail_on_rank_1(how):
    if hydrogen.get_context().rank != 1:
        time.sleep(600)
    if how == "raise":
        raise ValueError("the cause")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def note_the_parent(folder):
    open(os.path.join(folder, str(os.getppid())), "w").close()


def lose_a_peer(file):
    """Rank 1 is killed in the middle of an allreduce of 64 MB; rank 0 writes down what it makes of that."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    from airflow_hydrogen.runtime.rank.failures import lost_peer

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # time to write
    hvd.init()
    gradient = tf.ones([16 * 1024 * 1024])
    hvd.allreduce(gradient, name="gradient")
    if hvd.rank() == 1:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        while True:
            hvd.allreduce(gradient, name="gradient")
    except Exception as error:
        with open(file, "w") as stream:
            stream.write(f"{lost_peer(error)}")
        raise


@pytest.fixture(params=["local", "spark"])
def two_ranks(request):
    """A runner of two ranks: processes of this machine, and a barrier stage."""
    if request.param == "spark":
        request.getfixturevalue("spark")
        return HorovodRunner(2)
    return HorovodRunner(-2)


def test_rank_0s_return_value_comes_back_and_lines_have_the_rank_in_front(two_ranks, capsys):
    answer = two_ranks.run(describe, x=3)
    assert (answer["rank"], answer["size"], answer["x"]) == (0, 2, 21)
    assert answer["pid"] != os.getpid()
    assert {"[0] line of rank 0", "[1] line of rank 1"} <= set(capsys.readouterr().out.splitlines())


def test_horovods_own_api_works_inside_main(two_ranks):
    assert two_ranks.run(allreduce) == (3.0, 2, 0)


def test_models_of_ranks_that_have_diverged_are_not_taken(two_ranks):
    with pytest.raises(
        RanksDivergedError, match=r"at the end of main the ranks .*on ranks 0 and 1 differ"
    ) as caught:
        two_ranks.run(return_models, apart=1e-6)
    assert caught.value.variable == "dense/kernel"
    assert caught.value.retryable is False


@pytest.mark.parametrize(
    "arguments", [{"apart": 0}, {"apart": 1, "compared": True}], ids=["same", "compared"]
)
def test_models_of_ranks_that_are_the_same_or_were_compared_are_taken(arguments):
    assert HorovodRunner(-2).run(return_models, **arguments) is not None


@pytest.mark.parametrize(
    ("how", "summary"),
    [
        ("raise", "ValueError: the cause"),
        ("exit", "its process ended with exit code 3 before main returned"),
        ("kill", r"its process was killed by signal 9 \(SIGKILL\)"),
    ],
)
def test_a_failing_rank_ends_the_gang_within_seconds(two_ranks, rank_processes, eventually, how, summary):
    started = time.monotonic()
    with pytest.raises(RankFailedError, match=f"rank 1 on .* failed: {summary}") as caught:
        two_ranks.run(fail_on_rank_1, how=how)
    assert time.monotonic() - started < 20
    eventually(lambda: not rank_processes(), "all rank processes are gone", 5)
    assert caught.value.rank == 1
    if how == "raise":
        assert 'raise ValueError("the cause")' in caught.value.remote_traceback
        assert caught.value.error_type == "builtins.ValueError"


def test_a_rank_that_fails_costs_spark_no_python_worker(spark, tmp_path):
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    runner = HorovodRunner(2, fork=False)
    runner.run(note_the_parent, folder=str(tmp_path / "before"))
    with pytest.raises(RankFailedError):
        runner.run(fail_on_rank_1, how="kill")
    runner.run(note_the_parent, folder=str(tmp_path / "after"))
    assert len(os.listdir(tmp_path / "after")) == 2
    assert sorted(os.listdir(tmp_path / "after")) == sorted(os.listdir(tmp_path / "before"))


def test_lines_arrive_while_the_ranks_run(two_ranks, capsys, tmp_path):
    go_on = str(tmp_path / "go on")

    def main():
        print("before")
        while not os.path.exists(go_on):
            time.sleep(0.05)

    runner = threading.Thread(target=two_ranks.run, args=(main,))
    runner.start()
    seen, deadline = "", time.monotonic() + 60
    while "[1] before" not in seen and time.monotonic() < deadline:
        seen += capsys.readouterr().out
        time.sleep(0.05)
    assert "[1] before" in seen
    assert runner.is_alive()
    open(go_on, "w").close()
    runner.join(60)
    assert not runner.is_alive()


def test_reports_are_printed_once_and_alone_when_asked_for(capsys):
    def main():
        print("noise")
        hydrogen.report({"epoch": 0, "loss": 0.25})

    HorovodRunner(-2, driver_log_verbosity="log_callback_only").run(main)
    assert capsys.readouterr().out.splitlines() == ["[gang] epoch=0, loss=0.25"]


def test_np_0_takes_every_task_slot(spark):
    assert HorovodRunner(0).run(describe)["size"] == 2


def test_a_rank_has_the_threads_that_the_machine_has_for_it_not_those_of_a_python_worker(spark, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert HorovodRunner(1).run(os.getenv, key="OMP_NUM_THREADS") == str(len(os.sched_getaffinity(0)))


def test_more_ranks_than_slots_fails_at_once_with_both_numbers(spark):
    started = time.monotonic()
    with pytest.raises(
        NotEnoughSlotsError, match="needs np=3 processes at the same time, but the cluster has 2 task slots"
    ):
        HorovodRunner(3).run(describe)
    assert time.monotonic() - started < 5


def test_negative_np_runs_without_spark():
    code = (
        "import sys; from airflow_hydrogen.runtime import HorovodRunner\n"
        "def main(): return 5\n"
        "assert HorovodRunner(-1).run(main) == 5\n"
        "print('pyspark' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_rank_does_not_outlive_its_spark_task(spark, tmp_path, rank_processes, eventually):
    pid_file = tmp_path / "pid"

    def main():
        from tests.processes import reader_of_output

        (tmp_path / "pid.tmp").write_text(f"{os.getpid()} {reader_of_output()}")
        (tmp_path / "pid.tmp").rename(pid_file)
        time.sleep(600)

    caught = []

    def run():
        try:
            HorovodRunner(1).run(main)
        except GangLostError as error:
            caught.append(error)

    runner = threading.Thread(target=run)
    runner.start()
    eventually(pid_file.exists, "the rank has started", 60)
    _rank, task = map(int, pid_file.read_text().split())
    os.kill(task, signal.SIGKILL)
    eventually(lambda: not rank_processes(), "the rank is gone", 5)
    runner.join(30)
    assert "no rank said why" in str(caught[0])


def test_ranks_are_forked_from_the_template_that_was_started_before_the_gang(spark, monkeypatch):
    def running():
        return {process.pid for process in living(lambda found: TEMPLATE_MODULE in found.cmdline())}

    monkeypatch.setattr(templates, "_SECRET", secrets.token_hex(32))  # none of those that are there
    before, runner = running(), HorovodRunner(2)
    runner.warm(spark, rank_task(os.getppid, (), {}).entrypoint, None)
    runner._warming.join(60)
    assert runner.run(os.getppid) in running() - before


def test_a_peer_that_is_lost_amid_a_large_gradient_is_no_error_of_the_program(tmp_path):
    with pytest.raises(RankFailedError, match=r"rank 1 on .* \(SIGKILL\)\n"):
        HorovodRunner(-2).run(lose_a_peer, file=str(tmp_path / "said"))
    said = (tmp_path / "said").read_text()
    assert re.search("gloo/transport/tcp|Horovod has been shut down", said)  # of these the second was known


SCRIPT = """
import sys, json, os
from sibling import NUMBER
import airflow_hydrogen.runtime as hydrogen
if __name__ == "__main__":
    with open(os.path.join(sys.argv[1], str(hydrogen.get_context().rank)), "w") as stream:
        json.dump([sys.argv[2:], NUMBER], stream)
    sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "sibling.py").write_text("NUMBER = 11\n")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_a_script_runs_as_main_on_every_rank(two_ranks, script, tmp_path):
    assert two_ranks.run(script, str(tmp_path), "0", "b c") is None
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ['[["0", "b c"], 11]'] * 2


def test_a_script_that_exits_with_an_error_fails(script, tmp_path):
    with pytest.raises(RankFailedError, match="SystemExit: 4"):
        HorovodRunner(-1).run(script, str(tmp_path), "4")


def test_an_import_path_is_imported_by_every_rank():
    assert HorovodRunner(-1).run("json:dumps", obj={"a": 1}) == '{"a": 1}'


@pytest.mark.parametrize(
    ("main", "error", "message"),
    [
        ("no_such_module:main", RankFailedError, "entry point 'no_such_module:main' does not import"),
        ("json:no_such", RankFailedError, "module 'json' has no 'no_such'"),
        ("json:__doc__", RankFailedError, "is not callable: it is a str"),
        ("missing.py", EntrypointError, "entry point 'missing.py' cannot be read"),
        ("nonsense", InvalidJobError, "neither 'package.module:function' nor the path of a script"),
        (5, EntrypointError, "entry point '5' is a int"),
    ],
)
def test_entry_points_that_cannot_run(main, error, message):
    with pytest.raises(error, match=message):
        HorovodRunner(-1).run(main)


def test_an_unpicklable_callable_names_the_object():
    lock = threading.Lock()

    def main():
        with lock:
            return 1

    with pytest.raises(EntrypointPickleError, match="lock"):
        HorovodRunner(-1).run(main)


@pytest.mark.parametrize("np", ["2", True, 1.5])
def test_np_must_be_an_integer(np):
    with pytest.raises(InvalidJobError, match="np must be an integer, found"):
        HorovodRunner(np)
