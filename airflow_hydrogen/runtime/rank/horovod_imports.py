"""What happens when a rank imports Horovod: its modules are changed in memory as they come in.

Their collectives leave marks for the watchdog (`progress`), and what cannot work with Keras 3 is replaced
(`horovod_bridge`). A rank's process installs this before it runs `main`. Nothing is imported until `main`
imports Horovod, and no installed file is touched. The bridge stands on a floor above this one, hence the
import paths.

Standard library only.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from airflow_hydrogen.runtime.entrypoints import resolve_import_path

_MARKS = "airflow_hydrogen.runtime.progress:watch_horovod"
_BRIDGE = "airflow_hydrogen.runtime.horovod_bridge.serve"

# Module -> the functions that change it once it has run, in their order. A module stands behind those that
# it imports from.
_CHANGES: dict[str, tuple[str, ...]] = {
    "horovod.torch.mpi_ops": (_MARKS,),
    "horovod.tensorflow.mpi_ops": (_MARKS, f"{_BRIDGE}:operations"),
    "horovod.tensorflow.functions": (f"{_BRIDGE}:functions",),
    "horovod.tensorflow.elastic": (f"{_BRIDGE}:tensorflow_elastic",),
    "horovod.tensorflow": (f"{_BRIDGE}:tensorflow",),
    **{
        f"horovod.{keras}{module}": (f"{_BRIDGE}:{change}",)
        for keras in ("tensorflow.keras", "keras")
        for module, change in (
            (".callbacks", "keras_callbacks"),
            (".elastic", "keras_elastic"),
            ("", "keras_api"),
        )
    },
}


def install() -> None:
    """Change Horovod in this process, now if it is imported already, else when it is. Idempotent."""
    for name in _CHANGES:
        if name in sys.modules:
            _change(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def uninstall() -> None:
    """Change no further imports. Modules that were imported meanwhile stay as they are."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _change(module: ModuleType) -> None:
    for path in _CHANGES[module.__name__]:
        resolve_import_path(path)(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules where the other finders do, and has them changed once they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _CHANGES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, _change)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, change: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._change = change

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)

    def __getattr__(self, name: str) -> Any:
        """Everything else a loader offers (get_source, is_package, resources) is the real one's."""
        return getattr(self._loader, name)
