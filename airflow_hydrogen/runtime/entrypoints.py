"""What a job names: importable code, and callables that travel."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from airflow_hydrogen.contract.errors import EntrypointError
from airflow_hydrogen.contract.jobs import Entrypoint


def resolve_import_path(path: str) -> Any:
    """The object at `package.module:function`.

    Raises:
        EntrypointError: it does not import, is not there or is not callable.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise EntrypointError(path, f"does not import ({type(error).__name__}: {error})") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise EntrypointError(path, f"does not exist: module {module_name!r} has no {attribute!r}")
        found = getattr(found, name)
    if not callable(found):
        raise EntrypointError(path, f"is not callable: it is a {type(found).__name__}")
    return found


def require_same_python(entrypoint: Entrypoint) -> None:
    """Refuse a callable that another Python version pickled.

    Raises:
        EntrypointError: naming both versions.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if entrypoint.python not in (None, here):
        raise EntrypointError(
            entrypoint.name,
            f"was pickled by Python {entrypoint.python} and cannot be read by Python {here} on the cluster: "
            "use the same version, or pass the entry point as 'package.module:function'",
        )
