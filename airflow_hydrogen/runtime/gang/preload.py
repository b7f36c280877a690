"""Which frameworks a gang will import: read in the entry point, which is not run for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder

from airflow_hydrogen.contract.jobs import Entrypoint
from airflow_hydrogen.contract.python_workers import READ_AT_IMPORT

_MAX_MODULES = 50

# What is imported with each name that may stand in a program, in the order of their imports.
_WITH_TENSORFLOW = (
    "pyarrow",
    "cloudpickle",
    "tensorflow",
    "keras",
    "horovod.tensorflow",
    "airflow_hydrogen.runtime.keras",
)
_MODULES = {
    "tensorflow": _WITH_TENSORFLOW,
    "keras": _WITH_TENSORFLOW,
    "torch": ("pyarrow", "cloudpickle", "torch", "horovod.torch"),
}
_NAME = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(_MODULES)})(?![A-Za-z0-9_])")


@dataclass(frozen=True)
class Preload:
    """What may be imported before `main` runs.

    Attributes:
        modules: in order; none where the entry point names no framework.
        why_not: why none of those that it names may; None where they may.
        required: one that is not installed is a reason not to fork: the user has named it.
    """

    modules: tuple[str, ...] = ()
    why_not: str | None = None
    required: bool = False


def named(modules: Sequence[str]) -> Preload:
    """What the user wants to have imported: frameworks with what belongs to them, and other modules."""
    wanted = [found for name in modules for found in _MODULES.get(name, (name,))]
    return Preload(tuple(dict.fromkeys(wanted)), required=True)


def plan(entrypoint: Entrypoint, script: str | None) -> Preload:
    """Find the frameworks that an entry point names, in its own text and in its package's.

    A program that names a variable which frameworks read when they are imported sets it, as like as not,
    before it imports them: then nothing is imported beforehand.

    Args:
        entrypoint: of the gang.
        script: the text of a script.
    """
    text = "\n".join(_texts(entrypoint, script))
    if variable := _setting(text):
        return Preload(
            why_not=f"the entry point names {variable}, which frameworks read when they are imported"
        )
    named = set(_NAME.findall(text))
    wanted = [module for name, modules in _MODULES.items() if name in named for module in modules]
    return Preload(tuple(dict.fromkeys(wanted)))


def _setting(text: str) -> str | None:
    found = re.search(rf"(?<![A-Za-z0-9_])(?:{READ_AT_IMPORT.pattern})(?![A-Za-z0-9_])", text)
    return found and found[0]


def _texts(entrypoint: Entrypoint, script: str | None) -> Iterator[str]:
    if entrypoint.kind == "script":
        yield _code(script or "")
    elif entrypoint.kind == "callable":
        yield entrypoint.pickle.decode("latin-1")
    else:
        yield from _sources(entrypoint.value.partition(":")[0])


def _sources(module: str) -> Iterator[str]:
    """The source of a module, and of those of its package that it imports, and so on; nothing is imported."""
    package = module.partition(".")[0]
    waiting, seen = [module], {""}
    while waiting and len(seen) < _MAX_MODULES:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])  # runs before it
        spec = _find(name)
        text = getattr(spec.loader, "get_source", _no_source)(name) if spec is not None else None
        if spec is not None and text is not None:
            yield _code(text)
            waiting += [found for found in _imports(text, spec) if found.partition(".")[0] == package]


def _code(text: str) -> str:
    """A program without its comments and docstrings, which name what they like."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ""  # which the rank will say
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


def _no_source(_name: str) -> str | None:
    return None


def _find(module: str) -> ModuleSpec | None:
    """Where a module is, without running the packages above it."""
    path: list[str] | None = None
    spec = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _imports(text: str, spec: ModuleSpec) -> Iterator[str]:
    """Names of modules that a module imports, and of what it imports from them, which may be modules too."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return  # which the rank will say
    package = spec.name if spec.submodule_search_locations is not None else spec.parent or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
