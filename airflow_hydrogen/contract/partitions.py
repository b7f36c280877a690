"""The partitions that one job replaces, all of them declared: those without rows are replaced too. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_hydrogen.contract.errors import InvalidJobError

Partition = Mapping[str, str]
"""Partition column -> value."""

DAYS = "days"
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_MOST = 10_000
_FORMS = (
    'a list of values, a list of {column: value} where there are several columns, or days("2013-01-01", '
    '"2014-01-01")'
)


def days(start: str, end: str) -> dict[str, list[str]]:
    """The days from one until another, which is not one of them, as Airflow's data intervals have it.

    Args:
        start: the first day, `2013-01-01` or a template of it.
        end: the day after the last one, likewise.
    """
    return {DAYS: [start, end]}


def declared(columns: Sequence[str], given: Any) -> tuple[str | Partition, ...] | dict[str, list[str]]:
    """Partitions as a sink keeps them as long as they may be templates.

    Args:
        columns: by which they are told apart.
        given: what the sink was given.

    Raises:
        InvalidJobError: it is none of the forms, or names a partition twice.
    """
    if isinstance(given, Mapping):
        return _days(columns, given)
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise InvalidJobError(f"sink partitions must be {_FORMS}; found {given!r}")
    found = [_partition(columns, item) for item in given]
    if len(found) > _MOST:
        raise InvalidJobError(f"sink partitions are {len(found):,}, and a job replaces at most {_MOST:,}")
    told = {tuple(partition.values()) for partition in found}
    if len(told) < len(found):
        twice = next(partition for place, partition in enumerate(found) if partition in found[:place])
        raise InvalidJobError(f"sink partitions name {twice!r} twice")
    return tuple(
        item if isinstance(item, str) else partition for item, partition in zip(given, found, strict=True)
    )


def expanded(
    columns: Sequence[str], kept: tuple[str | Partition, ...] | dict[str, list[str]]
) -> tuple[Partition, ...]:
    """The partitions themselves, once templates are rendered.

    Raises:
        InvalidJobError: `days` of what is no day, or of no days.
    """
    if not isinstance(kept, Mapping):
        return tuple(_partition(columns, item) for item in kept)
    start, end = (_day(text) for text in kept[DAYS])
    number = (end - start).days
    if number < 1:
        raise InvalidJobError(
            f"sink partitions: there is no day from {start} until {end}, which is not one of them: give "
            "days() the day after the last one"
        )
    if number > _MOST:
        raise InvalidJobError(f"sink partitions are {number:,} days, and a job replaces at most {_MOST:,}")
    return tuple({columns[0]: str(start + datetime.timedelta(day))} for day in range(number))


def _partition(columns: Sequence[str], item: Any) -> dict[str, str]:
    if not isinstance(item, Mapping):
        item = {columns[0]: item} if len(columns) == 1 else {}
    if set(item) != set(columns):
        raise InvalidJobError(
            f"each of sink partitions must have a value for {', '.join(map(repr, columns))}, as partition_by "
            f"says; found {dict(item)!r}: expected {_FORMS}"
        )
    for column in columns:
        if not isinstance(item[column], str) or not item[column]:
            raise InvalidJobError(
                f"sink partitions: {column!r} must be a string that is not empty, found {item[column]!r}"
            )
    return {column: item[column] for column in columns}


def _days(columns: Sequence[str], given: Mapping[str, Any]) -> dict[str, list[str]]:
    bounds = given.get(DAYS)
    if (
        set(given) != {DAYS}
        or not isinstance(bounds, Sequence)
        or isinstance(bounds, str)
        or len(bounds) != 2
    ):
        raise InvalidJobError(f"sink partitions must be {_FORMS}; found {dict(given)!r}")
    if len(columns) != 1:
        raise InvalidJobError(
            f"sink partitions: days() are the values of one column, and partition_by has {len(columns)}: "
            "list the partitions, {column: value} each"
        )
    return {DAYS: list(bounds)}


def _day(text: Any) -> datetime.date:
    if isinstance(text, str) and _DAY.fullmatch(text):
        try:
            return datetime.date.fromisoformat(text)
        except ValueError:  # such as February 30
            pass
    raise InvalidJobError(
        f"sink partitions: days() takes days such as '2013-01-01', found {text!r}; a template of Airflow's "
        "dates is '{{ data_interval_start | ds }}'"
    )
