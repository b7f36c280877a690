"""The code that a function is made of, as hashes: what is prepared by other code is prepared again."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path


def source_hashes(module: str) -> dict[str, str] | None:
    """Hashes of the sources of a module and of all that it imports from beside it.

    Beside it is its own top-level package, and, where that is not an installed one, the modules that lie in
    the same place: the helpers of a DAG folder. Imports within functions count. What is imported by a name
    that is made up while the code runs is not seen.

    Args:
        module: name of an importable module.

    Returns:
        Module name -> hash, or None where the module's source is not there.
    """
    spec = _spec(module)
    if spec is None or _source(spec) is None:
        return None
    root = _root(module, spec)
    own = module.partition(".")[0]
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in found or (spec := _spec(name)) is None or (source := _source(spec)) is None:
            continue
        if top != own and (root is None or _root(name, spec) != root):
            continue
        found[name] = hashlib.sha256(source).hexdigest()
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += _imports(source, package)
    return dict(sorted(found.items()))


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Names that may be modules: `from a import b` may mean the module `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _spec(name: str) -> ModuleSpec | None:
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded.__spec__
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # its parent is no package: a function or class, not a module
        return None


def _source(spec: ModuleSpec) -> bytes | None:
    """The text of a module, out of a zip too; None for what has none: built-in, compiled, a namespace."""
    read = getattr(spec.loader, "get_data", None)
    if read is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        return bytes(read(spec.origin))
    except OSError:
        return None


def _root(name: str, spec: ModuleSpec) -> Path | None:
    """The folder or zip on the path that a module's top-level package lies in; None for installed ones."""
    if not spec.origin or name.partition(".")[0] in sys.stdlib_module_names:
        return None
    depth = name.count(".") + (1 if spec.submodule_search_locations is not None else 0)
    root = Path(spec.origin).parents[depth]
    installed = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return None if root in installed else root
