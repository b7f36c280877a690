"""Arguments from the form that Airflow can template to the values of a job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import Sink, Source


def to_source(argument: str, value: Any) -> Source:
    """The source of a rendered argument.

    Raises:
        InvalidJobError: it is no source.
    """
    if isinstance(value, Source):
        return value
    if not isinstance(value, Mapping):
        raise InvalidJobError(
            f"{argument} must be a Source, such as Source.parquet(uri), or its to_dict(), found {value!r}"
        )
    try:
        return Source.from_dict(value)
    except InvalidJobError as error:
        raise InvalidJobError(f"{argument}: {error}") from None


def to_sink(argument: str, value: Any) -> Sink:
    """The sink of a rendered argument.

    Raises:
        InvalidJobError: it is no sink.
    """
    if not isinstance(value, Mapping):
        raise InvalidJobError(
            f"{argument} must be a Sink, such as Sink.parquet(uri), or its to_dict(), found {value!r}"
        )
    try:
        return Sink.from_dict(value)
    except InvalidJobError as error:
        raise InvalidJobError(f"{argument}: {error}") from None


def to_integer(argument: str, value: Any) -> int:
    """An integer, also as the text that a template renders to.

    Raises:
        InvalidJobError: it is neither.
    """
    if isinstance(value, str):
        try:
            return int(value.strip())
        except ValueError:
            raise InvalidJobError(f"{argument} must be an integer, found {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidJobError(f"{argument} must be an integer, found {value!r}")
    return value


def at_least(argument: str, value: Any, minimum: int) -> int:
    """An integer that is not too small, also as the text that a template renders to.

    Raises:
        InvalidJobError: it is no integer, or too small.
    """
    number = to_integer(argument, value)
    if number < minimum:
        raise InvalidJobError(f"{argument} must be at least {minimum}, found {number}")
    return number


def as_template(value: Any) -> Any:
    """The form in which an argument waits for its templates: Airflow cannot render a frozen value."""
    return value.to_dict() if isinstance(value, (Source, Sink)) else value


def finite(value: Any) -> Any:
    """A JSON value without NaN and infinity, which databases refuse: they become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
