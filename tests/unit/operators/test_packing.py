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


def test_modules_at_the_root_of_a_bundle_travel_with_a_dag_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write(
        tmp_path / "bundle",
        {
            "team/dag.py": "from flroothelpers import units\nimport flplugin, json, pytest, airflow",
            "flroothelpers.py": "import flrootpackage.deep",
            "flrootpackage/deep.py": "",
            "flrootpackage/names.csv": "a",
            "flrootunused.py": "",
            "json.py": "",
        },
    )
    plugins = write(tmp_path / "plugins", {"flplugin.py": ""})
    # As Airflow does: at the end.
    monkeypatch.setattr(sys, "path", [*sys.path, str(bundle), str(plugins)])
    files = project_files([], [bundle / "team" / "dag.py"], [bundle / "team"])
    assert sorted(map(str, files)) == [
        "flplugin.py",
        "flroothelpers.py",
        "flrootpackage/deep.py",
        "flrootpackage/names.csv",
    ]


def test_namespace_package_travels_without_its_installed_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (
        "bundle/flspread/here.py",
        "site-packages/flspread/installed.py",
        "more/flspread/there.py",
    ):
        write(tmp_path, {folder: ""})
        monkeypatch.setattr(sys, "path", [*sys.path, str((tmp_path / folder).parents[1])])
    write(tmp_path, {"more/flspread/here.py": "other"})
    files = project_files(["flspread.here"], [], [])
    assert files == {
        Path("flspread/here.py"): tmp_path / "bundle/flspread/here.py",
        Path("flspread/there.py"): tmp_path / "more/flspread/there.py",
    }


def test_modules_in_a_zip_of_dags_travel(tmp_path: Path) -> None:
    dags = tmp_path / "dags.zip"
    with zipfile.ZipFile(dags, "w") as archive:
        archive.writestr("dag.py", "from flzipped import units\nimport flzippedmodule")
        archive.writestr("flzipped/__init__.py", "import flzippedtoo")
        archive.writestr("flzipped/units.py", "")
        archive.writestr("flzipped/names.csv", "a")
        archive.writestr("flzipped/big.bin", b"0" * (packing.MAX_DATA_FILE_BYTES + 1))
        archive.writestr("flzippedmodule.py", "")
        archive.writestr("flzippedtoo.py", "x = 1")
        archive.writestr("flzippedunused.py", "")
    files = project_files([], [dags / "dag.py"], [dags])
    packed = zipfile.ZipFile(pack_project(tmp_path / "project.zip", files))
    assert packed.namelist() == [
        "flzipped/__init__.py",
        "flzipped/names.csv",
        "flzipped/units.py",
        "flzippedmodule.py",
        "flzippedtoo.py",
    ]
    assert packed.read("flzippedtoo.py") == b"x = 1"


def test_installed_packages_stay_at_home() -> None:
    assert project_files(["json.decoder", "pytest", "airflow_hydrogen.runtime"], [], []) == {}


def test_too_much_project_code_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"flpack/__init__.py": "x = 1" * 1000})
    monkeypatch.setattr(packing, "MAX_PROJECT_BYTES", 1000)
    message = r"the project's code \(flpack\) holds 0 MB, more than .*install the package on the cluster"
    with pytest.raises(InvalidJobError, match=message):
        project_files(["flpack"], [], [tmp_path])
