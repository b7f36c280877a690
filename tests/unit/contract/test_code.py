"""Hashes of code: the same in every process, another after every change that counts."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from airflow_hydrogen.contract.code import hash_callable

SOURCE = '''
import functools
import logging
import pathlib
from dataclasses import dataclass, field

import flhelpers

log = logging.getLogger(__name__)
WORDS = {"alpha", "beta", "gamma", "delta"}
TABLE = {"b": {("x", 1)}, "a": [1, 2.5, b"bytes"], 3: pathlib.PurePosixPath("/lake")}
LIMIT = 10


@dataclass
class Net:
    layers: int = 3
    names: list = field(default_factory=lambda: ["a"])

    @property
    def width(self):
        return self.layers * 2

    @functools.cached_property
    def depth(self):
        return 5

    @staticmethod
    def build():
        return Net()


@functools.lru_cache
def cached(x):
    return x + 1


def helper(x, scale=2):
    """Scale it."""
    return x * scale if x in {"p", "q", "r"} else LIMIT


def main(epochs=1, *, rate=0.1):
    import flinner.deep

    class Inner:
        size = 4

    log.info("%s", WORDS | set(TABLE))
    return [helper(x) for x in range(epochs)], Net.build(), cached(1), flhelpers.y, main, Inner
'''


def load(source: str, name: str = "fldag") -> ModuleType:
    module = ModuleType(name)
    module.__file__ = f"/dags/{name}.py"
    sys.modules[name] = module
    sys.modules["flhelpers"] = helpers = ModuleType("flhelpers")
    helpers.y = helpers.z = 1  # type: ignore[attr-defined]
    exec(compile(source, module.__file__, "exec", dont_inherit=True), vars(module))
    return module


def digest(source: str, name: str = "fldag") -> str:
    return hash_callable(load(source, name).main).digest


def test_hash_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "fldag.py").write_text(SOURCE)
    (tmp_path / "flhelpers.py").write_text("")
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parents[3])!r}, {str(tmp_path)!r}]; import fldag;"
        "from airflow_hydrogen.contract.code import hash_callable; print(hash_callable(fldag.main).digest)"
    )
    found = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout.strip())
    assert len(found) == 1
    assert found == {digest(SOURCE)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("WORDS = {", "# A comment.\n\n\nWORDS = {"),
        ("@dataclass\nclass Net:", "def unused(): return 7\n\n\n@dataclass\nclass Net:"),
    ],
)
def test_what_does_nothing_does_not_count(before: str, after: str) -> None:
    assert digest(SOURCE.replace(before, after)) == digest(SOURCE)


def test_module_name_that_airflow_gives_does_not_count() -> None:
    names = [f"unusual_prefix_{character * 40}_fldag" for character in "ab"]
    assert len({digest(SOURCE, name) for name in (*names, "fldag")}) == 1


def test_running_does_not_change_the_hash() -> None:
    module = load(SOURCE.replace("import flinner.deep", "pass"))
    before = hash_callable(module.main)
    for _ in range(50):  # until the interpreter has adapted the bytecode
        module.main(20)
    assert hash_callable(module.main) == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIMIT = 10", "LIMIT = 11"),
        ('"delta"}', '"epsilon"}'),
        ('"a": [1, 2.5', '"a": [1, 2.6'),
        ('{("x", 1)}', '{("x", 2)}'),
        ('PurePosixPath("/lake")', 'PurePosixPath("/sea")'),
        ("epochs=1", "epochs=2"),
        ("rate=0.1", "rate=0.2"),
        ("x * scale if", "x + scale if"),
        ("scale=2", "scale=3"),
        ('"r"}', '"s"}'),
        ("layers: int = 3", "layers: int = 4"),
        ('lambda: ["a"]', 'lambda: ["b"]'),
        ("self.layers * 2", "self.layers * 3"),
        ("return 5", "return 6"),
        ("return Net()", "return Net(1)"),
        ("return x + 1", "return x + 2"),
        ("size = 4", "size = 5"),
        ("flhelpers.y", "flhelpers.z"),
        ("import flinner.deep", "import flinner.shallow"),
    ],
)
def test_whatever_changes_what_it_does_counts(before: str, after: str) -> None:
    assert before in SOURCE
    assert digest(SOURCE.replace(before, after)) != digest(SOURCE)


def test_modules_whose_code_counts_besides_are_named() -> None:
    assert hash_callable(load(SOURCE).main).modules >= {"flhelpers", "flinner.deep"}


def test_relative_import_names_the_package() -> None:
    module = ModuleType("flpackage.train")
    module.__package__ = "flpackage"
    sys.modules["flpackage.train"] = module
    exec("def main():\n    from .net import build\n    from . import data\n    import json", vars(module))
    assert hash_callable(module.main).modules == {"flpackage", "json"}


def closure(value: Any) -> Callable[[], Any]:
    def main() -> Any:
        return value

    return main


class Trainer:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def fit(self) -> float:
        return self.rate

    def __call__(self) -> float:
        return self.rate


def test_closures_partials_and_objects_count() -> None:
    import functools

    import numpy as np

    made = [
        closure(1),
        closure(2),
        closure(np.arange(3)),
        closure(np.arange(4)),
        closure(closure(1)),
        functools.partial(closure, 1),
        functools.partial(closure, 2),
        functools.partial(closure, value=1),
        Trainer(0.1),
        Trainer(0.2),
        Trainer(0.1).fit,
        Trainer(0.2).fit,
        len,
        json.dumps,
    ]
    digests = [hash_callable(function).digest for function in made]
    assert len(set(digests)) == len(made)
    assert hash_callable(Trainer(0.1).fit).digest == digests[10]
    assert hash_callable(closure(np.arange(3))).digest == digests[2]


def test_values_that_refer_to_themselves_end() -> None:
    itself: list[Any] = [1]
    itself.append(itself)
    mapping: dict[str, Any] = {"list": itself}
    mapping["self"] = mapping
    assert hash_callable(closure(mapping)) == hash_callable(closure(mapping))


def test_a_long_chain_of_functions_needs_no_stack() -> None:
    chain: Callable[..., Any] = closure(0)
    for _ in range(1_000):
        chain = closure(chain)
    longer = closure(chain)
    assert hash_callable(chain) == hash_callable(chain)
    assert hash_callable(chain) != hash_callable(longer)


def test_a_row_of_a_long_table_costs_what_one_of_a_short_table_costs() -> None:
    def cpu_seconds(rows: int) -> float:
        main = closure([{"a": row, "b": str(row)} for row in range(rows)])
        gc.disable()  # which would look through all rows again and again
        try:
            start = time.process_time()
            hash_callable(main)
            return time.process_time() - start
        finally:
            gc.enable()

    short = min(cpu_seconds(500) for _ in range(5))
    long = min(cpu_seconds(8_000) for _ in range(3))
    # 16 times the rows: 16 times the work, some more on a machine that is busy, and not 256 times.
    assert long < 90 * short


def test_a_proxy_that_fails_for_names_that_it_lacks_is_hashed() -> None:
    class Lazy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("not connected")

    lazy = Lazy()
    assert hash_callable(closure(lazy)).digest


def test_an_import_in_a_long_function_is_found() -> None:
    lines = [f"    x{number} = {number}.5" for number in range(300)]
    source = "\n".join(["def main():", *lines, "    from flhelpers import scale", "    import flinner.deep"])
    names: dict[str, Any] = {"__name__": "long_one", "__package__": "flpackage"}
    exec(source, names)
    assert hash_callable(names["main"]).modules >= {"flhelpers", "flinner.deep"}
