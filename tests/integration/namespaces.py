"""Hosts on this machine: Linux network namespaces, joined by a bridge.

```python
with host_network(["left", "right"]) as network:
    subprocess.run(network.command(0, ["ping", "-c1", "right"]))  # runs on the first host
    network.cut(0)  # pulls its cable
```

Each host has an address, a name, a loopback interface and a table of names of its own; files, memory and
the clock are this machine's. What runs outside (tests, drivers) is one more host, at `network.address`.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# For benchmarks of network devices (RFC 2544): nobody routes it, and it is not a private network in use.
SUBNETS = ipaddress.IPv4Network("198.18.0.0/15")
DRIVER_NAME = "hydrogen-driver"
_NAMES = Path("/etc/netns")
_KILL_TIMEOUT_S = 10.0
_numbers = itertools.count()


class NamespaceError(Exception):
    """A command of iproute2 failed; the message is what it said."""


@dataclass(frozen=True)
class Host:
    """A host: its network namespace, what it is called, and where it is."""

    namespace: str
    name: str
    address: str


@dataclass
class HostNetwork:
    """The hosts and the switch between them, which is a namespace too.

    The bridge stands in a namespace of its own because a firewall of this machine (Docker sets one up)
    looks at what crosses bridges of its own namespace, and drops it.

    Attributes:
        label: begins the names of everything that is made; also the interface of this side.
        hosts: in order.
        address: of this side.
    """

    label: str
    hosts: list[Host]
    address: str

    def command(self, index: int, arguments: Sequence[str]) -> list[str]:
        """The command that runs another on a host, in the same process."""
        host = self.hosts[index]
        # `ip` shows it the host's own /etc/hosts; the name that gethostname() answers is set by the shell.
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host.name]
        return ["ip", "netns", "exec", host.namespace, *named, *arguments]

    def pids(self, index: int) -> list[int]:
        """The processes of a host."""
        return [int(pid) for pid in _ip("netns", "pids", self.hosts[index].namespace).split()]

    def kill(self, index: int) -> None:
        """SIGKILL every process of a host and wait until none is left."""
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while pids := self.pids(index):
            if time.monotonic() > deadline:
                raise NamespaceError(f"{self.hosts[index].name} still has the processes {pids}")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def cut(self, index: int) -> None:
        """Pull a host's cable: nobody is told, packets just do not arrive any more."""
        _ip("-n", f"{self.label}-switch", "link", "set", f"port{index}", "down")

    def mend(self, index: int) -> None:
        """Plug it in again."""
        _ip("-n", f"{self.label}-switch", "link", "set", f"port{index}", "up")

    def names(self) -> str:
        """What stands in /etc/hosts of every host."""
        here = f"127.0.0.1 localhost\n{self.address} {DRIVER_NAME}\n"
        return here + "".join(f"{host.address} {host.name}\n" for host in self.hosts)

    def open(self) -> None:
        """Make everything; after a failure, `close` removes what was made."""
        switch = f"{self.label}-switch"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        _ip("link", "add", self.label, "type", "veth", "peer", "name", "uplink", "netns", switch)
        _ip("-n", switch, "link", "set", "uplink", "master", "bridge", "up")
        _ip("addr", "add", f"{self.address}/24", "dev", self.label)
        _ip("link", "set", self.label, "up")
        for index, host in enumerate(self.hosts):
            inside, port = ("-n", host.namespace), f"port{index}"
            _ip("netns", "add", host.namespace)
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _write_names(host.namespace, self.names())

    def close(self) -> None:
        """End the hosts' processes and remove everything that `open` made."""
        there = namespaces()
        for index, host in enumerate(self.hosts):
            if host.namespace in there:
                self.kill(index)
                _ip("netns", "delete", host.namespace)
            shutil.rmtree(_NAMES / host.namespace, ignore_errors=True)
        with contextlib.suppress(OSError):  # others' hosts, or none
            _NAMES.rmdir()
        if self.label in links():
            _ip("link", "delete", self.label)
        if f"{self.label}-switch" in there:
            _ip("netns", "delete", f"{self.label}-switch")


@contextlib.contextmanager
def host_network(names: Sequence[str]) -> Iterator[HostNetwork]:
    """Make hosts, and remove them in the end with all that runs on them.

    Args:
        names: what the hosts call each other and themselves.

    Raises:
        NamespaceError: the system does not allow it; `why_unavailable` asks without raising.
    """
    # Interfaces' names have 15 characters at most.
    label = f"{label_prefix()}{next(_numbers)}"
    subnet = _free_subnet()
    hosts = [Host(f"{label}-{index}", name, str(subnet[index + 2])) for index, name in enumerate(names)]
    network = HostNetwork(label, hosts, str(subnet[1]))
    try:
        network.open()
        yield network
    finally:
        network.close()


def label_prefix() -> str:
    """Begins the names of everything that this process makes."""
    return f"hy{os.getpid():x}-"


@functools.cache
def why_unavailable() -> str | None:
    """Why this machine cannot have such hosts, or None."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "unshare", "hostname"):
        if shutil.which(tool) is None:
            return f"no {tool} on the PATH (Debian's packages: iproute2, util-linux, hostname)"
    try:
        with host_network(["probe"]) as network:
            subprocess.run(network.command(0, ["true"]), capture_output=True, text=True, check=True)
    except (NamespaceError, OSError) as error:
        return f"network namespaces cannot be made: {error}"
    except subprocess.CalledProcessError as error:
        return f"nothing runs in a network namespace: {error.stderr.strip()}"
    return None


def namespaces() -> set[str]:
    """All that have a name."""
    return {line.split()[0] for line in _ip("netns", "list").splitlines() if line}


def links() -> set[str]:
    """The network interfaces of this process's namespace."""
    return set(os.listdir("/sys/class/net"))


def _free_subnet() -> ipaddress.IPv4Network:
    routes = json.loads(_ip("-json", "-4", "route", "show", "table", "all"))
    taken = [
        ipaddress.IPv4Network(route["dst"], strict=False) for route in routes if route["dst"] != "default"
    ]
    subnets = list(SUBNETS.subnets(new_prefix=24))
    # Runs that start at the same time must not find the same one free.
    first = os.getpid() % len(subnets)
    for subnet in subnets[first:] + subnets[:first]:
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise NamespaceError(f"no subnet of {SUBNETS} is free")


def _write_names(namespace: str, names: str) -> None:
    folder = _NAMES / namespace
    folder.mkdir(parents=True)
    (folder / "hosts").write_text(names)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespaceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
