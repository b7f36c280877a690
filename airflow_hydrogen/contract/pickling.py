"""Callables as bytes, by value: the cluster needs not have the module that defines them.

cloudpickle is imported when a callable is pickled, and only then.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from airflow_hydrogen.contract.errors import EntrypointPickleError

# Airflow gives the module of a DAG file such a name, with a hash of its path in it.
DAG_MODULE = re.compile(r"unusual_prefix_[0-9a-f]{40}_")


def dumps_by_value(function: Callable[..., Any], *extra: Any) -> bytes:
    """Pickle a callable with the code of its module's functions and classes, not their names.

    Args:
        function: a function, lambda, nested function, `functools.partial`, bound method, callable object or
            a function under TaskFlow's decorators, of which the function itself is taken.
        extra: values to pickle together with it.

    Returns:
        The pickle of the function, or of the tuple (function, *extra) when there is something extra. `loads`
        reads it.

    Raises:
        EntrypointPickleError: it refers to an object that cannot be pickled; the error names that object.
    """
    cloudpickle = _cloudpickle()
    function = unwrap(function)
    with ExitStack() as registered:
        for module in _defining_modules(function):
            if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                registered.callback(cloudpickle.unregister_pickle_by_value, module)
        try:
            data: bytes = cloudpickle.dumps((function, *extra) if extra else function)
        except Exception as error:
            culprit, reason = _find_culprit(function, extra) or ("an object it refers to", error)
            raise EntrypointPickleError(callable_name(function), culprit, _one_line(reason)) from error
    return data


def loads(data: bytes) -> Any:
    """Read what `dumps_by_value` wrote."""
    return _cloudpickle().loads(data)


def unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """The plain function under TaskFlow's decorators; anything else as it is."""
    while getattr(type(function), "_airflow_is_task_decorator", False):
        function = function.function  # type: ignore[attr-defined]
    return function


def callable_name(function: Callable[..., Any]) -> str:
    """How messages and manifests call a callable: `module:qualified.name`, the same in every process."""
    function = unwrap(function)
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = DAG_MODULE.sub("", getattr(named, "__module__", None) or "")
    return f"{module}:{named.__qualname__}" if module else named.__qualname__


def _cloudpickle() -> Any:
    """cloudpickle, or PySpark's copy of it under that name: clusters need not have the package itself."""
    try:
        return importlib.import_module("cloudpickle")
    except ModuleNotFoundError:
        copy = importlib.import_module("pyspark.cloudpickle")
        # The pickles of either name the functions of "cloudpickle.cloudpickle".
        sys.modules["cloudpickle"] = copy
        sys.modules["cloudpickle.cloudpickle"] = importlib.import_module("pyspark.cloudpickle.cloudpickle")
        return copy


def _defining_modules(function: Callable[..., Any]) -> list[types.ModuleType]:
    """Modules whose functions and classes must travel by value, without the standard library's."""
    names = {part.__module__ for part in parts(function) if getattr(part, "__module__", None)}
    names -= {"__main__", "builtins"}  # cloudpickle takes the first by value anyway
    return [
        sys.modules[name]
        for name in sorted(names)
        if name in sys.modules and name.partition(".")[0] not in sys.stdlib_module_names
    ]


def parts(function: Any) -> Iterator[Any]:
    """The functions and classes that a callable is made of."""
    seen: set[int] = set()
    pending = [function]
    while pending:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, functools.partial):
            pending += [part.func, *(arg for arg in (*part.args, *part.keywords.values()) if callable(arg))]
        elif isinstance(part, types.MethodType):
            owner = part.__self__
            pending += [part.__func__, owner if isinstance(owner, type) else type(owner)]
        elif isinstance(part, (types.FunctionType, type)):
            yield part
            pending.append(getattr(part, "__wrapped__", None))
        else:
            pending.append(type(part))


def _find_culprit(function: Any, extra: tuple[Any, ...]) -> tuple[str, Exception] | None:
    for index, value in enumerate(extra):
        if (found := _search(value, f"argument {index + 1}", set())) is not None:
            return found
    return _search(function, "", set())


def _search(value: Any, label: str, seen: set[int]) -> tuple[str, Exception] | None:
    """The innermost object that does not pickle, and why; None when `value` pickles."""
    if id(value) in seen:
        return None
    seen.add(id(value))
    try:
        _cloudpickle().dumps(value)
        return None
    except Exception as error:
        reason = error
    for child_label, child in _children(value, label):
        if (found := _search(child, child_label, seen)) is not None:
            return found
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return (f"{label} ({kind})" if label else f"itself ({kind})"), reason


def _children(value: Any, label: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        yield label, value.func
        for index, argument in enumerate(value.args):
            yield f"argument {index + 1} of the partial", argument
        for name, argument in value.keywords.items():
            yield f"argument {name!r} of the partial", argument
    elif isinstance(value, types.MethodType):
        yield f"the object of method {value.__name__!r}", value.__self__
        yield label, value.__func__
    elif isinstance(value, types.FunctionType):
        of = f" of {value.__qualname__!r}" if label else ""
        for name, default in _defaults(value):
            yield f"the default of parameter {name!r}{of}", default
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f"closure variable {name!r}{of}", cell.cell_contents
            except ValueError:  # an empty cell: a variable that has no value yet
                continue
        for name in sorted(_global_names(value.__code__)):
            if name in value.__globals__:
                yield f"global variable {name!r}{of}", value.__globals__[name]
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{label}[{key!r}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"{label}[{index}]", item
    elif not isinstance(value, (type, types.ModuleType)) and isinstance(
        getattr(value, "__dict__", None), dict
    ):
        for name, attribute in vars(value).items():
            yield (f"{label}, attribute {name!r}" if label else f"attribute {name!r}"), attribute


def _defaults(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    defaults = function.__defaults__ or ()
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def _global_names(code: types.CodeType) -> set[str]:
    """Names that code, or code nested in it, may look up in the module."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
