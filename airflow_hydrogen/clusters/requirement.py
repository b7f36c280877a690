"""What a task needs of a cluster, and whether the cluster has it: values in, values out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_hydrogen.clusters.snapshot import GPU, Amounts, ClusterSnapshot, canonical_resource
from airflow_hydrogen.contract.errors import InvalidJobError

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp])i?b?", re.IGNORECASE)


@dataclass(frozen=True)
class Requirement:
    """What has to be there at the same time.

    Attributes:
        resources: amount by resource, over the whole cluster.
        cores: over the whole cluster.
        memory_bytes: over the whole cluster.
        hosts: machines that must have at least one of everything asked for, or room for a process of the
            gang.
        np: processes of a gang; 0 for no gang.
        gpus_per_process: GPUs of each process, on one node.
        cpus_per_process: cores of each process, on the same node.
        free_now: free at this moment; False: in total, whoever uses it.

    Raises:
        InvalidJobError: it asks for nothing, or for amounts that make no sense. One message names all faults.
    """

    resources: Mapping[str, int] = field(default_factory=dict)
    cores: int = 0
    memory_bytes: int = 0
    hosts: int = 1
    np: int = 0
    gpus_per_process: int = 0
    cpus_per_process: int = 1
    free_now: bool = True

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least {minimum}, found {value}"
            for name, value, minimum in (
                *((f"amount of {resource!r}", amount, 1) for resource, amount in self.resources.items()),
                ("cores", self.cores, 0),
                ("memory", self.memory_bytes, 0),
                ("hosts", self.hosts, 1),
                ("np", self.np, 0),
                ("gpus_per_process", self.gpus_per_process, 0),
                ("cpus_per_process", self.cpus_per_process, 0 if self.gpus_per_process else 1),
            )
            if value < minimum
        ]
        if self.np == 0 and self.gpus_per_process > 0:
            faults.append("gpus_per_process needs np, the number of processes")
        if 0 < self.np < self.hosts:
            faults.append(f"np={self.np} processes cannot run on hosts={self.hosts}")
        if not faults and not (
            self.resources or self.cores or self.memory_bytes or self.np or self.hosts > 1
        ):
            faults.append("it asks for nothing; give gpus, resource and amount, cores, memory, hosts or np")
        if faults:
            raise InvalidJobError(f"what the sensor waits for cannot be: {'; '.join(faults)}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Requirement:
        """The reverse of `to_dict`."""
        return cls(**document)

    def __str__(self) -> str:
        parts = [f"{amount} {resource}" for resource, amount in sorted(self.resources.items())]
        if self.cores:
            parts.append(f"{self.cores} cores")
        if self.memory_bytes:
            parts.append(f"{format_bytes(self.memory_bytes)} of memory")
        if self.np:
            parts.append(f"a gang of {self.np} processes of {self._process()} each")
        where = f" on at least {self.hosts} hosts" if self.hosts > 1 else ""
        return f"{' and '.join(parts) or 'a core'}{where}, {'free now' if self.free_now else 'in total'}"

    def _process(self) -> str:
        parts = [f"{self.cpus_per_process} cores"] if self.cpus_per_process else []
        return " and ".join([*([f"{self.gpus_per_process} {GPU}"] if self.gpus_per_process else []), *parts])


@dataclass(frozen=True)
class Decision:
    """Whether a requirement is met.

    Attributes:
        fits: it is.
        missing: what is asked for and what was found, for each part that is not met.
    """

    missing: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Nothing is missing."""
        return not self.missing

    def __str__(self) -> str:
        return "; ".join(self.missing) or "everything is there"


def fits(snapshot: ClusterSnapshot, requirement: Requirement) -> Decision:
    """Decide whether a cluster has what is required.

    A gang fits when every process has a place at the same time: four free GPUs on four hosts are no place for
    two processes of two GPUs each.
    """
    nodes = [(node.host, node.free if requirement.free_now else node.total) for node in snapshot.nodes]
    found = Amounts.sum(amounts for _host, amounts in nodes)
    missing = [
        f"needs {wanted} {name}, found {found.resources.get(name, 0)}"
        for name, wanted in sorted(requirement.resources.items())
        if found.resources.get(name, 0) < wanted
    ]
    if found.cores < requirement.cores:
        missing.append(f"needs {requirement.cores} cores, found {found.cores}")
    if found.memory_bytes < requirement.memory_bytes:
        missing.append(
            f"needs {format_bytes(requirement.memory_bytes)} of memory, "
            f"found {format_bytes(found.memory_bytes)}"
        )
    if requirement.np:
        places = sum(process_places(amounts, requirement) for _host, amounts in nodes)
        if places < requirement.np:
            missing.append(
                f"needs {requirement.np} places for processes of {requirement._process()}, found {places}: "
                f"{len(nodes)} nodes have {found.resources.get(GPU, 0)} {GPU} and {found.cores} cores in all"
            )
    hosts = len({host for host, amounts in nodes if _is_usable(amounts, requirement)})
    if requirement.hosts > 1 and hosts < requirement.hosts:
        missing.append(f"needs {requirement.hosts} hosts that have it, found {hosts}")
    return Decision(tuple(missing))


def process_places(amounts: Amounts, requirement: Requirement) -> int:
    """How many processes of the gang one node can hold."""
    places = []
    if requirement.gpus_per_process:
        places.append(amounts.resources.get(GPU, 0) // requirement.gpus_per_process)
    if requirement.cpus_per_process:
        places.append(int(amounts.cores // requirement.cpus_per_process))
    return min(places)


def _is_usable(amounts: Amounts, requirement: Requirement) -> bool:
    """A host counts when it has some of everything: nothing runs on a GPU without a core."""
    if requirement.np and process_places(amounts, requirement) < 1:
        return False
    return amounts.cores >= 1 and all(amounts.resources.get(name, 0) for name in requirement.resources)


def parse_memory(argument: str, value: object) -> int:
    """Bytes of `4g`, `512m` or `16Gi`, in units of 1,024; an integer is bytes.

    Raises:
        InvalidJobError: it is neither. A bare number in a text means MiB to Spark and bytes to Kubernetes.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _MEMORY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InvalidJobError(f"{argument} must be bytes or a text such as '4g' or '512m', found {value!r}")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(count: int) -> str:
    """A size for people: 4.0 GiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"
        size /= 1024
    return f"{size:.1f} TiB"


def resource_amounts(pairs: Mapping[str, int]) -> dict[str, int]:
    """Amounts by the name that snapshots use, such as `gpu` for `nvidia.com/gpu`."""
    amounts: dict[str, int] = {}
    for name, amount in pairs.items():
        amounts[canonical_resource(name)] = amounts.get(canonical_resource(name), 0) + amount
    return amounts
