"""Horovod over Gloo without ssh, mpirun or horovodrun: the rendezvous server and a rank's environment.

What `horovod.runner.gloo_run` does for ssh hosts, done inside a barrier stage.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from airflow_hydrogen.runtime.topology import Placement

_LOOPBACK = "127.0.0.1"


@contextmanager
def rendezvous_server(placements: Sequence[Placement], address: str) -> Iterator[int]:
    """Run Horovod's rendezvous server on one address of this host and yield its port.

    Horovod's own `RendezvousServer` listens on all interfaces, without authentication.
    """
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    server: Any = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
    server.daemon_threads = True
    server.init(
        [
            SlotInfo(
                hostname=place.host,
                rank=place.rank,
                local_rank=place.local_rank,
                cross_rank=place.cross_rank,
                size=place.size,
                local_size=place.local_size,
                cross_size=place.cross_size,
            )
            for place in placements
        ]
    )
    thread = threading.Thread(target=server.serve_forever, name="horovod-rendezvous", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def gang_address(host: str, single_host: bool) -> str:
    """The address of this host that its peers reach: loopback when there are no others."""
    return _LOOPBACK if single_host else socket.gethostbyname(host)


def interface_of(address: str) -> str | None:
    """The name of the network interface that owns an address of this host, or None."""
    import psutil

    wanted = ipaddress.ip_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        for candidate in addresses:
            if candidate.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            if ipaddress.ip_address(candidate.address.partition("%")[0]) == wanted:
                return name
    return "lo" if wanted.is_loopback and "lo" in psutil.net_if_addrs() else None


def horovod_environment(
    placement: Placement, address: str, port: int, interface: str | None
) -> dict[str, str]:
    """The variables from which `hvd.init()` finds its place, as `horovodrun --gloo` sets them.

    Args:
        placement: the rank's place.
        address: where the rendezvous server listens.
        port: its port.
        interface: the interface that Gloo binds on this host; None leaves the choice to Gloo.
    """
    variables = {
        "HOROVOD_RANK": placement.rank,
        "HOROVOD_SIZE": placement.size,
        "HOROVOD_LOCAL_RANK": placement.local_rank,
        "HOROVOD_LOCAL_SIZE": placement.local_size,
        "HOROVOD_CROSS_RANK": placement.cross_rank,
        "HOROVOD_CROSS_SIZE": placement.cross_size,
        "HOROVOD_HOSTNAME": placement.host,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }
    if interface is not None:
        variables["HOROVOD_GLOO_IFACE"] = interface
    return {name: str(value) for name, value in variables.items()}


def thread_environment(threads: int) -> dict[str, str]:
    """Limits on the math threads of one rank, so that the ranks of a host do not fight over its cores."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {name: os.environ.get(name, str(max(1, threads))) for name in names}
