"""The clusters of these tests: a worker in a network namespace is on a host of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration import namespaces
from tests.integration.cluster import StandaloneCluster, skip_without_namespaces, standalone_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# One executor with one core on each of two workers, and a barrier stage, which starts on both or not at all.
# Every task tells where it is and asks its peer for a word, by the host that Spark names.
APPLICATION = """
import json, os, socket, sys
from pyspark import BarrierTaskContext, SparkConf, SparkContext

settings = {
    **json.loads(sys.argv[1]),
    "spark.ui.enabled": "false",
    "spark.executor.memory": "512m",
    "spark.executor.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    "spark.executor.cores": "1",
    "spark.cores.max": "2",
    "spark.executor.resource.gpu.amount": "1",
    "spark.task.resource.gpu.amount": "1",
}

def look(_):
    context = BarrierTaskContext.get()
    with socket.create_server(("", 0)) as server:
        server.settimeout(20)
        ports = [int(port) for port in context.allGather(str(server.getsockname()[1]))]
        hosts = [info.address.rpartition(":")[0] for info in context.getTaskInfos()]
        rank = context.partitionId()
        if rank == 0:
            connection = server.accept()[0]
        else:
            connection = socket.create_connection((hosts[0], ports[0]), 20)
        with connection:
            seen = [connection.getsockname()[0], connection.getpeername()[0]]
    yield {
        "host": hosts[rank],
        "addresses": seen,
        "hostname": socket.gethostname(),
        "address_of_hostname": socket.gethostbyname(socket.gethostname()),
        "namespace": os.readlink("/proc/self/ns/net"),
        "gpus": context.resources()["gpu"].addresses,
    }

context = SparkContext(conf=SparkConf().setMaster(sys.argv[2]).setAll(settings.items()))
places = context.parallelize(range(2), 2).barrier().mapPartitions(look).collect()
# A shuffle: executors fetch from each other, and the driver a result too large for a message.
pairs = context.parallelize(range(2000), 2).map(lambda n: (n % 7, "x" * 1000)).groupByKey(2)
size = sum(len(value) for _, values in pairs.collect() for value in values)
executors = context._jsc.sc().getExecutorMemoryStatus().keySet().mkString(" ").split()
print(json.dumps({"places": places, "size": size, "executors": executors}))
context.stop()
"""


@pytest.fixture(scope="module", params=["addresses", "names"])
def cluster(request: pytest.FixtureRequest) -> Iterator[StandaloneCluster]:
    skip_without_namespaces()
    names = request.param == "names"
    # The master counts a worker out after that many seconds without a word from it.
    settings = {"spark.worker.timeout": "8"}
    with standalone_cluster(
        workers=2, cores=1, gpus=2, settings=settings, namespaces=True, names=names
    ) as started:
        yield started


def run_application(cluster: StandaloneCluster) -> dict[str, Any]:
    settings = {**cluster.driver_settings(), "spark.driver.maxResultSize": "64m"}
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION, json.dumps(settings), cluster.master_url],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + cluster.logs()
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_executors_are_on_hosts_of_their_own(cluster: StandaloneCluster) -> None:
    answer = run_application(cluster)
    places = sorted(answer["places"], key=lambda place: place["host"])
    addresses = [cluster.worker_address(index) for index in range(2)]
    # A gang's members are known by address even where executors say their names.
    assert [place["host"] for place in places] == addresses
    executors = {executor.rpartition(":")[0] for executor in answer["executors"]}
    assert executors == {cluster.master_host, *(cluster.worker_host(index) for index in range(2))}
    assert [place["hostname"] for place in places] == ["hydrogen-w0", "hydrogen-w1"]
    assert [place["address_of_hostname"] for place in places] == addresses
    assert [place["addresses"] for place in places] == [addresses, addresses[::-1]]
    assert len({os.readlink("/proc/self/ns/net"), *(place["namespace"] for place in places)}) == 3
    assert all(len(place["gpus"]) == 1 for place in places)
    assert answer["size"] == 2_000_000


def test_workers_advertise_their_gpus(cluster: StandaloneCluster) -> None:
    assert {worker["host"] for worker in cluster.alive_workers()} == {
        cluster.worker_host(index) for index in range(2)
    }
    assert [worker["resources"]["gpu"]["addresses"] for worker in cluster.alive_workers()] == [["0", "1"]] * 2
    assert cluster.free() == 4


def test_a_killed_host_is_missed_and_comes_back(
    cluster: StandaloneCluster, eventually: Callable[..., None]
) -> None:
    (worker,) = [process for process in cluster.processes(0) if process.name() == "java"]
    cluster.kill_host(0)
    assert cluster.processes(0) == [] and not worker.is_running()
    assert cluster.processes(1)
    eventually(lambda: alive(cluster) == {cluster.worker_host(1)}, "the master misses the worker", 60)
    cluster.start_worker(0)
    assert len(alive(cluster)) == 2


def test_a_host_without_network_is_missed_and_comes_back(
    cluster: StandaloneCluster, eventually: Callable[..., None]
) -> None:
    cluster.link_down(1)
    eventually(lambda: alive(cluster) == {cluster.worker_host(0)}, "the master misses the worker", 60)
    assert cluster.processes(1), "the worker knows of nothing"
    cluster.link_up(1)
    eventually(lambda: len(alive(cluster)) == 2, "the worker is back", 60)


def alive(cluster: StandaloneCluster) -> set[str]:
    return {worker["host"] for worker in cluster.alive_workers()}


def test_nothing_is_left_after_a_failure() -> None:
    skip_without_namespaces()
    before = made_here()
    with contextlib.suppress(ZeroDivisionError), namespaces.host_network(["left", "right"]) as network:
        sleeper = subprocess.Popen(network.command(1, ["sleep", "600"]))
        assert len(made_here()[0] - before[0]) == 3
        assert made_here()[2] - before[2] == {host.namespace for host in network.hosts}
        raise ZeroDivisionError
    assert sleeper.wait(10) < 0
    assert made_here() == before


def made_here() -> tuple[set[str], ...]:
    """Namespaces, interfaces and tables of names of this process; others may make some at the same time."""
    folder = Path("/etc/netns")
    tables = set(os.listdir(folder)) if folder.exists() else set()
    return tuple(
        {name for name in names if name.startswith(namespaces.label_prefix())}
        for names in (namespaces.namespaces(), namespaces.links(), tables)
    )


def test_a_cluster_leaves_no_process() -> None:
    skip_without_namespaces()
    with standalone_cluster(workers=1, cores=1, gpus=0, namespaces=True) as cluster:
        assert cluster.master is not None
        processes = [psutil.Process(cluster.master.pid), *cluster.processes(0)]
        assert len(processes) == 2
        folder = cluster.folder
    assert not any(process.is_running() for process in processes)
    assert not folder.exists()
