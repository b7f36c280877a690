from __future__ import annotations

import sys

import pytest

from airflow_hydrogen.contract.jobs import Entrypoint
from airflow_hydrogen.contract.pickling import dumps_by_value
from airflow_hydrogen.contract.python_workers import READ_AT_IMPORT
from airflow_hydrogen.runtime.gang.preload import Preload, named, plan

SCRIPT = Entrypoint.parse("train.py")


def of_script(text):
    return plan(SCRIPT, text)


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("import tensorflow as tf", "tensorflow"),
        ("import horovod.tensorflow as hvd", "tensorflow"),
        ("from keras import layers", "keras"),
        ("hydrogen.keras.callbacks()", "airflow_hydrogen.runtime.keras"),
        ("import torch", "torch"),
    ],
)
def test_the_frameworks_that_a_program_names_are_imported(text, module):
    preload = of_script(text)
    assert module in preload.modules
    assert ("torch" in preload.modules) == (module == "torch")
    assert preload.why_not is None


def test_the_user_names_frameworks_with_what_belongs_to_them_and_other_modules():
    found = named(["torch", "my_package.layers"])
    assert found == Preload(
        ("pyarrow", "cloudpickle", "torch", "horovod.torch", "my_package.layers"), required=True
    )


@pytest.mark.parametrize("text", ["print('nothing')", "import torchvision_like", "kerasify = 1", ""])
def test_and_no_others(text):
    assert of_script(text).modules == ()


def test_a_callable_is_read_where_it_is_pickled():
    def main():
        import torch

        return torch

    assert "torch" in plan(Entrypoint.pickled(dumps_by_value(main), "main"), None).modules


def test_an_importable_entry_point_is_read_with_its_package_and_not_run(tmp_path, monkeypatch):
    package = tmp_path / "package_of_a_test"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it was run')")
    (package / "main.py").write_text("from . import inner\nfrom .inner.model import build\nimport json")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "model.py").write_text("import keras")
    (package / "other.py").write_text("import torch")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    preload = plan(Entrypoint.parse("package_of_a_test.main:main"), None)
    assert "keras" in preload.modules
    assert "torch" not in preload.modules
    (package / "inner" / "__init__.py").write_text("import os\nos.environ['KERAS_BACKEND'] = 'jax'")
    assert "names KERAS_BACKEND" in plan(Entrypoint.parse("package_of_a_test.main:main"), None).why_not


@pytest.mark.parametrize("path", ["no_such_module:main", "json:dumps", "sys:exit", "airflow_hydrogen:main"])
def test_what_has_no_source_or_is_not_there_names_nothing(path):
    assert plan(Entrypoint.parse(path), None).modules == ()


@pytest.mark.parametrize(
    "name", ["KERAS_BACKEND", "TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL", "OMP_NUM_THREADS"]
)
def test_a_program_that_names_what_a_framework_reads_when_it_is_imported_imports_it_itself(name):
    preload = of_script(f"import os\nos.environ['{name}'] = '1'\nimport keras")
    assert preload.modules == ()
    assert preload.why_not is not None
    assert f"names {name}, which" in preload.why_not


@pytest.mark.parametrize(
    "name",
    ["CUDA_VISIBLE_DEVICES", "TF_CONFIG", "TF_NUM_INTRAOP_THREADS", "HOROVOD_RANK", "KERAS", "MY_TF_X"],
)
def test_what_is_read_later_is_no_reason(name):
    assert not READ_AT_IMPORT.fullmatch(name)
    assert of_script(f"os.environ['{name}']\nimport keras").modules
