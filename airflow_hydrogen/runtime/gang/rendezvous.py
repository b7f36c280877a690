"""Horovod over Gloo without ssh, mpirun or horovodrun: the rendezvous server and a rank's environment.

What `horovod.runner.gloo_run` does for ssh hosts, done inside a barrier stage.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from airflow_hydrogen.runtime.gang import network
from airflow_hydrogen.runtime.gang.network import GangAddress
from airflow_hydrogen.runtime.rank.task import Placement

# Read by Gloo as airflow_hydrogen.horovod_build patches it; other builds take any port.
GLOO_PORTS = "HOROVOD_GLOO_PORT_RANGE"

OMP_THREADS = "OMP_NUM_THREADS"
_TENSORFLOW_THREADS = "TF_NUM_INTRAOP_THREADS"


class RendezvousServer:
    """Horovod's rendezvous server on one address, for the gang's hosts alone.

    Horovod's own `RendezvousServer` listens on all interfaces and takes everyone's word. Its protocol has no
    place for a token, so what can be closed is closed: one address, and nobody but the gang's hosts.
    """

    def __init__(self, server: Any) -> None:
        self._server = server

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def admit(self, addresses: Sequence[str]) -> None:
        """Let these addresses in, and no others; before that, nobody."""
        self._server.admitted = frozenset(addresses)


@contextmanager
def rendezvous_server(
    placements: Sequence[Placement], address: str, ports: range | None = None
) -> Iterator[RendezvousServer]:
    """Run Horovod's rendezvous server on one address of this host.

    Args:
        placements: of all ranks.
        address: to listen on.
        ports: those that may be used.
    """
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    class Server(RendezvousHTTPServer):  # type: ignore[misc]
        admitted: frozenset[str] = frozenset()

        def verify_request(self, request: Any, client_address: tuple[str, int]) -> bool:
            return client_address[0] in self.admitted

    server = network.bind_in(ports, lambda port: Server((address, port), RendezvousHandler, 0))
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
        yield RendezvousServer(server)
    finally:
        network.stop_serving(server)
        server.server_close()
        thread.join()


def horovod_environment(
    placement: Placement, here: GangAddress, server: tuple[str, int], ports: range | None = None
) -> dict[str, str]:
    """The variables from which `hvd.init()` finds its place, as `horovodrun --gloo` sets them.

    Args:
        placement: the rank's place.
        here: what Gloo binds on this host.
        server: address and port of the rendezvous server.
        ports: those that Gloo may listen on.
    """
    variables: dict[str, object] = {
        "HOROVOD_RANK": placement.rank,
        "HOROVOD_SIZE": placement.size,
        "HOROVOD_LOCAL_RANK": placement.local_rank,
        "HOROVOD_LOCAL_SIZE": placement.local_size,
        "HOROVOD_CROSS_RANK": placement.cross_rank,
        "HOROVOD_CROSS_SIZE": placement.cross_size,
        "HOROVOD_HOSTNAME": placement.host,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": server[0],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": server[1],
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }
    if here.interface is not None:
        variables["HOROVOD_GLOO_IFACE"] = here.interface
    if ports is not None:
        variables[GLOO_PORTS] = f"{ports.start}-{ports.stop - 1}"
    return {name: str(value) for name, value in variables.items()}


def thread_environment(threads: int, omp_threads: str | None) -> dict[str, str]:
    """Limits on the math threads of one rank, so that the ranks of a host do not fight over its cores.

    Args:
        threads: what is a rank's share, where the user says nothing else.
        omp_threads: the user's own OMP_NUM_THREADS, if there is one. That of a Python worker is Spark's.
    """
    share = str(max(1, threads))
    return {
        OMP_THREADS: share if omp_threads is None else omp_threads,
        _TENSORFLOW_THREADS: os.environ.get(_TENSORFLOW_THREADS, share),
    }
