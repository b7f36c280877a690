"""Find the code that a job names, and check it, without running any of it."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen.contract.errors import EntrypointError
from airflow_hydrogen.drivers.zips import read_bytes

# Whoever runs Spark has the first two; the others have no business there.
_NEVER_PROJECT = {"pyspark", "py4j", "airflow", "airflow_hydrogen"}


@dataclass(frozen=True)
class ModuleLocation:
    """Where a module is.

    Attributes:
        name: its full name.
        file: its source, which may lie in a zip, or None where there is none: a namespace package, a compiled
            module.
        roots: the folders or zips on the path that hold its top-level package: several of a namespace
            package, none of a module that is built in.
    """

    name: str
    file: Path | None
    roots: tuple[Path, ...]

    @property
    def top_level(self) -> str:
        """The first part of its name."""
        return self.name.partition(".")[0]

    @property
    def project_roots(self) -> tuple[Path, ...]:
        """Those of its roots that belong to a project, and to no environment."""
        if self.top_level in _NEVER_PROJECT:
            return ()
        return tuple(root for root in self.roots if not _is_environment(root))

    @property
    def is_installed(self) -> bool:
        """It belongs to an environment, which the cluster is expected to have too, and not to a project."""
        return not self.project_roots


def find_module(name: str, extra_folders: Sequence[Path] = ()) -> ModuleLocation | None:
    """Find a module as an import would, importing neither it nor its parents.

    Args:
        name: `package.module`.
        extra_folders: searched when `sys.path` does not have the top-level package.
    """
    top_level, *rest = name.split(".")
    spec = _find_top_level(top_level, extra_folders)
    roots = _roots(spec)
    full_name = top_level
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        full_name += f".{part}"
        spec = _find_in(full_name, list(spec.submodule_search_locations))
    if spec is None:
        return None
    file = Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None
    return ModuleLocation(name, file, roots)


def missing_import(start: str | Path, extra_folders: Sequence[Path] = ()) -> tuple[Path, str] | None:
    """An import that fails for certain as soon as a module of the project is imported or a script is run.

    Followed are the imports that stand at the top of a module, in no `if`, `try` or function: from module to
    module, through the project.

    Args:
        start: a module that is there, or a script.
        extra_folders: as for `find_module`.

    Returns:
        The file, and the name of the module that it imports and that is nowhere; None when all is there.
    """
    pending: list[tuple[str, Path | None]] = (
        [(start, None)]
        if isinstance(start, str)
        else [(name, start) for name in _certain_imports(start, "__main__")]
    )
    seen: set[str] = set()
    while pending:
        name, importer = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        parent, _, _ = name.rpartition(".")
        if parent:
            pending.append((parent, importer))
        top_level = find_module(name.partition(".")[0], extra_folders)
        if top_level is not None and top_level.is_installed:
            continue  # what an environment's own packages import is their affair
        location = find_module(name, extra_folders)
        if location is None:
            if importer is None:
                continue
            return importer, name
        if location.file is not None:
            pending += [(found, location.file) for found in _certain_imports(location.file, name)]
    return None


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
        tree = ast.parse(read_bytes(location.file), filename=str(location.file))
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
    return set(_imports_of(source).top_levels)


def imports_relatively(source: Path) -> bool:
    """Whether a file imports from its own package by `from . import ...`, anywhere in it."""
    return _imports_of(source).relative


@dataclass(frozen=True)
class _Imports:
    """What a file imports, anywhere in it: nothing when it cannot be parsed."""

    top_levels: frozenset[str] = frozenset()
    relative: bool = False


def _imports_of(source: Path) -> _Imports:
    try:
        return _imports_in(read_bytes(source))
    except (SyntaxError, OSError, ValueError):
        return _Imports()


@functools.lru_cache(maxsize=1024)  # a job's code is looked at when it is checked, hashed and packed
def _imports_in(source: bytes) -> _Imports:
    names: set[str] = set()
    relative = False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                relative = True
            elif node.module:
                names.add(node.module.partition(".")[0])
    return _Imports(frozenset(names), relative)


def _find_top_level(name: str, extra_folders: Sequence[Path]) -> importlib.machinery.ModuleSpec | None:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module in sys.modules without a spec: __main__
        spec = None
    if (spec is None or spec.origin is None) and extra_folders:
        # A package anywhere comes before folders that merely have its name.
        path = [*sys.path, *(str(folder) for folder in extra_folders)]
        spec = importlib.machinery.PathFinder.find_spec(name, path) or spec
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


def _roots(spec: importlib.machinery.ModuleSpec | None) -> tuple[Path, ...]:
    if spec is None:
        return ()
    if locations := list(spec.submodule_search_locations or ()):
        return tuple(dict.fromkeys(Path(location).resolve().parent for location in locations))
    if spec.origin and spec.has_location:
        return (Path(spec.origin).resolve().parent,)
    return ()


def _is_environment(root: Path) -> bool:
    """Whether a folder on the path holds what was installed, and not a project."""
    if {"site-packages", "dist-packages"} & set(root.parts):
        return True
    libraries = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    if any(root.is_relative_to(library) for library in libraries):
        return True
    # Airflow puts its folder of settings on the path: they may hold secrets.
    home = Path(os.path.expandvars(os.environ.get("AIRFLOW_HOME", "~/airflow"))).expanduser()
    if root == (home / "config").resolve():
        return True
    return any(root.glob("*.dist-info"))  # `pip install --target`


def _certain_imports(file: Path, module: str) -> set[str]:
    """Modules that a module imports whatever happens; none where it changes the path of imports."""
    try:
        source = read_bytes(file)
        tree = ast.parse(source)
    except (SyntaxError, OSError, ValueError):
        return set()
    if b"sys.path" in source or b"meta_path" in source:
        return set()
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    names: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            above = package[: len(package) - statement.level + 1] if statement.level else []
            if name := ".".join([*above, *([statement.module] if statement.module else [])]):
                names.add(name)
    return names


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
