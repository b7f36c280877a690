"""What a cluster has, and what of it is free, at one moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

GPU = "gpu"
"""Spark's name for GPUs. Cluster managers say `yarn.io/gpu` or `nvidia.com/gpu`; snapshots say this."""

# The only GPU names that mean a whole, unshared NVIDIA device; others keep their own name.
_ALIASES = {"yarn.io/gpu": GPU, "nvidia.com/gpu": GPU}


def canonical_resource(name: str) -> str:
    """One name for what cluster managers name differently: a GPU is `gpu` everywhere."""
    return _ALIASES.get(name, name)


@dataclass(frozen=True)
class Amounts:
    """Cores, memory and countable resources.

    Attributes:
        cores: cores; Kubernetes counts in thousandths of one.
        memory_bytes: memory that a cluster manager gives away, in bytes.
        resources: amount by resource, such as `{"gpu": 4}`.
    """

    cores: float = 0
    memory_bytes: int = 0
    resources: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def sum(cls, amounts: Iterable[Amounts]) -> Amounts:
        """All of them together."""
        cores, memory_bytes = 0.0, 0
        resources: Counter[str] = Counter()
        for amount in amounts:
            cores += amount.cores
            memory_bytes += amount.memory_bytes
            resources.update(amount.resources)
        return cls(_whole(round(cores, 3)), memory_bytes, dict(resources))

    def minus(self, other: Amounts) -> Amounts:
        """What is left, never less than nothing: a node may be overcommitted."""
        return Amounts(
            cores=_whole(max(0, round(self.cores - other.cores, 3))),
            memory_bytes=max(0, self.memory_bytes - other.memory_bytes),
            resources={
                name: max(0, amount - other.resources.get(name, 0)) for name, amount in self.resources.items()
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "resources": dict(sorted(self.resources.items())),
        }


@dataclass(frozen=True)
class Node:
    """One worker, node manager or Kubernetes node: no process spans two of them.

    Attributes:
        name: unique in the cluster.
        host: the machine; several workers of a standalone cluster may share one.
    """

    name: str
    host: str
    total: Amounts
    free: Amounts


@dataclass(frozen=True)
class ClusterSnapshot:
    """The nodes that take work, at one moment.

    Attributes:
        master: Spark's master URL.
        nodes: nodes that are up and take new work.
        fixed: no node will ever join, as on a single machine.
    """

    master: str
    nodes: tuple[Node, ...]
    fixed: bool = False

    @property
    def total(self) -> Amounts:
        """What all nodes have."""
        return Amounts.sum(node.total for node in self.nodes)

    @property
    def free(self) -> Amounts:
        """What nobody uses on all nodes."""
        return Amounts.sum(node.free for node in self.nodes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: what the sensor's XCom is."""
        return {
            "master": self.master,
            "total": self.total.to_dict(),
            "free": self.free.to_dict(),
            "hosts": [
                {
                    "name": node.name,
                    "host": node.host,
                    "total": node.total.to_dict(),
                    "free": node.free.to_dict(),
                }
                for node in self.nodes
            ],
        }


def _whole(number: float) -> float:
    """2 rather than 2.0 where it makes no difference."""
    return int(number) if number == int(number) else number
