"""What a callable does, as a hash: the same in every process that runs the same code, another after a change.

Pickles do not serve: they hold line numbers and paths, and sets in an order that is another in each process.
Bytecode does, with constants, defaults, closures and what it refers to. It depends on Python's minor version.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import sys
import types
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_hydrogen.contract.pickling import DAG_MODULE, callable_name, unwrap

_GLOBAL_LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
# Of a class: where it stands, what Python keeps for itself, and notes.
_CLASS_NOISE = {
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__qualname__",
    "__static_attributes__",
    "__weakref__",
}
# Of a module: where it lies, and under which name Airflow imported it.
_MODULE_NOISE = {"__builtins__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__spec__"}
_PLAIN = (type(None), bool, int, float, complex, type(Ellipsis), type(NotImplemented))


@dataclass(frozen=True)
class CodeHash:
    """The hash of a callable.

    Attributes:
        digest: sha256 of its code, and of the functions and classes of project modules that it refers to.
        modules: modules that it refers to or imports, whose own code the digest does not hold.
    """

    digest: str
    modules: frozenset[str]


def hash_callable(function: Callable[..., Any]) -> CodeHash:
    """Hash what a callable does.

    Comments, line numbers, paths and names of modules do not count. Code of installed packages counts by its
    name.

    Args:
        function: any callable, also under TaskFlow's decorators.
    """
    reader = _Reader()
    text = json.dumps(reader.read(unwrap(function)))
    return CodeHash(hashlib.sha256(text.encode()).hexdigest(), frozenset(reader.modules))


class _Reader:
    """Values as JSON. What others may refer to stands in a table once, so that cycles end.

    Args:
        seen: places in the tables of those that read before, by the id of the object.
        first_place: of this one's table.
    """

    def __init__(self, seen: ChainMap[int, int] | None = None, first_place: int = 0) -> None:
        self.modules: set[str] = set()
        self._seen: ChainMap[int, int] = ChainMap() if seen is None else seen.new_child()
        self._next_place = first_place
        self._waiting: deque[tuple[int, Any]] = deque()
        self._alive: list[Any] = []  # an id is somebody else's once its object is gone

    def read(self, value: Any) -> list[Any]:
        """The token of a value, and the table.

        What stands in the table is read one after the other: functions that refer to functions may be a chain
        of thousands, more than Python's stack holds.
        """
        token, table = self.token(value), []
        while self._waiting:
            place, waiting = self._waiting.popleft()
            table.append([place, *self._content(waiting)])
        return [token, table]

    def token(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return [type(value).__name__, repr(value)]
        if type(value) is str:
            return ["str", DAG_MODULE.sub("", value)]
        if isinstance(value, (bytes, bytearray)):
            return ["bytes", hashlib.sha256(value).hexdigest()]
        if type(value) is tuple:
            return ["tuple", *map(self.token, value)]
        if type(value) in (set, frozenset):
            return [type(value).__name__, *self._unordered(value)]
        if isinstance(value, types.CodeType):
            return ["code", *self._code(value)]
        if isinstance(value, types.ModuleType):
            self.modules.add(value.__name__)
            return ["module", value.__name__]
        if isinstance(value, types.FunctionType | type) and not _is_project(value.__module__):
            return ["installed", callable_name(value)]
        if id(value) in self._seen:
            return ["seen", self._seen[id(value)]]
        place = self._next_place
        self._next_place += 1
        self._seen[id(value)] = place
        self._alive.append(value)
        self._waiting.append((place, value))
        return ["seen", place]

    def _content(self, value: Any) -> Iterator[Any]:
        if isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            yield from ("class", *map(self.token, value.__bases__))
            for name in sorted(set(vars(value)) - _CLASS_NOISE):
                yield [name, self.token(vars(value)[name])]
        elif type(value) is list:
            yield from ("list", *map(self.token, value))
        elif type(value) in (dict, types.MappingProxyType):
            yield from ("mapping", *self._mapping(value))
        elif isinstance(value, types.MethodType):
            yield from ("method", self.token(value.__func__), self.token(value.__self__))
        elif isinstance(value, functools.partial):
            yield from ("partial", *map(self.token, (value.func, value.args, value.keywords)))
        elif isinstance(value, property):
            yield from ("property", *map(self.token, (value.fget, value.fset, value.fdel)))
        elif isinstance(value, functools.cached_property):
            yield from ("cached_property", self.token(value.func))
        elif isinstance(value, types.CellType):
            yield from ("cell", *self._cell(value))
        elif inspect.getattr_static(value, "__wrapped__", None) is not None:
            # Static and class methods, and what lru_cache makes; no proxies, which may know every name.
            yield from (callable_name(type(value)), self.token(value.__wrapped__))
        else:
            yield from self._object(value)

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        yield "function"
        yield self.token(function.__code__)
        yield [self.token(function.__defaults__), self.token(function.__kwdefaults__)]
        for cell in function.__closure__ or ():
            yield self.token(cell)
        loaded, imported = _names(function.__code__)
        for name in sorted(loaded & set(function.__globals__) - _MODULE_NOISE):
            yield [name, self.token(function.__globals__[name])]
        package = function.__globals__.get("__package__")
        self.modules |= {name or str(package) for name in imported if name or package}

    def _code(self, code: types.CodeType) -> Iterator[Any]:
        yield code.co_code.hex()
        yield [self.token(constant) for constant in code.co_consts]
        yield [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
        yield [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        yield getattr(code, "co_exceptiontable", b"").hex()  # since Python 3.11

    def _cell(self, cell: types.CellType) -> Iterator[Any]:
        try:
            yield self.token(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            return

    def _mapping(self, value: Mapping[Any, Any]) -> Iterator[Any]:
        keys = {key: _digest(self._apart(key)) for key in value}
        for key in sorted(value, key=keys.__getitem__):
            yield [keys[key], self.token(value[key])]

    def _unordered(self, values: Iterable[Any]) -> list[str]:
        return sorted(_digest(self._apart(value)) for value in values)

    def _apart(self, value: Any) -> Any:
        """A token that does not depend on what was read before: sets have no order that lasts."""
        reader = _Reader(self._seen, self._next_place)
        document = reader.read(value)
        self.modules |= reader.modules
        return document

    def _object(self, value: Any) -> Iterator[Any]:
        """Anything else: by what its pickle would hold."""
        kind = type(value)
        yield self.token(kind)
        if kind.__module__.partition(".")[0] == "airflow":
            return
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # whatever it raises: what cannot be pickled does not travel
            return
        if isinstance(reduced, str):
            yield reduced
            return
        # What makes it, arguments, state, and the items of lists and mappings.
        yield [self.token(list(part) if isinstance(part, Iterator) else part) for part in reduced]


def _digest(token: Any) -> str:
    return hashlib.sha256(json.dumps(token).encode()).hexdigest()


def _is_project(module_name: str | None) -> bool:
    """Whether a module's code may change from one try to the next: it is no installed package's."""
    if not module_name:
        return True
    if module_name.partition(".")[0] in {*sys.stdlib_module_names, "airflow_hydrogen"}:
        return module_name == "__main__"
    file = getattr(sys.modules.get(module_name), "__file__", None)
    return file is None or not any(f"/{folder}/" in file for folder in ("site-packages", "dist-packages"))


def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Global names that code loads, and modules that it imports; "" is one of its own package."""
    loaded: set[str] = set()
    imported: set[str] = set()
    # Until Python 3.13 prefixes of long arguments are listed as instructions.
    instructions = [found for found in dis.get_instructions(code) if found.opname != "EXTENDED_ARG"]
    for index, instruction in enumerate(instructions):
        if instruction.opname in _GLOBAL_LOADS:
            loaded.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            level = instructions[index - 2].argval  # of `from .. import`, loaded before the names
            imported.add("" if level else instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            more = _names(constant)
            loaded, imported = loaded | more[0], imported | more[1]
    return loaded, imported
