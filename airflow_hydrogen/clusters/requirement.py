"""What a task needs of a cluster, and whether the cluster has it: values in, values out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_hydrogen.clusters.endpoint import scheme_of
from airflow_hydrogen.clusters.snapshot import GPU, Amounts, ClusterSnapshot, canonical_resource
from airflow_hydrogen.contract.errors import InvalidJobError

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_LEAST_OVERHEAD_BYTES = 384 << 20
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
        memory_per_process_bytes: memory of each process, on the same node; 0: what an executor takes decides.
        executor_cores: cores of an executor of the gang, which holds as many processes as they allow; 0: not
            said.
        executors: `np` counts executors of a scoring, and what is said of a process holds for each of them.
        executor_memory_bytes: memory of an executor, as `spark.executor.memory`; 0: memory is not looked at.
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
    memory_per_process_bytes: int = 0
    executor_cores: int = 0
    executors: bool = False
    executor_memory_bytes: int = 0
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
                ("memory_per_process", self.memory_per_process_bytes, 0),
                ("executor_cores", self.executor_cores, 0),
                ("executor_memory", self.executor_memory_bytes, 0),
            )
            if value < minimum
        ]
        if self.np == 0 and self.gpus_per_process > 0:
            faults.append("gpus_per_process needs np, the number of processes")
        if self.np == 0 and (self.memory_per_process_bytes or self.executor_cores):
            faults.append("memory_per_process and executor_cores need np, the number of processes")
        if 0 < self.executor_cores < self.cpus_per_process:
            faults.append(
                f"executor_cores={self.executor_cores} have no room for a process of "
                f"cpus_per_process={self.cpus_per_process}"
            )
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
            gang = "" if self.executors else "a gang of "
            parts.append(f"{gang}{self.np} {self._what()} of {self._process()} each")
        where = f" on at least {self.hosts} hosts" if self.hosts > 1 else ""
        return f"{' and '.join(parts) or 'a core'}{where}, {'free now' if self.free_now else 'in total'}"

    def _what(self) -> str:
        return "executors" if self.executors else "processes"

    def _process(self) -> str:
        parts = [f"{self.gpus_per_process} {GPU}"] if self.gpus_per_process else []
        if self.cpus_per_process:
            parts.append(f"{self.cpus_per_process} cores")
        if self.memory_per_process_bytes:
            parts.append(format_bytes(self.memory_per_process_bytes))
        return " and ".join(parts)


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
        places = sum(process_places(amounts, requirement, snapshot.master) for _host, amounts in nodes)
        if places < requirement.np:
            missing.append(
                f"needs {requirement.np} places for {requirement._what()} of {requirement._process()}"
                f"{_in_executors(requirement, snapshot.master)}, found {places}: {len(nodes)} nodes have "
                f"{found.resources.get(GPU, 0)} {GPU}, {found.cores} cores and "
                f"{format_bytes(found.memory_bytes)} in all"
            )
    hosts = len({host for host, amounts in nodes if _is_usable(amounts, requirement, snapshot.master)})
    if requirement.hosts > 1 and hosts < requirement.hosts:
        missing.append(f"needs {requirement.hosts} hosts that have it, found {hosts}")
    return Decision(tuple(missing))


def process_places(amounts: Amounts, requirement: Requirement, master: str) -> int:
    """How many processes of the gang one node can hold.

    Spark starts executors, all of one size, and processes within them. An executor lies on one node with all
    that it takes, so that each node can be counted for itself: filling one after the other is the best there
    is.

    Args:
        amounts: what the node gives.
        requirement: with the gang.
        master: Spark's master URL: cluster managers count an executor's memory differently.
    """
    scheme = scheme_of(master)
    cores, memory = _executor_cores(requirement, scheme), _executor_memory_bytes(requirement, scheme)
    if cores is None:
        # One executor, with all cores of the worker and as many processes as there is room for.
        if amounts.memory_bytes < memory:
            return 0
        processes, cores, memory = 1, requirement.cpus_per_process, 0
    else:
        processes = max(1, cores // max(1, requirement.cpus_per_process))
    memory = max(memory, processes * requirement.memory_per_process_bytes)
    taken = (
        (amounts.cores, cores),
        (amounts.resources.get(GPU, 0), processes * requirement.gpus_per_process),
        (amounts.memory_bytes, memory),
    )
    return processes * int(min(there // needed for there, needed in taken if needed))


def _executor_cores(requirement: Requirement, scheme: str) -> int | None:
    """Cores of an executor, as the operators ask for them; None: all that a worker has."""
    if requirement.executor_cores and scheme != "local":
        return requirement.executor_cores
    if requirement.gpus_per_process or scheme != "spark":
        return requirement.cpus_per_process
    return None


def _executor_memory_bytes(requirement: Requirement, scheme: str) -> int:
    """What a cluster manager sets aside for an executor, by Spark's defaults."""
    heap = requirement.executor_memory_bytes
    if scheme == "local" or not heap:
        return 0  # processes are children of the driver
    if scheme == "spark":
        return heap
    return heap + max(_LEAST_OVERHEAD_BYTES, heap * (40 if scheme == "k8s" else 10) // 100)


def _in_executors(requirement: Requirement, master: str) -> str:
    memory = _executor_memory_bytes(requirement, scheme_of(master))
    return f" in executors of {format_bytes(memory)}" if memory else ""


def _is_usable(amounts: Amounts, requirement: Requirement, master: str) -> bool:
    """A host counts when it has some of everything: nothing runs on a GPU without a core."""
    if requirement.np and process_places(amounts, requirement, master) < 1:
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
