"""Checks of values that travel as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_hydrogen.contract import CONTRACT_VERSION
from airflow_hydrogen.contract.errors import ContractVersionError, InvalidJobError, KwargsError


def require_json(argument: str, value: object) -> None:
    """Raise KwargsError, naming the place, unless `value` survives a round trip through JSON.

    Args:
        argument: the name of the argument, for the message.
        value: what the user passed.

    Raises:
        KwargsError: an object that JSON cannot hold, a key that is not a string, NaN or infinity.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise KwargsError(argument, f"{value!r} is not a JSON number")
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise KwargsError(argument, f"key {key!r} is a {type(key).__name__}, not a string")
            require_json(f"{argument}[{key!r}]", item)
        return
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            require_json(f"{argument}[{index}]", item)
        return
    raise KwargsError(argument, f"{value!r} is a {type(value).__module__}.{type(value).__qualname__}")


def require_int(argument: str, value: object) -> None:
    """Raise InvalidJobError unless `value` is an integer, which a boolean is not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidJobError(f"{argument} must be an integer, found {value!r}")


def require_version(document: dict[str, Any], what: str) -> None:
    """Take the version of the contract out of a file's document.

    Args:
        document: loses its `contract_version`.
        what: the file, for messages.

    Raises:
        ContractVersionError: another version of the package has written it.
    """
    version = document.pop("contract_version", None)
    if version != CONTRACT_VERSION:
        raise ContractVersionError(what, version, CONTRACT_VERSION)


def refuse_unknown_fields(cls: type[Any], document: Mapping[str, Any]) -> None:
    """Hold the keys of a JSON object against the fields of a dataclass.

    Raises:
        InvalidJobError: one too many, or one that has no default too few.
    """
    known = {item.name: item for item in dataclasses.fields(cls)}
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise InvalidJobError(f"{cls.__name__} has no {', '.join(unknown)}; expected {', '.join(known)}")
    missing = sorted(
        name
        for name, item in known.items()
        if name not in document
        and item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
    )
    if missing:
        raise InvalidJobError(f"{cls.__name__} needs {', '.join(missing)}")


def require_fields(
    value: Any,
    what: str,
    needed: Sequence[str],
    allowed: Sequence[str],
    wanted: Mapping[str, str],
    example: str,
) -> None:
    """Hold the fields of a dataclass that are given against those that its kind has.

    Args:
        value: of the dataclass.
        what: it is, for messages, such as "jdbc source".
        needed: fields without which it is none.
        allowed: what others it may have.
        wanted: what a needed field should hold, where its name does not say that.
        example: how it is made.

    Raises:
        InvalidJobError: a field is missing, or one too many.
    """
    for name in needed:
        if not getattr(value, name):
            raise InvalidJobError(
                f"a {what} needs {wanted.get(name, f'a {name}')}, as in {example}; found "
                f"{getattr(value, name)!r}"
            )
    fields = [item.name for item in dataclasses.fields(value)]
    given = [name for name in fields if getattr(value, name) not in (None, {}, ())]
    if wrong := [name for name in given if name not in (*needed, *allowed)]:
        raise InvalidJobError(f"a {what} has no {', '.join(wrong)}")


def unless_none(name: str, value: object) -> dict[str, Any]:
    """A field of a JSON object that is left out where there is nothing in it."""
    return {} if value is None else {name: value}
