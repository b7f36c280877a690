from __future__ import annotations

import dataclasses
import importlib.util

import pytest

from airflow_hydrogen.contract.errors import EngineError, NotAModelError
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.runtime.models import engines
from airflow_hydrogen.runtime.models.manifest import FileEntry, Manifest, Twin

KERAS = Manifest(
    framework="keras",
    entry="model.keras",
    signature=Signature((), ()),
    files=(FileEntry("model.keras", "0" * 64, 1), FileEntry("model.onnx", "0" * 64, 1)),
    twins=(Twin(engine="onnx", entry="model.onnx", rows=5, tolerance=1e-3, difference=1e-7),),
)
PLAIN = dataclasses.replace(KERAS, twins=())
ONNX = dataclasses.replace(PLAIN, framework="onnx", entry="model.onnx")
TORCH = dataclasses.replace(PLAIN, framework="torch", entry="model.pt2")
MINE = dataclasses.replace(PLAIN, framework="mine", predictor="package.module:load")


@pytest.mark.parametrize(
    ("manifest", "wanted", "installed", "found"),
    [
        (KERAS, "auto", True, "onnx"),
        (KERAS, "auto", False, "tensorflow"),
        (KERAS, "tensorflow", True, "tensorflow"),
        (KERAS, "onnx", False, "onnx"),  # workers may have it where the driver has not
        (PLAIN, "auto", True, "tensorflow"),
        (ONNX, "auto", False, "onnx"),
        (TORCH, "auto", True, "torch"),
        (TORCH, "torch", False, "torch"),
        (MINE, "auto", True, "predictor"),
    ],
)
def test_the_engine_is_the_twins_where_it_is_installed(manifest, wanted, installed, found, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert engines.choose("m", manifest, wanted, None) == found


@pytest.mark.parametrize(
    ("manifest", "wanted", "found"),
    [
        (KERAS, "auto", "tensorflow"),
        (KERAS, "onnx", "onnx"),
        (ONNX, "auto", "onnx"),
        (MINE, "auto", "predictor"),
    ],
)
def test_on_gpus_a_twin_runs_only_where_it_is_asked_for(manifest, wanted, found, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert engines.choose("m", manifest, wanted, None, 0.5) == found


@pytest.mark.parametrize(
    ("manifest", "wanted", "predictor", "message"),
    [
        (PLAIN, "onnx", None, r"'tensorflow' alone: train it with exports=\('onnx',\)"),
        (ONNX, "tensorflow", None, "it is there for 'onnx' alone$"),
        (ONNX, "torch", None, "it is there for 'onnx' alone$"),
        (KERAS, "torch", None, "it is there for 'tensorflow', 'onnx' alone$"),
        (TORCH, "tensorflow", None, "it is there for 'torch' alone$"),
        (TORCH, "onnx", None, r"it is there for 'torch' alone: torch\.onnx\.export makes"),
        (MINE, "onnx", None, "predictor 'package.module:load' loads it: leave engine out"),
        (KERAS, "onnx", "other:load", "predictor 'other:load' loads it"),
    ],
)
def test_an_engine_that_cannot_run_the_model_is_refused(manifest, wanted, predictor, message):
    with pytest.raises(EngineError, match=message):
        engines.choose("m", manifest, wanted, predictor)


def test_a_twin_survives_its_manifest_and_is_one_of_its_files():
    assert Manifest.loads("m", KERAS.dumps()) == KERAS
    for entry in ("other.onnx", "../model.onnx"):
        bad = dataclasses.replace(KERAS, twins=(dataclasses.replace(KERAS.twins[0], entry=entry),))
        with pytest.raises(NotAModelError, match=r"manifest\.json cannot be read"):
            Manifest.loads("m", bad.dumps())
