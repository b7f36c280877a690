"""What loading a `.keras` file looks up: Keras's own classes, and code of the user's."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAMBDA = "__lambda__"
"""What a Python lambda is called in a file. None is ever loaded in safe mode."""

_KERAS = {"keras", "builtins", "tensorflow", "numpy"}
# Keras's own, but what they run is not: whether they load depends on the process's safe mode.
_FOREIGN = {"Lambda", "TFSMLayer", "TorchModuleWrapper"}


@dataclass(frozen=True)
class NamedObject:
    """A class or function that a file names: the module that it was in, and what it is registered as."""

    module: str
    name: str

    @property
    def is_custom(self) -> bool:
        """Not Keras's own: it has to be registered by its module before the file is loaded."""
        return self.module.partition(".")[0] not in _KERAS


def named_objects(file: Path) -> list[NamedObject]:
    """All that a `.keras` file names, each once. A registered function may stand there as a plain string."""
    import keras

    registered = keras.saving.get_custom_objects()
    with zipfile.ZipFile(file) as archive:
        config = json.loads(archive.read("config.json"))
    config.pop("compile_config", None)  # scoring does not compile
    found = []
    for value in _values(config):
        if isinstance(value, str):
            if value in registered:
                found.append(NamedObject(str(registered[value].__module__), value))
        elif "class_name" in value and "config" in value:
            name = value.get("registered_name") or value["class_name"]
            found.append(NamedObject(str(value.get("module") or "builtins"), str(name)))
    return list(dict.fromkeys(found))


def is_plain(objects: Sequence[NamedObject]) -> bool:
    """Whether Keras loads all of these by itself, in any process alike."""
    return not any(named.is_custom or named.name in _FOREIGN for named in objects)


def custom_modules(objects: Sequence[NamedObject]) -> tuple[str, ...]:
    """The modules to import before the file is loaded."""
    return tuple(sorted({named.module for named in objects if named.is_custom}))


def _values(value: Any) -> Iterator[Any]:
    """All strings and mappings in a JSON document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield value
        for child in value.values():
            yield from _values(child)
    elif isinstance(value, list):
        for child in value:
            yield from _values(child)
