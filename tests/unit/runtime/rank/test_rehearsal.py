from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from airflow_hydrogen.contract.errors import UnloadableModelError
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime import afresh
from airflow_hydrogen.runtime.models.manifest import FileEntry, Manifest
from airflow_hydrogen.runtime.rank import rehearsal


def _spec(name, dtype, shape):
    return InputSpec(name, (ColumnSpec(name, dtype),), dtype, shape)


def test_the_made_up_row_has_every_inputs_dtype_and_shape():
    inputs = (_spec("x", "float32", (2, 3)), _spec("n", "int64", ()), _spec("b", "bool", (1,)))
    batch = rehearsal.probe(Signature((*inputs, _spec("w", "string", (1,))), ()))
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
        "x": ((1, 2, 3), "float32"),
        "n": ((1,), "int64"),
        "b": ((1, 1), "bool"),
        "w": ((1, 1), "object"),
    }
    assert len(np.unique(batch["x"])) == 6


@pytest.fixture
def export(tmp_path, monkeypatch):
    """A model of no framework, whose predictor is this code."""

    def make(body, function="load"):
        (tmp_path / "a_predictor.py").write_text(f"import os, signal\ndef load(path):\n    {body}\n")
        (tmp_path / "weights").write_text("3")
        return Manifest(
            framework="mine",
            entry="weights",
            signature=Signature((_spec("x", "float32", ()),), (OutputSpec("p", "float32", ()),)),
            files=(FileEntry("weights", "", 1),),
            predictor=f"a_predictor:{function}",
        )

    monkeypatch.syspath_prepend(tmp_path)
    return make


def test_a_predictor_that_loads_says_nothing(export, tmp_path, capsys):
    rehearsal.rehearse_export(tmp_path, export("return open(path).read()"))
    assert capsys.readouterr().out == ""
    assert "a_predictor" not in sys.modules  # another process has imported it


def test_a_predictor_that_does_not_load_here_is_a_line_in_the_log(export, tmp_path, capsys):
    rehearsal.rehearse_export(tmp_path, export("os._exit(3)"))
    assert capsys.readouterr().out == (
        "predictor 'a_predictor:load' does not load the model on this host, which need not score: a fresh "
        "process ended with exit code 3 over it\n"
    )


def test_a_predictor_that_takes_for_ever_is_given_up(export, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(afresh, "TIMEOUT_S", 0.0)
    rehearsal.rehearse_export(tmp_path, export("signal.pause()"))
    assert "a fresh process did not end within 0 s" in capsys.readouterr().out


def test_what_a_fresh_process_leaves_in_its_temporary_folder_is_removed():
    assert not os.path.exists(afresh.call(tempfile.mkdtemp, "left"))


def test_a_predictor_that_does_not_exist_is_refused(export, tmp_path):
    with pytest.raises(UnloadableModelError, match="module 'a_predictor' has no 'lode'"):
        rehearsal.rehearse_export(tmp_path, export("return 1", function="lode"))


def test_the_fresh_process_ends_with_the_rank(export, tmp_path):
    """Rank 0 is killed with SIGKILL while its model is loaded: nothing is left of it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # The loading process holds the pipe's other end as long as it lives.
    manifest = export(
        f"global end; end = open({str(pipe)!r}, 'w'); end.write('x'); end.flush(); signal.pause()"
    )
    code = (
        "import pathlib\n"
        "from airflow_hydrogen.runtime.models.manifest import Manifest\n"
        "from airflow_hydrogen.runtime.rank import rehearsal\n"
        f"manifest = Manifest.loads('m', {manifest.dumps()!r})\n"
        f"rehearsal.rehearse_export(pathlib.Path({str(tmp_path)!r}), manifest)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as rank, pipe.open() as end:
        assert end.read(1) == "x"
        rank.send_signal(signal.SIGKILL)
        assert end.read() == ""
