"""A gang on two hosts of a real cluster: accelerators, interfaces, ports and logs."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_hydrogen.operators.gang_conf import gang_conf
from tests.integration.applications import Application, Driver, application, shared_driver, start_driver
from tests.integration.cluster import StandaloneCluster, skip_without_namespaces, standalone_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

_LISTEN = "0A"


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandaloneCluster]:
    """Two hosts with four GPUs each, known by their names."""
    skip_without_namespaces()
    with standalone_cluster(workers=2, cores=2, memory="2g", gpus=4, namespaces=True, names=True) as started:
        yield started


def conf(cluster: StandaloneCluster, np: int = 2, gpus: int = 0) -> dict[str, str]:
    """What the operator would ask of Spark."""
    found = gang_conf(cluster.master_url, np=np, gpus_per_process=gpus)
    return {"spark.executor.cores": "1", "spark.cores.max": str(np), **found}


@pytest.fixture(scope="module")
def drivers(
    cluster: StandaloneCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Driver]]:
    """Drivers of gangs of two, after the tests that need the whole cluster."""
    with shared_driver(cluster, tmp_path_factory.mktemp("drivers"), conf(cluster)) as current:
        yield current


@pytest.fixture
def driver(drivers: Callable[[], Driver]) -> Driver:
    return drivers()


@pytest.fixture
def four(cluster: StandaloneCluster, tmp_path: Path) -> Iterator[Callable[[int], Driver]]:
    """Starts a driver for a gang of four with so many GPUs a rank."""
    started: list[Driver] = []

    def start(gpus: int) -> Driver:
        started.append(start_driver(cluster, tmp_path / "driver", conf(cluster, 4, gpus)))
        return started[-1]

    yield start
    for driver in started:
        driver.kill()


def finished(running: Application, size: int) -> tuple[list[dict[str, Any]], Any]:
    """What the ranks say, and the report."""
    ranks = running.ranks(size)
    report = running.finish()
    assert report.failure is None, running.log
    return ranks, report


def test_each_rank_sees_its_own_gpus_and_no_others(four: Callable[[int], Driver], tmp_path: Path) -> None:
    with application(four(2), tmp_path / "a", "count", np=4, options={"gpus_per_process": 2}) as running:
        ranks, _ = finished(running, 4)
    by_host: dict[str, list[str]] = {}
    for rank in ranks:
        devices = rank["environment"]["CUDA_VISIBLE_DEVICES"].split(",")
        assert len(devices) == 2
        by_host.setdefault(rank["host"], []).extend(devices)
    assert [sorted(devices) for devices in by_host.values()] == [["0", "1", "2", "3"]] * 2
    assert [(rank["rank"], rank["local_rank"]) for rank in ranks] == [(0, 0), (1, 1), (2, 0), (3, 1)]


def test_without_spark_scheduling_gpus_they_go_by_local_rank_and_the_log_says_so(
    four: Callable[[int], Driver], tmp_path: Path
) -> None:
    with application(four(0), tmp_path / "a", "count", np=4, options={"gpus_per_process": 2}) as running:
        ranks, _ = finished(running, 4)
    for rank in ranks:
        expected = ["0,1", "2,3"][rank["local_rank"]]
        assert rank["environment"]["CUDA_VISIBLE_DEVICES"] == expected
    assert "[3] GPU 2, 3 by local rank: Spark's resource scheduling gave none" in running.log


def test_a_gang_speaks_over_the_interface_between_the_hosts_within_its_ports(
    cluster: StandaloneCluster, driver: Driver, tmp_path: Path
) -> None:
    ports = range(41000, 41100)
    with application(driver, tmp_path / "a", "add_up", options={"port_range": "41000-41099"}) as running:
        ranks = running.ranks(2)
        listening = {rank["rank"]: listeners(rank["pid"]) + listeners(rank["parent"]) for rank in ranks}
        report = running.finish()
    assert report.failure is None, running.log
    assert report.result == 3.0
    for rank in ranks:
        environment = rank["environment"]
        assert environment["HOROVOD_GLOO_IFACE"] == "eth0"
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        assert {found for found, _port in listening[rank["rank"]]} == {rank["host"]}
        assert {port for _address, port in listening[rank["rank"]]} <= set(ports)
    # Barrier tasks know their hosts by address, also where workers go by name.
    assert {rank["host"] for rank in ranks} == {cluster.worker_address(0), cluster.worker_address(1)}
    # The rendezvous on rank 0, a door each, and Gloo's own, which waits for its peer until the end.
    assert len(listening[0]) >= 2


def test_an_interface_that_is_not_there_is_named_with_those_that_are(driver: Driver, tmp_path: Path) -> None:
    with application(driver, tmp_path / "a", "count", options={"network_interface": "ib0"}) as running:
        report = running.report()
    assert report.failure is not None
    assert re.search(
        r"network_interface 'ib0' is not on host [\d.]+ or has no address; it has eth0, lo",
        report.failure.message,
    )
    assert "giving up: main raised" in running.log


def test_hosts_that_do_not_reach_each_other_are_both_named_before_horovod_starts(
    cluster: StandaloneCluster, driver: Driver, tmp_path: Path
) -> None:
    assert cluster.network is not None
    for index, host in enumerate(cluster.network.hosts):
        # Two interfaces of one name with nothing between them: bridges that join nothing.
        for command in (
            ["link", "add", "island", "type", "bridge"],
            ["addr", "add", f"203.0.113.{index + 1}/24", "dev", "island"],
            ["link", "set", "island", "up"],
        ):
            subprocess.run(["ip", "-n", host.namespace, *command], check=True)
    with application(
        driver,
        tmp_path / "a",
        "count",
        options={"network_interface": "island", "max_restarts": 0},
    ) as running:
        report = running.report()
    assert report.failure is not None
    assert report.failure.error_type == "PeerUnreachableError"
    assert re.search(
        r"203\.0\.113\.\d \(island\) on [\d.]+ does not reach "
        r"rank \d at 203\.0\.113\.\d:\d+ on [\d.]+: ",
        report.failure.message,
    )
    assert not list((tmp_path / "a").glob("rank-*.json"))


def test_a_rank_that_prints_a_million_lines_neither_waits_nor_fills_the_log(
    driver: Driver, tmp_path: Path
) -> None:
    lines = 1_000_000
    with application(driver, tmp_path / "a", "shout", lines=lines) as running:
        report = running.report()
    assert report.failure is None, running.log
    shown = [line for line in running.log.splitlines() if line.startswith("[1] ")]
    counts = [
        re.fullmatch(r"\[1\] \.\.\. ([\d,]+) lines were left out: too many at once", line) for line in shown
    ]
    left_out = sum(int(match[1].replace(",", "")) for match in counts if match)
    passed = sum("line" in line and "left out" not in line for line in shown)
    assert passed + left_out == lines + 1
    assert len(shown) < 2_000 + 200 * (report.seconds["train"] + 10)


def test_slots_that_others_hold_are_waited_for_with_what_is_free_and_then_named(
    driver: Driver, tmp_path: Path
) -> None:
    with application(
        driver,
        tmp_path / "a",
        "count",
        np=3,
        options={"start_timeout_s": 5.0},
    ) as running:
        report = running.report()
    assert report.failure is not None
    assert report.failure.error_type == "NotEnoughSlotsError"
    assert (
        "the gang needs np=3 processes at the same time, but the cluster has 2 task slots"
        in report.failure.message
    )
    assert "after waiting 5 s (start_timeout_s)" in report.failure.message
    assert "waiting for 3 task slots, up to 5 s more" in running.log


def listeners(pid: int) -> list[tuple[str, int]]:
    """Addresses and ports on which a process listens, in whatever network namespace it is."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").rstrip("]"))
    found = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTEN and fields[9] in inodes:
            address, _, port = fields[1].partition(":")
            # As the kernel holds it: in the byte order of the machine.
            number = int.from_bytes(bytes.fromhex(address), "little")
            found.append((str(ipaddress.ip_address(number)), int(port, 16)))
    return found
