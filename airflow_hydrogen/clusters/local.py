"""This machine: as many cores as the master says, no GPUs, nobody else to wait for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.session import Session
from airflow_hydrogen.clusters.snapshot import Amounts, ClusterSnapshot, Node
from airflow_hydrogen.contract.errors import InvalidJobError

_LOCAL = re.compile(r"local(?:\[(\*|\d+)(?:,\s*\d+)?\])?")
_LOCAL_CLUSTER = re.compile(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")


class LocalMachine:
    """`local`, `local[4]`, `local[*]` and `local-cluster[workers,cores,MiB]`.

    Spark in local mode knows no GPUs: its scheduler hands none out.
    """

    def __init__(self, endpoint: ClusterEndpoint) -> None:
        self._master = endpoint.master

    @staticmethod
    def addresses(master: str, extra: Mapping[str, Any], conn_id: str) -> tuple[str, ...]:
        """There is nobody to ask."""
        return ()

    async def snapshot(self, session: Session) -> ClusterSnapshot:
        """No request. Everything is free: Spark starts as many threads as the master says."""
        if match := _LOCAL_CLUSTER.fullmatch(self._master):
            workers, cores, memory_mib = map(int, match.groups())
            nodes = [_node(f"local-{index}", cores, memory_mib << 20) for index in range(workers)]
        elif match := _LOCAL.fullmatch(self._master):
            count = match[1] or "1"
            nodes = [_node("local", _cores() if count == "*" else int(count), _memory_bytes())]
        else:
            raise InvalidJobError(
                f"master {self._master!r} is not understood; expected 'local', 'local[4]', 'local[*]' or "
                "'local-cluster[2,1,1024]'"
            )
        return ClusterSnapshot(self._master, tuple(nodes), fixed=True)


def _node(name: str, cores: int, memory_bytes: int) -> Node:
    amounts = Amounts(cores, memory_bytes)
    return Node(name=name, host="localhost", total=amounts, free=amounts)


def _cores() -> int:
    # What the JVM sees as well: containers and taskset limit both.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
