"""What a task tells Airflow about the assets among its outlets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

KEY_DELIMITER = "|"
"""What Airflow's `ProductMapper` finds between the values of a partition key."""

log = logging.getLogger(__name__)


def emit_events(
    context: Context,
    outlets: Iterable[Any],
    location: str | None,
    extra: Mapping[str, Any],
    partition_keys: Sequence[str] = (),
) -> None:
    """Give the outlets' events their extra.

    An asset's event is Airflow's own, and gets the extra. An asset alias stands for what is known only
    now: the asset of the place's URI gets an event through it.

    Args:
        context: Airflow's.
        outlets: of the task.
        location: where the model or the scores are; None where there are none.
        extra: what the events say.
        partition_keys: of the partitions that were written: each of them gets an event of its own, where the
            DAG says by its schedule that its runs find their partitions. In any other DAG such events would
            start none of the DAGs that are scheduled by the asset alone.
    """
    from airflow.sdk import Asset, AssetAlias

    events = context["outlet_events"]
    for outlet in outlets:
        if isinstance(outlet, Asset):
            events[outlet].extra = {**events[outlet].extra, **extra}
            if partition_keys and _finds_partitions(context):  # of an alias's events Airflow knows none
                _add_partitions(events[outlet], partition_keys)
        elif isinstance(outlet, AssetAlias) and location is None:
            log.warning("asset alias %r gets no event: nothing was published", outlet.name)
        elif isinstance(outlet, AssetAlias) and location is not None:
            try:
                asset = Asset(uri=uris.asset_uri(location))
            except ValueError as error:
                # The work is done: a name that Airflow refuses is no reason to lose it.
                log.warning("asset alias %r gets no event: %s", outlet.name, error)
                continue
            events[outlet].add(asset, extra=dict(extra))


def _add_partitions(event: Any, keys: Sequence[str]) -> None:
    try:
        event.add_partitions([*keys])
    except ValueError as error:
        log.warning("the event of an asset gets no partition keys: %s", error)
        return
    event.extra.pop("partitions", None)  # else the event of each would hold the list of all


def _finds_partitions(context: Context) -> bool:
    """Whether the DAG's schedule is `PartitionedAtRuntime`, or one like it; Airflow has it since 3.3."""
    dag = getattr(context.get("task"), "dag", None)
    return bool(getattr(getattr(dag, "timetable", None), "partitioned_at_runtime", False))
