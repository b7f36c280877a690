"""Find the code that a job names, and check it, without running any of it."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen.contract.errors import EntrypointError


@dataclass(frozen=True)
class ModuleLocation:
    """Where a module is.

    Attributes:
        name: its full name.
        file: its source, or None where there is none: a namespace package, a compiled module.
        root: the folder on the path that holds its top-level package.
    """

    name: str
    file: Path | None
    root: Path | None

    @property
    def top_level(self) -> str:
        """The first part of its name."""
        return self.name.partition(".")[0]

    @property
    def is_installed(self) -> bool:
        """It belongs to an environment, which the cluster is expected to have too, and not to a project."""
        if self.root is None or {"site-packages", "dist-packages"} & set(self.root.parts):
            return True
        libraries = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
        return any(self.root.is_relative_to(library) for library in libraries)


def find_module(name: str, extra_folders: Sequence[Path] = ()) -> ModuleLocation | None:
    """Find a module as an import would, importing neither it nor its parents.

    Args:
        name: `package.module`.
        extra_folders: searched when `sys.path` does not have the top-level package.
    """
    top_level, *rest = name.split(".")
    spec = _find_top_level(top_level, extra_folders)
    root = _root(spec)
    full_name = top_level
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        full_name += f".{part}"
        spec = _find_in(full_name, list(spec.submodule_search_locations))
    if spec is None:
        return None
    file = Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None
    return ModuleLocation(name, file, root)


def check_function(import_path: str, location: ModuleLocation, argument: str) -> None:
    """Check that a module's source defines the function that an import path names.

    Args:
        import_path: `package.module:function`.
        location: where the module is.
        argument: the name of the argument, for the message.

    Raises:
        EntrypointError: the module has no such name, its value cannot be called, or the file is not Python.
    """
    if location.file is None:
        return
    wanted = import_path.partition(":")[2].partition(".")[0]
    try:
        tree = ast.parse(location.file.read_bytes(), filename=str(location.file))
    except SyntaxError as error:
        raise EntrypointError(
            import_path, f"does not import: {location.file}:{error.lineno}: {error.msg}", argument
        ) from None
    names: dict[str, ast.stmt] = {}
    for statement in _top_level_statements(tree.body):
        for name in _bound_names(statement):
            names[name] = statement
    if "*" in names or "__getattr__" in names:
        return  # only running the module tells
    if wanted not in names:
        functions = [
            name
            for name, found in names.items()
            if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        raise EntrypointError(
            import_path,
            f"does not exist: {location.file} has no {wanted!r}, its functions are "
            f"{', '.join(map(repr, functions)) or 'none'}",
            argument,
        )
    found = names[wanted]
    if isinstance(found, (ast.Assign, ast.AnnAssign)) and isinstance(
        found.value, (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.JoinedStr)
    ):
        raise EntrypointError(
            import_path, f"is not callable: line {found.lineno} of {location.file} gives it a value", argument
        )


def imported_top_levels(source: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it; none when it cannot be parsed."""
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, OSError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _find_top_level(name: str, extra_folders: Sequence[Path]) -> importlib.machinery.ModuleSpec | None:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module in sys.modules without a spec: __main__
        spec = None
    if spec is None and extra_folders:
        spec = importlib.machinery.PathFinder.find_spec(name, [str(folder) for folder in extra_folders])
    return spec


def _find_in(name: str, locations: list[str]) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, locations)
        except KeyError:  # a namespace package whose parent is not imported
            folders = [Path(location, name.rpartition(".")[2]) for location in locations]
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(folder) for folder in folders if folder.is_dir()]
        if spec is not None:
            return spec
    return None


def _root(spec: importlib.machinery.ModuleSpec | None) -> Path | None:
    if spec is None:
        return None
    if locations := list(spec.submodule_search_locations or ()):
        return Path(locations[0]).resolve().parent
    if spec.origin and spec.has_location:
        return Path(spec.origin).resolve().parent
    return None


def _top_level_statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, those inside `if`, `try` and `with` included."""
    for statement in body:
        yield statement
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _top_level_statements(getattr(statement, part, ()))
        for handler in getattr(statement, "handlers", ()):
            yield from _top_level_statements(handler.body)


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.With)):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
