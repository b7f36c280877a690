"""What may import what: rules that import-linter cannot say."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "airflow_hydrogen"


def _imports(path: Path, *, lazy: bool) -> set[str]:
    """Top-level names of the modules that a file imports; `lazy` includes imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", sorted((PACKAGE / "contract").glob("*.py")), ids=lambda path: path.name)
def test_the_contract_imports_the_standard_library_alone(path):
    # cloudpickle is imported where a callable is pickled, and there only.
    strangers = _imports(path, lazy=False) - set(sys.stdlib_module_names) - {"airflow_hydrogen"}
    assert strangers == set()
    assert _imports(path, lazy=True) - set(sys.stdlib_module_names) <= {"airflow_hydrogen", "cloudpickle"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "runtime").rglob("*.py")), ids=lambda path: path.name)
def test_the_runtime_never_imports_airflow_not_even_lazily(path):
    assert "airflow" not in _imports(path, lazy=True)


@pytest.mark.parametrize("module", ["airflow_hydrogen", "airflow_hydrogen.provider_info"])
def test_what_airflow_executes_while_it_configures_itself_imports_nothing(module):
    heavy = ("airflow", "numpy")
    code = f"import sys, {module}; print([m for m in sys.modules if m.partition('.')[0] in {heavy!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_ranks_process_starts_without_a_framework_or_spark():
    heavy = ("airflow", "pyspark", "tensorflow", "keras", "torch", "pandas", "pyarrow", "numpy")
    code = (
        "import sys, airflow_hydrogen.runtime.rank.worker;"
        f"print(sorted({{m.partition('.')[0] for m in sys.modules}} & set({heavy!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_runtimes_public_surface_is_what_it_says_it_is():
    import airflow_hydrogen.runtime as hydrogen

    assert hydrogen.__all__ == [
        "ExportedModel",
        "HorovodRunner",
        "TrainContext",
        "get_context",
        "get_dataset_shard",
        "keras",
        "publish_model",
        "report",
    ]
    public = {name for name, value in vars(hydrogen).items() if not name.startswith("_")}
    rooms = {path.stem for path in (PACKAGE / "runtime").iterdir()}
    assert public - rooms - {"annotations", "Any", "TYPE_CHECKING"} <= set(hydrogen.__all__)
