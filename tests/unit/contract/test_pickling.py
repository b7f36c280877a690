"""Callables travel by value, and what cannot travel is named."""

from __future__ import annotations

import functools
import importlib.util
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from airflow_hydrogen.contract import pickling
from airflow_hydrogen.contract.errors import EntrypointPickleError

MODULE = """
    import functools, threading
    FACTOR = 3
    lock = threading.Lock()

    class Scale:
        def __call__(self, x): return x * FACTOR
        def apply(self, x): return helper(x)

    def helper(x): return x * FACTOR
    def main(x): return helper(x)
    def traced(function):
        @functools.wraps(function)
        def wrapper(x): return function(x)
        return wrapper
    @traced
    def wrapped(x): return helper(x)
    def with_lock(x):
        with lock: return x
    def indirect(x): return with_lock(x)
    def nested():
        def inner(x): return helper(x)
        return inner
    double = lambda x: 2 * x
"""


@pytest.fixture(params=["flights_train", "unusual_prefix_" + "0f" * 20 + "_flights_train"])
def module(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A module that no other process can import, under its own name and under the one Airflow gives it."""
    path = tmp_path / "flights_train.py"
    path.write_text(textwrap.dedent(MODULE))
    spec = importlib.util.spec_from_file_location(request.param, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[request.param] = loaded
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules[request.param]


def call_elsewhere(data: bytes, argument: int, tmp_path: Path) -> str:
    """Unpickle and call in a process that does not have the module."""
    (tmp_path / "data").mkdir(exist_ok=True)
    file = tmp_path / "data" / "pickle"
    file.write_bytes(data)
    code = (
        "import sys; from airflow_hydrogen.contract import pickling;"
        f"print(pickling.loads(open({str(file)!r}, 'rb').read())({argument}))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_kind_of_callable_travels_by_value(module: ModuleType, tmp_path: Path) -> None:
    kinds = {
        "function": module.main,
        "nested": module.nested(),
        "lambda": module.double,
        "wrapped": module.wrapped,
        "callable object": module.Scale(),
        "bound method": module.Scale().apply,
        "partial": functools.partial(module.main),
    }
    combined = pickling.dumps_by_value(lambda x: [function(x) for function in kinds.values()])
    single = [pickling.dumps_by_value(function) for function in kinds.values()]
    del sys.modules[module.__name__]
    try:
        assert [pickling.loads(data)(5) for data in single] == [15, 15, 10, 15, 15, 15, 15]
    finally:
        sys.modules[module.__name__] = module
    assert combined


def test_another_process_needs_no_module(module: ModuleType, tmp_path: Path) -> None:
    data = pickling.dumps_by_value(functools.partial(module.wrapped))
    assert call_elsewhere(data, 7, tmp_path) == "21"


def test_taskflow_wrapper_is_taken_off(module: ModuleType) -> None:
    class Decorator(SimpleNamespace):
        _airflow_is_task_decorator = True

        def __call__(self) -> None:
            raise AssertionError("the decorator must not be called")

    assert pickling.loads(pickling.dumps_by_value(Decorator(function=module.main)))(2) == 6
    assert pickling.callable_name(Decorator(function=module.main)) == "flights_train:main"


def test_extra_values_come_back_in_a_tuple(module: ModuleType) -> None:
    function, kwargs = pickling.loads(pickling.dumps_by_value(module.main, {"epochs": 3}))
    assert (function(1), kwargs) == (3, {"epochs": 3})


def test_registrations_of_the_user_stay(module: ModuleType) -> None:
    import cloudpickle

    pickling.dumps_by_value(module.main)
    assert module.__name__ not in cloudpickle.list_registry_pickle_by_value()
    cloudpickle.register_pickle_by_value(module)
    pickling.dumps_by_value(module.main)
    assert module.__name__ in cloudpickle.list_registry_pickle_by_value()
    cloudpickle.unregister_pickle_by_value(module)


LOCK = threading.Lock()


def with_default(x: int, lock: Any = LOCK) -> int:
    return x


def with_keyword_default(*, guard: Any = LOCK) -> None:
    pass


def test_culprit_is_named(module: ModuleType) -> None:
    handle = threading.Lock()

    def closes_over(x: int) -> Any:
        return handle

    class Trainer:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def main(self) -> None:
            pass

    cases: list[tuple[Any, str]] = [
        (module.with_lock, r"flights_train:with_lock cannot be pickled because of global variable 'lock' "),
        (module.indirect, r"global variable 'lock' of 'with_lock' \(_thread.lock\): cannot pickle"),
        (closes_over, r"closure variable 'handle' \(_thread.lock\)"),
        (with_default, r"the default of parameter 'lock' \(_thread.lock\)"),
        (with_keyword_default, r"the default of parameter 'guard' \(_thread.lock\)"),
        (functools.partial(module.main, x={"a": [handle]}), r"argument 'x' of the partial\['a'\]\[0\] "),
        (Trainer().main, r"the object of method 'main', attribute 'lock' \(_thread.lock\)"),
    ]
    for function, message in cases:
        with pytest.raises(EntrypointPickleError, match=message) as caught:
            pickling.dumps_by_value(function)
        assert "Create that object inside the function" in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_culprit_among_extra_values(module: ModuleType) -> None:
    with pytest.raises(EntrypointPickleError, match=r"because of argument 1\['lock'\] \(_thread.lock\)"):
        pickling.dumps_by_value(module.main, {"lock": module.lock})


def triple(x: int) -> int:
    return 3 * x


def test_pysparks_copy_stands_in_for_cloudpickle(tmp_path: Path) -> None:
    file = tmp_path / "pickle"
    file.write_bytes(pickling.dumps_by_value(triple))
    code = f"""
import sys
sys.modules["cloudpickle"] = None  # as if it were not installed
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cloudpickle":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
del sys.modules["cloudpickle"]
from airflow_hydrogen.contract import pickling
function = pickling.loads(open({str(file)!r}, "rb").read())
again = pickling.loads(pickling.dumps_by_value(function))
print(again(4), sys.modules["cloudpickle"].__name__)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["12", "pyspark.cloudpickle"], done.stderr


def test_names_are_the_same_in_every_process(module: ModuleType) -> None:
    assert pickling.callable_name(module.main) == "flights_train:main"
    assert pickling.callable_name(functools.partial(module.main, 1)) == "flights_train:main"
    assert pickling.callable_name(module.Scale()) == "flights_train:Scale"
    assert pickling.callable_name(len) == "builtins:len"
