#!/usr/bin/env python3
"""A health check: does a JSON page say what it should?

health.py http://spark-master:8080/json/ status=ALIVE
health.py http://airflow-api-server:8080/api/v2/monitor/health scheduler.status=healthy

In a slim image there is no curl, and Airflow's own `airflow jobs check` takes seconds of a core each time.
"""

from __future__ import annotations

import json
import sys
import urllib.request

TIMEOUT_S = 5


def main(url: str, condition: str) -> int:
    """Return 0 if the page has the value, and say what it has instead otherwise."""
    path, _, wanted = condition.partition("=")
    # A proxy of the host's is of no use inside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
    except (OSError, ValueError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if str(found) == wanted:
        return 0
    print(f"{url}: {path} is {found!r}, expected {wanted!r}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
