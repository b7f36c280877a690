"""Finding and checking code without running it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import EntrypointError
from airflow_hydrogen.operators.modules import (
    check_function,
    find_module,
    imported_top_levels,
    missing_import,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose every module fails when it is imported."""
    files = {
        "fltrain/__init__.py": "raise RuntimeError('imported')",
        "fltrain/train.py": "raise RuntimeError('imported')\ndef main(): pass\n",
        "fltrain/deep/nested.py": "def main(): pass",
        "flspace/inner/train.py": "class Trainer: pass",
        "flscript.py": "import fltrain.train\nfrom flspace.inner import train\nfrom . import x",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fltrain", "fltrain/__init__.py"),
        ("fltrain.train", "fltrain/train.py"),
        ("fltrain.deep.nested", "fltrain/deep/nested.py"),
        ("flspace.inner.train", "flspace/inner/train.py"),
        ("flscript", "flscript.py"),
    ],
)
def test_modules_are_found_without_importing_them(project: Path, name: str, file: str) -> None:
    location = find_module(name)
    assert location is not None
    assert (location.file, location.roots) == (project / file, (project,))
    assert not location.is_installed
    assert not {"fltrain", "flspace", "flscript"} & set(sys.modules)


@pytest.mark.parametrize("name", ["no_such_module", "fltrain.missing", "fltrain.train.deeper", "flscript.x"])
def test_missing_modules_are_not_found(project: Path, name: str) -> None:
    assert find_module(name) is None


def test_folder_of_the_dag_comes_after_the_path(tmp_path: Path) -> None:
    (tmp_path / "fl_beside_dag.py").write_text("")
    (tmp_path / "json.py").write_text("")
    beside = find_module("fl_beside_dag", [tmp_path])
    assert beside is not None and beside.roots == (tmp_path,)
    standard = find_module("json", [tmp_path])
    assert standard is not None and standard.is_installed and standard.roots != (tmp_path,)


def test_package_beside_the_dag_comes_before_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "flnamed").mkdir(parents=True)
    (tmp_path / "dags" / "flnamed").mkdir(parents=True)
    (tmp_path / "dags" / "flnamed" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    location = find_module("flnamed", [tmp_path / "dags"])
    assert location is not None and location.roots == (tmp_path / "dags",)


def test_folders_of_environments_and_settings_are_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target" / "other-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "config").mkdir()
    (tmp_path / "plugins").mkdir()
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    for folder in ("target", "config", "plugins"):
        (tmp_path / folder / f"fl{folder}.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    locations = {name: find_module(f"fl{name}") for name in ("target", "config", "plugins")}
    assert {name for name, found in locations.items() if found and not found.is_installed} == {"plugins"}


@pytest.mark.parametrize("name", ["json", "sys", "pytest", "airflow"])
def test_installed_modules_are_told_from_project_code(name: str) -> None:
    location = find_module(name)
    assert location is not None and location.is_installed


@pytest.mark.parametrize(
    ("source", "function"),
    [
        ("def main(): pass", "main"),
        ("async def main(): pass", "main"),
        ("class Trainer:\n    def run(self): pass", "Trainer.run"),
        ("from other import main", "main"),
        ("from other import run as main", "main"),
        ("from other import *", "main"),
        ("main = lambda: 1", "main"),
        ("try:\n    import fast\nexcept ImportError:\n    def main(): pass", "main"),
        ("if True:\n    pass\nelse:\n    def main(): pass", "main"),
        ("def __getattr__(name): ...", "main"),
    ],
)
def test_function_is_there(tmp_path: Path, source: str, function: str) -> None:
    (tmp_path / "flmodule.py").write_text(source)
    location = find_module("flmodule", [tmp_path])
    assert location is not None
    check_function(f"flmodule:{function}", location, "entry point")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def train(): pass\nclass A: pass",
            r"entry point 'flmodule:main' does not exist: .*py has no 'main', its functions are 'train';",
        ),
        ("def other():\n    def main(): pass", r"its functions are 'other'"),
        ("x = 1", r"its functions are none"),
        ("main = 3", r"is not callable: line 1 of .*flmodule.py gives it a value"),
        ("def main(:\n", r"does not import: .*flmodule.py:1: invalid syntax"),
    ],
)
def test_wrong_functions_are_named(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "flmodule.py").write_text(source)
    location = find_module("flmodule", [tmp_path])
    assert location is not None
    with pytest.raises(EntrypointError, match=message):
        check_function("flmodule:main", location, "entry point")


def test_argument_is_named(tmp_path: Path) -> None:
    (tmp_path / "flmodule.py").write_text("")
    location = find_module("flmodule", [tmp_path])
    assert location is not None
    with pytest.raises(EntrypointError, match=r"^prepare 'flmodule:join' .* expected 'package.module:"):
        check_function("flmodule:join", location, "prepare")


def test_first_import_that_is_nowhere_is_found(tmp_path: Path) -> None:
    files = {
        "flproject/__init__.py": "",
        "flproject/train.py": "from . import net\nfrom flproject.data import read\nimport os.path, json",
        "flproject/net.py": "try:\n    import flfast\nexcept ImportError: pass\ndef f(): import flmissing",
        "flproject/data.py": "from flproject.deep.files import x",
        "flproject/unused.py": "import flmissing",
        "flproject/deep/files.py": "import flnowhere.helpers",
        "flscript.py": "import flproject.unused",
        "flpath.py": "import sys; sys.path.insert(0, 'lib')\nimport flnowhere",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = missing_import("flproject.train", [tmp_path])
    assert found is not None and found[0] == tmp_path / "flproject/deep/files.py"
    assert found[1].startswith("flnowhere")
    (tmp_path / "flproject/deep/files.py").write_text("")
    assert missing_import("flproject.train", [tmp_path]) is None
    assert missing_import(tmp_path / "flscript.py", [tmp_path]) == (
        tmp_path / "flproject/unused.py",
        "flmissing",
    )
    assert missing_import(tmp_path / "flpath.py", [tmp_path]) is None


def test_imports_of_a_file(project: Path, tmp_path: Path) -> None:
    assert imported_top_levels(project / "flscript.py") == {"fltrain", "flspace"}
    (tmp_path / "broken.py").write_text("def (")
    assert imported_top_levels(tmp_path / "broken.py") == set()
    assert imported_top_levels(tmp_path / "absent.py") == set()
