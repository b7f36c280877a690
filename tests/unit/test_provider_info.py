"""What Airflow learns from the entry point."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import tomllib

from airflow_hydrogen.provider_info import get_provider_info

ROOT = Path(__file__).parents[2]


def test_it_is_valid_under_airflows_schema() -> None:
    schema = json.loads((files("airflow") / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_it_has_the_name_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert get_provider_info()["package-name"] == project["name"]
    entry_points = project["entry-points"]["apache_airflow_provider"]
    assert entry_points == {"provider_info": "airflow_hydrogen.provider_info:get_provider_info"}


def test_everything_it_names_exists() -> None:
    info = get_provider_info()
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for modules in info[kind]:
            for module in modules["python-modules"]:
                importlib.import_module(module)
    paths = [
        *info["extra-links"],
        *info["cli"],
        *(decorator["class-name"] for decorator in info["task-decorators"]),
    ]
    for path in paths:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_it_does_not_import_airflow() -> None:
    """Airflow calls it while it reads its own configuration."""
    code = (
        "import sys; sys.modules['airflow'] = None;"
        "from airflow_hydrogen.provider_info import get_provider_info; get_provider_info();"
        "print(sorted(name for name in sys.modules if name.startswith('airflow_hydrogen')))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['airflow_hydrogen', 'airflow_hydrogen.provider_info']"
