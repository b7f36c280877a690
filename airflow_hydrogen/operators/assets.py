"""What a task tells Airflow about the assets among its outlets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import uris

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

log = logging.getLogger(__name__)


def emit_events(
    context: Context, outlets: Iterable[Any], location: str | None, extra: Mapping[str, Any]
) -> None:
    """Give the outlets' events their extra.

    An asset's event is Airflow's own, and gets the extra. An asset alias stands for what is known only
    now: the asset of the place's URI gets an event through it.

    Args:
        context: Airflow's.
        outlets: of the task.
        location: where the model or the scores are; None where there are none.
        extra: what the events say.
    """
    from airflow.sdk import Asset, AssetAlias

    events = context["outlet_events"]
    for outlet in outlets:
        if isinstance(outlet, Asset):
            events[outlet].extra = {**events[outlet].extra, **extra}
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
