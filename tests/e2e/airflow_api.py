"""Airflow's API, as its UI asks it."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

# A proxy of this machine must not be asked for addresses that only this machine has.
_web = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(address: str, method: str, path: str, body: Any = None, key: str = "") -> Any:
    """Ask, and return the JSON of the answer.

    Args:
        address: of the API server.
        method: GET, POST, PATCH, ...
        path: with its query.
        body: becomes JSON; None for no body.
        key: the token of who asks; empty for nobody.

    Raises:
        urllib.error.HTTPError: the answer is an error.
    """
    request = urllib.request.Request(
        f"{address}{path}",
        json.dumps(body).encode() if body is not None else None,
        {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
        method=method,
    )
    with _web.open(request, timeout=60) as answer:
        return json.load(answer)
