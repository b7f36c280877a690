"""The command that builds Horovod: it comes with the package, patch included."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from airflow_hydrogen.horovod_build import __main__ as build
from airflow_hydrogen.horovod_build.__main__ import Target


def test_the_console_command_is_the_module() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="airflow-hydrogen-build-horovod")
    assert command.load() is build.main


def test_the_patch_lies_beside_the_module() -> None:
    assert build.PATCH.parent == Path(build.__file__).parent
    assert "\n--- a/" in build.PATCH.read_text()


def test_nothing_but_the_standard_library_is_needed() -> None:
    code = (
        "import sys; before = set(sys.modules); import airflow_hydrogen.horovod_build.__main__;"
        "print({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'airflow_hydrogen'}"


def test_a_version_names_what_it_was_built_from() -> None:
    target = Target("/python", "cpython-311", "linux", "2.21.0", None, None, (), "/bin")
    version = target.local_version(b"patch", {})
    assert version.startswith("tf2.21.0.k")
    assert version != target.local_version(b"another", {})
    assert version != target.local_version(b"patch", {"HOROVOD_GPU_OPERATIONS": "NCCL"})


def test_an_environment_without_a_framework_is_told_so() -> None:
    target = Target("/python", "cpython-311", "linux", None, None, None, (), "/bin")
    with pytest.raises(SystemExit, match="has neither tensorflow nor torch: install one first"):
        build.check_tools(target, {"PATH": "/bin"})
