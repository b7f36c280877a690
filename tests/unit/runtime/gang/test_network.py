from __future__ import annotations

import socket

import pytest

from airflow_hydrogen.contract.errors import NetworkInterfaceError, PortRangeError
from airflow_hydrogen.runtime.gang import network
from airflow_hydrogen.runtime.gang.network import (
    GangAddress,
    bind_in,
    gang_address,
    open_door,
    why_unreachable,
)

INTERFACES = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.2"], "eth1": ["10.9.0.2", "fe80::1"], "tun": []}


@pytest.fixture
def routes(monkeypatch):
    found = {"b": "10.0.0.2", "c": "127.0.0.1"}
    monkeypatch.setattr(network, "route_to", found.get)


def test_a_gang_on_one_host_speaks_over_loopback():
    assert gang_address("a", [], None, INTERFACES) == GangAddress("127.0.0.1", "lo")


def test_else_it_is_the_interface_that_routes_to_the_others(routes):
    assert gang_address("a", ["b"], None, INTERFACES) == GangAddress("10.0.0.2", "eth0")


def test_a_host_whose_name_resolves_to_loopback_is_passed_over(routes):
    assert gang_address("a", ["c", "b"], None, INTERFACES).interface == "eth0"
    with pytest.raises(NetworkInterfaceError, match="host a has no interface but loopback that routes"):
        gang_address("a", ["c"], None, INTERFACES)


def test_a_named_interface_wins(routes):
    assert gang_address("a", ["b"], "eth1", INTERFACES) == GangAddress("10.9.0.2", "eth1")


@pytest.mark.parametrize("name", ["eth7", "tun"])
def test_an_interface_that_is_not_there_is_named_with_those_that_are(name):
    with pytest.raises(NetworkInterfaceError, match=f"'{name}' is not on host a .* it has eth0, eth1, lo"):
        gang_address("a", ["b"], name, INTERFACES)


def test_the_route_to_this_machine_is_an_address_of_it():
    assert network.route_to("127.0.0.1") == "127.0.0.1"
    assert network.route_to("no-such-host.invalid") is None


def test_ports_of_a_range_are_tried_in_turn():
    with open_door("127.0.0.1", None) as taken:
        ports = range(taken, taken + 20)
        with open_door("127.0.0.1", ports) as port:
            assert port in ports
            assert port != taken
        with pytest.raises(PortRangeError, match=f"all ports of port_range {taken}-{taken} are taken"):
            bind_in(
                range(taken, taken + 1),
                lambda port: open_door("127.0.0.1", range(port, port + 1)).__enter__(),
            )


def test_an_error_that_is_not_about_the_port_is_not_hidden():
    def bind(port):
        raise OSError(99, "Cannot assign requested address")

    with pytest.raises(OSError, match="Cannot assign"):
        bind_in(range(5000, 5010), bind)


def test_a_door_is_reached_until_it_closes():
    with open_door("127.0.0.1", None) as port:
        for _ in range(300):  # more than wait to be let in
            assert why_unreachable("127.0.0.1", port, "127.0.0.1") is None
    assert why_unreachable("127.0.0.1", port, "127.0.0.1") == "Connection refused"


def test_a_door_can_be_closed_while_nobody_came():
    with open_door("127.0.0.1", None) as port:
        pass
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
