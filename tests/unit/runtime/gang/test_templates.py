"""Templates as real processes: what ranks that are forked have, and what becomes of a template."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from airflow_hydrogen.runtime.gang import templates
from airflow_hydrogen.runtime.gang.process import RankCancelled, RankFailed
from airflow_hydrogen.runtime.gang.templates import NoTemplate
from airflow_hydrogen.runtime.rank.task import TEMPLATE_MODULE
from tests.processes import living
from tests.unit.runtime.gang.test_process import Heard, is_gone, start, template_of_ours


def run(main, heard=None, template=None, rank=0, **kwargs):
    heard = heard or Heard()
    process = start(main, heard, rank, template or template_of_ours(), **kwargs)
    answer = pickle.loads(process.wait(lambda: False).value)
    assert not [line for line in heard.lines if "not forked" in line]
    return answer


def templates_of(pid):
    """The templates that a process keeps, and that are alive."""

    def is_wanted(process):
        return TEMPLATE_MODULE in process.cmdline() and process.ppid() == pid

    return [process.pid for process in living(is_wanted)]


def describe():
    import multiprocessing
    import random
    import tempfile

    return {
        "parent": os.getppid(),
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "folder": os.getcwd(),
        "path": [path for path in sys.path if path],
        "environment": dict(os.environ),
        "command": psutil.Process().cmdline(),
        "mark": psutil.Process().environ()["AIRFLOW_HYDROGEN_RANK"],
        "files": sorted(map(int, os.listdir("/proc/self/fd"))),
        "stdin": os.readlink("/proc/self/fd/0"),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGPIPE)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "random": (random.random(), next(tempfile._get_candidate_names())),
        "key": bytes(multiprocessing.current_process().authkey),
        "is main": threading.current_thread() is threading.main_thread(),
    }


def test_a_forked_rank_is_what_a_started_one_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEST_OF_TEMPLATES", "ä b\nc")
    forked, other = run(describe), run(describe, rank=0)
    started = pickle.loads(start(describe, Heard()).wait(lambda: False).value)
    assert started["parent"] == os.getpid()
    assert forked["parent"] == other["parent"] != os.getpid()
    for rank in (forked, started):
        assert rank["session"] == rank["group"] == rank["pid"]
        assert rank["mark"] == rank["environment"].pop("AIRFLOW_HYDROGEN_RANK")
        assert "airflow_hydrogen.runtime.rank.worker" in rank["command"]
        assert len(rank["files"]) == len(set(rank["files"]))
    assert len(forked["files"]) == len(started["files"]) + 1  # by which it dies with its parent
    for part in ("environment", "folder", "stdin", "signals", "threads", "limits", "is main"):
        assert forked[part] == started[part], part
    assert list(dict.fromkeys(forked["path"])) == list(dict.fromkeys(started["path"]))
    assert forked["mark"] != other["mark"]
    assert forked["random"] != other["random"]
    assert forked["key"] != other["key"]


def test_what_a_rank_does_is_not_seen_by_the_next():
    def main():
        import airflow_hydrogen.runtime as hydrogen

        found = getattr(hydrogen, "left_behind", None), os.environ.get("LEFT_BEHIND")
        hydrogen.left_behind = os.environ["LEFT_BEHIND"] = "x"
        return found

    assert run(main) == run(main) == (None, None)


def test_ranks_that_need_one_at_once_share_it(monkeypatch):
    # Another variable, another template: one that is not there yet.
    monkeypatch.setenv("TEST_OF_TEMPLATES", "shared")
    ranks = [start(os.getppid, Heard(), 0, template_of_ours()) for _ in range(6)]
    assert len({pickle.loads(rank.wait(lambda: False).value) for rank in ranks}) == 1


def test_a_template_serves_only_those_that_agree_with_it_in_what_was_read_at_its_start(monkeypatch):
    first = run(os.getppid)
    monkeypatch.setenv("HOROVOD_RANK", "3")
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "another")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.delenv("HOROVOD_RANK")
    assert run(os.getppid) == first
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert run(os.getppid) != first
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setattr(sys, "path", [*sys.path, "/somewhere/else"])
    assert run(os.getppid) != first


def imported():
    import module_of_a_test

    return os.getppid(), module_of_a_test.VALUE


def test_a_module_that_comes_later_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    template, before = run(os.getppid), tmp_path.stat()
    (tmp_path / "module_of_a_test.py").write_text("VALUE = 1")
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as where clocks of files are coarse
    assert run(imported) == (template, 1)


def test_an_archive_that_was_written_anew_is_read_anew(monkeypatch, tmp_path):
    archive = tmp_path / "modules.zip"
    monkeypatch.setattr(sys, "path", [*sys.path, str(archive)])
    for value in (1, 22):
        with zipfile.ZipFile(archive, "w") as written:
            written.writestr("module_of_a_test.py", f"VALUE = {value}")
        template = run(os.getppid)
        assert run(imported) == (template, value)


def test_of_templates_that_differ_the_last_two_are_kept(monkeypatch, eventually):
    for number in range(4):
        monkeypatch.setenv("TEST_OF_TEMPLATES", str(number))
        run(os.getppid)
    eventually(lambda: len(templates_of(os.getpid())) == 2, "two are left")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
            "started threads",
        ),
        (
            "from airflow_hydrogen.runtime.rank import preloading\n"
            "preloading._DEVICES = ('/dev/full',); device = open('/dev/full', 'rb')",
            "has opened /dev/full",
        ),
        ("raise ValueError('not here')", r"ValueError: not here"),
        ("import a_module_that_is_nowhere", "ModuleNotFoundError"),
    ],
)
def test_a_template_that_is_not_clean_forks_no_rank_and_says_why(
    code, why, tmp_path, monkeypatch, eventually
):
    (tmp_path / "framework_of_a_test.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    spec = dataclasses.replace(template_of_ours(), modules=("framework_of_a_test",))
    for _ in range(2):  # the second hears it from a process that has imported nothing
        heard = Heard()
        rank = start(os.getppid, heard, 0, spec)
        assert pickle.loads(rank.wait(lambda: False).value) == os.getpid()
        (line,) = heard.lines
        assert line.startswith("started as a new process, not forked: ")
        assert why in line


def test_a_module_that_is_not_installed_matters_where_the_user_has_named_it():
    spec = dataclasses.replace(template_of_ours(), modules=("a_module_that_is_nowhere",))
    assert run(os.getppid, template=spec) != os.getpid()
    heard = Heard()
    rank = start(os.getppid, heard, 0, dataclasses.replace(spec, required=True))
    assert pickle.loads(rank.wait(lambda: False).value) == os.getpid()
    (line,) = heard.lines
    assert "a_module_that_is_nowhere cannot be imported beforehand (ModuleNotFoundError" in line


def test_a_template_that_dies_while_it_imports_costs_one_start(tmp_path, monkeypatch):
    (tmp_path / "framework_of_a_test.py").write_text("import os\nprint('the end', flush=True)\nos._exit(7)\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    heard = Heard()
    rank = start(
        os.getppid, heard, 0, dataclasses.replace(template_of_ours(), modules=("framework_of_a_test",))
    )
    assert pickle.loads(rank.wait(lambda: False).value) == os.getpid()
    assert heard.lines == [
        "started as a new process, not forked: the template has ended with exit code 7: the end"
    ]


def test_a_template_that_is_killed_takes_no_rank_with_it(tmp_path):
    def main(file):
        os.kill(os.getppid(), signal.SIGKILL)
        while os.getppid() == int(Path(file).read_text()):
            time.sleep(0.01)
        return 5

    (tmp_path / "template").write_text(str(run(os.getppid)))
    heard = Heard()
    assert run(main, heard, file=str(tmp_path / "template")) == 5
    (line,) = heard.lines
    assert line.startswith("its process ended, and nobody saw how: its template had died before")
    assert line.endswith("the result counts")
    assert run(os.getppid) != int((tmp_path / "template").read_text())  # a new one


def test_a_rank_that_dies_after_its_template_is_noticed():
    def main():
        template = os.getppid()
        os.kill(template, signal.SIGKILL)
        while os.getppid() == template:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RankFailed, match="nobody saw how"):
        start(main, Heard(), 0, template_of_ours()).wait(lambda: False)


def test_a_rank_that_is_not_wanted_any_more_while_the_template_imports_never_runs(
    tmp_path, monkeypatch, eventually
):
    (tmp_path / "framework_of_a_test.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go on')!r}): time.sleep(0.01)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    spec = dataclasses.replace(template_of_ours(), modules=("framework_of_a_test",))
    rank = start(Path.touch, Heard(), 0, spec, self=tmp_path / "ran")
    with pytest.raises(RankCancelled):
        rank.wait(lambda: True)
    (tmp_path / "go on").touch()
    assert run(os.getppid, template=spec) != os.getpid()
    assert not (tmp_path / "ran").exists()


OWNER = """
import dataclasses, sys, time
from tests.unit.runtime.gang.test_process import template_of_ours
from airflow_hydrogen.runtime.gang import templates
sys.path.append(sys.argv[1])
modules = ("framework_of_a_test",) if sys.argv[2] == "imports" else ()
templates.warm(dataclasses.replace(template_of_ours(), modules=modules), {})
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["imports", "waits"])
def test_a_template_ends_with_its_owner_also_while_it_imports(state, tmp_path, eventually):
    started = tmp_path / "started"
    (tmp_path / "framework_of_a_test.py").write_text(
        f"import time\nopen({str(started)!r}, 'w').close()\ntime.sleep(600)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), state],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    eventually(lambda: templates_of(owner.pid), "there is a template", 60)
    (template,) = templates_of(owner.pid)
    if state == "imports":
        eventually(started.exists, "it imports", 60)
    owner.kill()
    owner.wait()
    eventually(lambda: is_gone(template), "it is gone", 5)


def test_nobody_who_does_not_know_the_secret_gets_a_rank():
    spec = template_of_ours()
    run(os.getppid, template=spec)
    _name, line = templates._connect(spec, {})
    request = json.dumps({"secret": "x", "owner": os.getpid(), "mark": "f" * 16})
    with line, open(os.devnull) as null:
        socket.send_fds(line, [request.encode()], [null.fileno()] * 3)
        assert line.recv(100) == b""


def test_where_the_platform_cannot_fork_ranks_are_started(monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    heard = Heard()
    rank = start(os.getppid, heard, 0, template_of_ours())
    assert pickle.loads(rank.wait(lambda: False).value) == os.getpid()
    assert heard.lines == ["started as a new process, not forked: this platform has no pidfd_open"]
    with pytest.raises(NoTemplate):
        templates.warm(template_of_ours(), {})
