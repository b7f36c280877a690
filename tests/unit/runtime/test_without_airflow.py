from __future__ import annotations

import importlib

import pytest


def test_what_runs_without_airflow_is_tested_without_it() -> None:
    with pytest.raises(ModuleNotFoundError, match="belongs in another folder"):
        importlib.import_module("airflow.sdk_of_a_test")
