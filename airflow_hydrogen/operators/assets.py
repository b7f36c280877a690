"""What a task tells Airflow about the assets among its outlets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

# Airflow drops what follows '#' and sorts what follows '?'.
_SAFE = "/%:=+,@!$&'()*;~"

log = logging.getLogger(__name__)


def asset_uri(location: str) -> str:
    """The URI under which Airflow knows a place: `file:///models/m`, `s3://bucket/key`."""
    scheme, found, rest = location.partition("://")
    if not found:
        return f"file://{quote(str(Path(location.removeprefix('file:')).absolute()), safe=_SAFE)}"
    return f"{'s3' if scheme in ('s3a', 's3n') else scheme}://{quote(rest.rstrip('/'), safe=_SAFE)}"


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
                asset = Asset(uri=asset_uri(location))
            except (
                ValueError
            ) as error:  # the work is done: a name that Airflow refuses is no reason to lose it
                log.warning("asset alias %r gets no event: %s", outlet.name, error)
                continue
            events[outlet].add(asset, extra=dict(extra))
