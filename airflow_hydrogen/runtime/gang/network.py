"""Addresses of a gang: which one its peers reach, which ports it may use, and whether it is reached."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from airflow_hydrogen.contract.errors import NetworkInterfaceError, PortRangeError

LOOPBACK = "127.0.0.1"
_CONNECT_TIMEOUT_S = 5.0
_ANY_PORT = 9  # of a datagram that is never sent

T = TypeVar("T")


@dataclass(frozen=True)
class GangAddress:
    """Where a rank listens.

    Attributes:
        address: IP address.
        interface: the interface that owns it; None where none is known to.
    """

    address: str
    interface: str | None

    def __str__(self) -> str:
        return f"{self.address} ({self.interface or 'unknown interface'})"


def gang_address(
    host: str,
    others: Sequence[str],
    interface: str | None = None,
    interfaces: Mapping[str, Sequence[str]] | None = None,
) -> GangAddress:
    """The address of this host that the other hosts of the gang reach.

    Loopback where there are no others. Else the address of the named interface; without a name that of the
    interface that routes to the others. What this host's own name resolves to is no good: on many systems
    that is loopback.

    Args:
        host: this host, as Spark knows it.
        others: the other hosts, as Spark knows them.
        interface: name of an interface.
        interfaces: name -> addresses; by default those of this machine.

    Raises:
        NetworkInterfaceError: there is no such interface, or none that routes to the others.
    """
    found = local_interfaces() if interfaces is None else interfaces
    if interface is not None and (others or interface in found):
        addresses = found.get(interface, ())
        if not addresses:
            raise NetworkInterfaceError(host, interface, sorted(name for name in found if found[name]))
        return GangAddress(addresses[0], interface)
    if not others:
        return GangAddress(LOOPBACK, _owner(LOOPBACK, found))
    for other in others:
        address = route_to(other)
        if address is not None and not ipaddress.ip_address(address).is_loopback:
            return GangAddress(address, _owner(address, found))
    raise NetworkInterfaceError(host, None, sorted(name for name in found if found[name]))


def route_to(host: str) -> str | None:
    """The address of this machine from which packets to a host leave; None where there is no way."""
    with contextlib.suppress(OSError):
        family, kind, _protocol, _name, where = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # of a datagram socket: asks the routing table, sends nothing
            return str(probe.getsockname()[0])
    return None


def local_interfaces() -> dict[str, list[str]]:
    """Interfaces of this machine and their IP addresses, IPv4 first."""
    import psutil

    found: dict[str, list[str]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        ours = [entry for entry in addresses if entry.family in (socket.AF_INET, socket.AF_INET6)]
        ours.sort(key=lambda entry: entry.family != socket.AF_INET)
        found[name] = [entry.address.partition("%")[0] for entry in ours]
    return found


def bind_in(ports: range | None, bind: Callable[[int], T]) -> T:
    """Bind to the first port that is free.

    Args:
        ports: those that may be used; None lets the system choose.
        bind: called with a port, 0 for the system's choice; raises OSError where it is taken.

    Raises:
        PortRangeError: all are taken.
    """
    if ports is None:
        return bind(0)
    for port in ports:
        try:
            return bind(port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise PortRangeError(ports.start, ports.stop - 1)


@contextmanager
def open_door(address: str, ports: range | None) -> Iterator[int]:
    """Listen, so that peers can find out whether they reach this address; says nothing to them.

    Yields:
        The port.
    """

    def bind(port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        return listener

    listener = bind_in(ports, bind)
    closed = threading.Event()

    def answer() -> None:
        while not closed.is_set():
            with contextlib.suppress(OSError):
                listener.accept()[0].close()

    thread = threading.Thread(target=answer, name="gang-door", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        closed.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        listener.close()
        thread.join()


def stop_serving(server: socketserver.TCPServer) -> None:
    """End `serve_forever` at once: it looks for its end twice a second, or when somebody connects."""
    with contextlib.suppress(OSError):
        server.socket.shutdown(socket.SHUT_RDWR)  # wakes it
    server.shutdown()


def why_unreachable(address: str, port: int, source: str) -> str | None:
    """Try to connect; None when it works, else the reason.

    Args:
        source: the address to connect from.
    """
    try:
        socket.create_connection((address, port), _CONNECT_TIMEOUT_S, (source, 0)).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return None


def _owner(address: str, interfaces: Mapping[str, Sequence[str]]) -> str | None:
    wanted = ipaddress.ip_address(address)
    for name, addresses in interfaces.items():
        if any(ipaddress.ip_address(candidate) == wanted for candidate in addresses):
            return name
    return None
