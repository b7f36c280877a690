"""The code that a job names: checked before it is submitted, and packed with it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from airflow_hydrogen.contract.code import hash_callable
from airflow_hydrogen.contract.errors import EntrypointError
from airflow_hydrogen.contract.pickling import parts, unwrap
from airflow_hydrogen.drivers.zips import is_file, read_bytes
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook
from airflow_hydrogen.operators.modules import check_function, find_module, imports_relatively, missing_import
from airflow_hydrogen.operators.packing import package_files, project_files


class JobCode:
    """Import paths, scripts and callables of one job.

    Args:
        arguments: name of the argument and its value.
        dag_folders: the DAG file's folder: code beside the DAG is found there, after `sys.path`.
    """

    def __init__(
        self, arguments: Sequence[tuple[str, str | Callable[..., Any]]], dag_folders: Sequence[Path]
    ) -> None:
        self._arguments = arguments
        self._dag_folders = dag_folders

    def check(self, hook: HydrogenSparkSubmitHook, *, elsewhere: bool) -> None:
        """Find what is wrong without importing any of it.

        Args:
            hook: it knows where the application will run.
            elsewhere: the author ships code by other means, so that a module that is not here may be there.

        Raises:
            EntrypointError: no such module, function or script.
        """
        elsewhere = elsewhere or not hook.uses_this_interpreter()
        for argument, code in self._import_paths():
            module = code.partition(":")[0]
            location = find_module(module, self._dag_folders)
            folders = ", ".join(map(str, self._dag_folders)) or "the DAG's folder"
            if location is not None:
                check_function(code, location, argument)
            elif not elsewhere:
                raise EntrypointError(
                    code, f"does not import: no module {module!r} on sys.path or in {folders}", argument
                )
            if not elsewhere:
                self._require_imports(argument, code, module)
        if not hook.is_cluster_mode:
            for argument, script in self._arguments:
                if _is_script(script) and not self.script(script).is_file():
                    raise EntrypointError(script, "does not exist on this machine", argument)
                if _is_script(script) and not elsewhere:
                    self._require_imports(argument, script, self.script(script))

    def _require_imports(self, argument: str, code: str, start: str | Path) -> None:
        """Raise EntrypointError if what is imported first imports a module that is nowhere."""
        if (missing := missing_import(start, self._folders)) is not None:
            file, name = missing
            folders = ", ".join(map(str, self._folders)) or "the DAG's folder"
            raise EntrypointError(
                code,
                f"cannot run: {file} imports {name!r}, which is not on sys.path or in {folders}",
                argument,
            )

    def project_files(self) -> dict[Path, Path]:
        """Project code to ship: name in the zip -> file."""
        sources: set[Path] = set(self.scripts())
        modules = {code.partition(":")[0] for _, code in self._import_paths()}
        for _, code in self._arguments:
            if callable(code):
                for module, file in _source_files(code):
                    sources.add(file)
                    if imports_relatively(file):
                        modules.add(module)
        return project_files(modules, sorted(sources), self._folders)

    @property
    def _folders(self) -> list[Path]:
        """Where code is found after `sys.path`: beside the DAG file, and beside the scripts."""
        return list(dict.fromkeys([*self._dag_folders, *(script.parent for script in self.scripts())]))

    def hash(self, code: str | Callable[..., Any]) -> str | None:
        """Hash of the code behind an argument's value: the same in every process, another after a change.

        It holds what is packed for it, and the sources of an installed package.

        Returns:
            None where this machine does not have the code.
        """
        if callable(code):
            found = hash_callable(code)
            return _hash_files(project_files(found.modules, [], self._folders), found.digest)
        if _is_script(code):
            script = self.script(code)
            if not script.is_file():
                return None
            return _hash_files({Path(script.name): script, **project_files([], [script], self._folders)})
        module = code.partition(":")[0]
        location = find_module(module, self._folders)
        if location is None:
            return None
        if not location.is_installed:
            return _hash_files(project_files([module], [], self._folders))
        return _hash_files(
            {
                inside: file
                for root in location.roots
                for inside, file, _ in package_files(root, location.top_level)
            }
        )

    def scripts(self) -> list[Path]:
        """The scripts that are on this machine."""
        found = [self.script(code) for _, code in self._arguments if _is_script(code)]
        return [script for script in found if script.is_file()]

    def script(self, path: str) -> Path:
        """A script, looked for in the working folder and then beside the DAG file."""
        candidates = [Path(path), *(folder / path for folder in self._dag_folders)]
        return next((found for found in candidates if found.is_file()), candidates[0]).absolute()

    def _import_paths(self) -> Iterator[tuple[str, str]]:
        for argument, code in self._arguments:
            if isinstance(code, str) and not _is_script(code):
                yield argument, code


def _hash_files(files: Mapping[Path, Path], *more: str) -> str:
    contents = {name.as_posix(): hashlib.sha256(read_bytes(file)).hexdigest() for name, file in files.items()}
    return hashlib.sha256(json.dumps([sorted(contents.items()), *more]).encode()).hexdigest()


def _is_script(code: Any) -> TypeGuard[str]:
    return isinstance(code, str) and code.endswith(".py")


def _source_files(function: Callable[..., Any]) -> Iterator[tuple[str, Path]]:
    """Module and source of the parts of a callable."""
    for part in parts(unwrap(function)):
        try:
            file = inspect.getsourcefile(part)
        except (TypeError, OSError):  # built in
            continue
        if file and is_file(Path(file)):
            yield part.__module__, Path(file)
