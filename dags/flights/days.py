"""The day that a run is about."""

from __future__ import annotations

from datetime import date, datetime

YEAR = 2013


def day_of_run(
    *, param: str | None, partition_key: str | None, logical_date: datetime | None, run_after: datetime
) -> str:
    """Choose a run's partition: what was asked for, else the run's own date.

    The lake holds one year. A run of another year, such as today's, is about the same day of that year, so
    that the DAG's schedule has something to do.

    Args:
        param: the day that the user gave.
        partition_key: of a run of a partitioned timetable, or given with a trigger.
        logical_date: None for runs that an asset event or the CLI started.
        run_after: every run has one.

    Returns:
        The day as `YYYY-MM-DD`.

    Raises:
        ValueError: `param` or `partition_key` is no date.
    """
    if asked := param or partition_key:
        return date.fromisoformat(asked[:10]).isoformat()
    day = (logical_date or run_after).date()
    if (day.month, day.day) == (2, 29):
        day = day.replace(day=28)
    return day.replace(year=YEAR).isoformat()
