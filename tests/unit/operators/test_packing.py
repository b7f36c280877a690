"""The zips of `--py-files`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.operators import packing
from airflow_hydrogen.operators.packing import pack_project, pack_runtime, project_files


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_runtime_zip_is_the_spark_side_alone(tmp_path: Path) -> None:
    names = zipfile.ZipFile(pack_runtime(tmp_path / "a.zip")).namelist()
    assert "airflow_hydrogen/__init__.py" in names
    assert "airflow_hydrogen/contract/jobs.py" in names
    assert "airflow_hydrogen/runtime/__main__.py" in names
    assert not [name for name in names if not name.endswith(".py")]
    sides = {name.split("/")[1] for name in names}
    assert sides == {"__init__.py", "contract", "runtime"}


def test_runtime_zip_imports_without_airflow(tmp_path: Path) -> None:
    archive = pack_runtime(tmp_path / "runtime.zip")
    code = (
        "import sys; sys.modules['airflow'] = None; import airflow_hydrogen.contract.reports as r;"
        "import airflow_hydrogen.contract.pickling; print(r.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(archive)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(archive))


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = pack_runtime(tmp_path / "a.zip"), pack_runtime(tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()


def test_package_of_the_entry_point_travels_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        {
            "flpack/__init__.py": "",
            "flpack/train.py": "import json\nimport flshared\nimport pytest",
            "flpack/deep/net.py": "",
            "flpack/carriers.csv": "AA,American",
            "flpack/__pycache__/train.pyc": "",
            "flpack/.secret": "",
            "flshared.py": "import flmore",
            "flmore.py": "",
            "flunused.py": "",
        },
    )
    (tmp_path / "flpack" / "big.bin").write_bytes(b"0" * (packing.MAX_DATA_FILE_BYTES + 1))
    monkeypatch.syspath_prepend(str(tmp_path))
    files = project_files(["flpack.train"], [], [])
    assert sorted(map(str, files)) == [
        "flmore.py",
        "flpack/__init__.py",
        "flpack/carriers.csv",
        "flpack/deep/net.py",
        "flpack/train.py",
        "flshared.py",
    ]
    archive = zipfile.ZipFile(pack_project(tmp_path / "project.zip", files))
    assert archive.read("flpack/carriers.csv") == b"AA,American"


def test_callables_bring_the_modules_beside_their_dag_file(tmp_path: Path) -> None:
    source = "from flhelpers import units\ndef main(): import fllate"
    dag = write(tmp_path, {"fldag.py": source, "flhelpers.py": "", "fllate.py": ""})
    files = project_files([], [dag / "fldag.py"], [dag])
    assert sorted(map(str, files)) == ["flhelpers.py", "fllate.py"]


def test_installed_packages_stay_at_home() -> None:
    assert project_files(["json.decoder", "pytest", "airflow_hydrogen.runtime"], [], []) == {}


def test_too_much_project_code_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"flpack/__init__.py": "x = 1" * 1000})
    monkeypatch.setattr(packing, "MAX_PROJECT_BYTES", 1000)
    message = r"the code beside the DAG \(flpack\) holds 0 MB, more than .*install the package on the cluster"
    with pytest.raises(InvalidJobError, match=message):
        project_files(["flpack"], [], [tmp_path])
