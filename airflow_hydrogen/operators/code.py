"""The code that a job names: checked before it is submitted, and packed with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from airflow_hydrogen.contract.errors import EntrypointError
from airflow_hydrogen.contract.pickling import parts, unwrap
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook
from airflow_hydrogen.operators.modules import check_function, find_module
from airflow_hydrogen.operators.packing import project_files


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
            if location is not None:
                check_function(code, location, argument)
            elif not elsewhere:
                folders = ", ".join(map(str, self._dag_folders)) or "the DAG's folder"
                raise EntrypointError(
                    code, f"does not import: no module {module!r} on sys.path or in {folders}", argument
                )
        if not hook.is_cluster_mode:
            for argument, script in self._arguments:
                if _is_script(script) and not self.script(script).is_file():
                    raise EntrypointError(script, "does not exist on this machine", argument)

    def project_files(self) -> dict[Path, Path]:
        """Project code to ship: name in the zip -> file."""
        sources: set[Path] = set()
        for _, code in self._arguments:
            if callable(code):
                sources |= set(_source_files(code))
        sources |= set(self.scripts())
        modules = [code.partition(":")[0] for _, code in self._import_paths()]
        return project_files(modules, sorted(sources), self._dag_folders)

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


def _is_script(code: Any) -> TypeGuard[str]:
    return isinstance(code, str) and code.endswith(".py")


def _source_files(function: Callable[..., Any]) -> Iterator[Path]:
    for part in parts(unwrap(function)):
        try:
            file = inspect.getsourcefile(part)
        except (TypeError, OSError):  # built in
            continue
        if file and Path(file).is_file():
            yield Path(file)
