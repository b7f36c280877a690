"""Hosts of the barrier tasks -> Horovod's ranks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_hydrogen.runtime.rank.task import Placement


def host_of(address: str) -> str:
    """The host of a task's `host:port`, which may be an IPv6 address: split at the last colon."""
    host, separator, port = address.rpartition(":")
    return host.strip("[]") if separator and port.isdigit() else address


def assign_ranks(hosts: Sequence[str]) -> list[Placement]:
    """Give every barrier task its rank.

    Ranks are grouped by host, as Horovod's hierarchical operations and its rendezvous expect
    (`horovod.runner.common.util.hosts.get_host_assignments`), and the host of task 0 comes first, so
    that rank 0 is task 0. The rank equals the partition id only where the hosts do not interleave.

    Args:
        hosts: the host of each task, in partition order; at least one.

    Returns:
        One placement a task, in partition order.
    """
    order = list(dict.fromkeys(hosts))
    members = {host: [task for task, other in enumerate(hosts) if other == host] for host in order}
    placements: dict[int, Placement] = {}
    for host in order:
        for local_rank, task in enumerate(members[host]):
            # Horovod's cross communicator joins the ranks that have the same local rank.
            peers = [other for other in order if len(members[other]) > local_rank]
            placements[task] = Placement(
                rank=len(placements),
                size=len(hosts),
                local_rank=local_rank,
                local_size=len(members[host]),
                cross_rank=peers.index(host),
                cross_size=len(peers),
                host=host,
            )
    return [placements[task] for task in range(len(hosts))]
