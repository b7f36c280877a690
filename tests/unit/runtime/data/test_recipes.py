"""What decides the rows of a prepared dataset."""

from __future__ import annotations

import importlib
import sys
import zipfile

import pytest

from airflow_hydrogen.runtime.data.code import source_hashes
from airflow_hydrogen.runtime.data.recipes import changes, fingerprint


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A package and a helper beside it, as a DAG folder holds them."""
    texts = {
        "flightproject/__init__.py": "",
        "flightproject/features.py": "import json\nfrom . import clean\n"
        "def prepare(spark, frame):\n    from flightproject.late import add\n    import flighthelper\n",
        "flightproject/clean.py": "import numpy\nlimit = 3\n",
        "flightproject/late.py": "def add(): ...\n",
        "flightproject/unused.py": "",
        "flighthelper.py": "x = 1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("flight")]:
        del sys.modules[name]


def test_the_code_of_a_function_is_its_module_and_what_that_imports_from_beside_it(project):
    assert sorted(source_hashes("flightproject.features")) == [
        "flighthelper",
        "flightproject",
        "flightproject.clean",
        "flightproject.features",
        "flightproject.late",
    ]


@pytest.mark.parametrize("name", ["flightproject/clean.py", "flightproject/late.py", "flighthelper.py"])
def test_a_changed_helper_changes_the_code_and_is_named(project, name):
    before = source_hashes("flightproject.features")
    with (project / name).open("a") as file:
        file.write("# another\n")
    now = source_hashes("flightproject.features")
    changed = [module for module in before if before[module] != now[module]]
    assert changed == [name.removesuffix(".py").replace("/", ".")]


def test_an_unused_module_and_installed_packages_do_not_count(project):
    before = source_hashes("flightproject.features")
    (project / "flightproject" / "unused.py").write_text("y = 1\n")
    assert source_hashes("flightproject.features") == before
    assert {name.partition(".")[0] for name in source_hashes("pluggy")} == {"pluggy"}


def test_code_in_a_zip_counts(project, monkeypatch):
    with zipfile.ZipFile(project / "bundle.zip", "w") as bundle:
        bundle.writestr("flightzip.py", "import flightzipped\n")
        bundle.writestr("flightzipped.py", "")
    monkeypatch.syspath_prepend(str(project / "bundle.zip"))
    importlib.invalidate_caches()
    assert list(source_hashes("flightzip")) == ["flightzip", "flightzipped"]


def test_what_has_no_source_is_not_known():
    assert source_hashes("math") is None
    assert source_hashes("no_such_module") is None


def test_the_part_that_changed_is_named():
    before = {"the source's where": "1", "prepare_kwargs": "2", "the source's files": "3"}
    assert changes(before, dict(before)) == []
    assert changes(before, {**before, "the source's where": "9"}) == ["the source's where changed"]
    assert changes({}, before) == [f"{name} changed" for name in before]
    gone = {name: part for name, part in before.items() if name != "prepare_kwargs"}
    assert changes(before, gone) == ["prepare_kwargs changed"]


def test_rows_without_a_version_are_never_used_again():
    unknown = {"the source's files": ""}
    assert changes(unknown, unknown) == ["the source's files cannot be known"]


def test_the_layout_is_no_part_of_the_fingerprint():
    parts = {"the number of ranks": "1", "the source's uri": "2"}
    assert fingerprint(parts) == fingerprint({**parts, "the number of ranks": "9"})
    assert fingerprint(parts) != fingerprint({**parts, "the source's uri": "9"})
