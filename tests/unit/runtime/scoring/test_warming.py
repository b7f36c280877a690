from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.python_workers import MODULE, MODULES_VARIABLE
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.runtime.gang.preload import Preload
from airflow_hydrogen.runtime.models.manifest import Manifest, Twin
from airflow_hydrogen.runtime.scoring import warming
from airflow_hydrogen.runtime.storage import s3

TWINS = (Twin(engine="onnx", entry="y", rows=1, tolerance=1e-3, difference=0.0),)
CLUSTER = "spark://master:7077"


class Conf(dict):
    """As much of a SparkConf as is asked."""

    contains = dict.__contains__
    getAll = dict.items


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def run(framework, code="", **changes):
        (tmp_path / "of_the_user.py").write_text(code)
        fields = {name: changes.pop(name) for name in ("predictor", "prepare", "engine") if name in changes}
        job = InferenceJob(
            model_uri="/m", source=Source.parquet("/r"), sink=Sink.parquet("/s"), report_uri="/j", **fields
        )
        manifest = Manifest(framework=framework, entry="x", signature=Signature((), ()), files=(), **changes)
        return warming.plan(job, manifest)

    return run


@pytest.mark.parametrize(
    ("framework", "changes", "found"),
    [
        ("keras", {}, {"tensorflow", "keras"}),
        ("tensorflow", {}, {"tensorflow"}),
        ("onnx", {}, {"onnxruntime"}),
        ("keras", {"twins": TWINS, "engine": "onnx", "modules": ("of_the_user",)}, {"onnxruntime"}),
        ("keras", {"twins": TWINS, "engine": "tensorflow"}, {"tensorflow", "keras"}),
        ("torch", {}, {"torch", "torch.export._trace"}),
        ("mine", {}, set()),
        ("keras", {"predictor": "of_the_user:load"}, set()),
        ("mine", {"predictor": "of_the_user:load", "code": "import torch"}, {"torch"}),
        ("keras", {"modules": ("of_the_user",), "code": "import torch"}, {"tensorflow", "keras"}),
    ],
)
def test_a_models_loader_needs_its_framework_and_a_predictor_what_it_names(plan, framework, changes, found):
    preload = plan(framework, **changes)
    known = {"tensorflow", "keras", "torch", "torch.export._trace", "onnxruntime"}
    assert known & set(preload.modules) == found
    assert bool(preload.modules) == bool(found)


@pytest.mark.parametrize(
    "changes",
    [{"predictor": "of_the_user:load"}, {"prepare": "of_the_user:f"}, {"modules": ("of_the_user",)}],
)
def test_code_that_sets_what_frameworks_read_keeps_them_from_being_imported(plan, changes):
    preload = plan("keras", "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'; import keras", **changes)
    assert preload.modules == ()
    assert "TF_USE_LEGACY_KERAS" in preload.why_not


@pytest.mark.parametrize(
    ("master", "root", "ships", "same", "found"),
    [
        ("local[*]", "/tmp/x/runtime.zip", True, True, "/tmp/x/runtime.zip"),
        ("local[*]", "/home/me/checkout", False, True, "/home/me/checkout"),
        ("local[*]", "/venv/lib/python3.11/site-packages", False, True, ""),
        ("local[*]", "/venv/lib/python3.11/site-packages", False, False, None),
        (CLUSTER, "/tmp/x/runtime.zip", True, True, "runtime.zip"),
        ("yarn", "/tmp/x/runtime.zip", True, True, None),
        (CLUSTER, "/venv/lib/python3.11/site-packages", False, True, ""),
        (CLUSTER, "/venv/lib/python3.11/site-packages", True, True, None),
    ],
)
def test_a_daemon_is_set_only_where_every_executor_finds_it(master, root, ships, same, found):
    assert warming.import_path(master, Path(root), ships=ships, same_interpreter=same) == found


@pytest.fixture
def said(monkeypatch):
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setattr(warming, "_start_ahead", lambda conf: "socket")
    return []


def settings(said, modules=("tensorflow",), **given):
    conf = Conf({f"spark.{name.replace('__', '.')}": value for name, value in given.items()})
    return warming.settings(conf, Preload(tuple(modules)), said.append)


def test_settings_add_to_the_users_path(said):
    found = settings(said, master="local[2]", executorEnv__PYTHONPATH="/theirs")
    assert found["spark.python.daemon.module"] == MODULE
    assert found[f"spark.executorEnv.{MODULES_VARIABLE}"] == "tensorflow"
    assert found["spark.executorEnv.PYTHONPATH"].split(os.pathsep)[-1] == "/theirs"
    assert found["spark.executorEnv.SPARK_SIMPLIFIED_TRACEBACK"] == "1"
    assert said == []


@pytest.mark.parametrize(
    "given", [{"python__daemon__module": "theirs"}, {"python__use__daemon": "false"}, {"modules": ()}]
)
def test_the_users_own_daemon_wins_and_nothing_to_import_changes_nothing(said, given):
    assert settings(said, **given) == {}
    assert said == []


def test_where_executors_may_not_find_the_daemon_the_log_says_so(said):
    assert settings(said, master="yarn", submit__pyFiles="/tmp/runtime.zip") == {}
    (line,) = said
    assert "each Python worker imports the model's framework for itself" in line


def test_why_nothing_is_imported_is_said(said):
    assert warming.settings(Conf(), Preload(why_not="it names X"), said.append) == {}
    assert said == ["each Python worker imports the model's framework for itself: it names X"]


def test_what_workers_are_forked_from_has_no_keys_of_the_jobs_connection(monkeypatch):
    access = S3Access(conn_id="lake", access_key="A", secret_key="hush", endpoint_url="http://store")
    environ = {"HOME": "/h", "AWS_PROFILE": "own"}
    access.set_variables(environ)
    started = []
    monkeypatch.setattr(warming.os, "environ", environ)
    monkeypatch.setattr(warming.subprocess, "Popen", lambda *_given, env, **_more: started.append(env))
    monkeypatch.setattr(warming.atexit, "register", lambda *_given: None)
    with s3.using(access):
        warming._start_ahead({})
    [found] = started
    assert found["AWS_PROFILE"] == "own"
    assert "hush" not in found.values() and "AWS_ENDPOINT_URL" not in found
