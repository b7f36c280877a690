"""What is required, and whether it is there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.clusters.requirement import (
    Requirement,
    fits,
    format_bytes,
    parse_memory,
    process_places,
    resource_amounts,
)
from airflow_hydrogen.clusters.snapshot import Amounts, ClusterSnapshot, Node
from airflow_hydrogen.contract.errors import InvalidJobError

GIB = 1 << 30


def cluster(*free: tuple[int, int], total: tuple[int, int] | None = None) -> ClusterSnapshot:
    """Hosts by free GPUs and cores, each with 4 GiB."""
    return ClusterSnapshot(
        "spark://m:7077",
        tuple(
            Node(
                f"w{index}",
                f"h{index}",
                Amounts((total or (gpus, cores))[1], 4 * GIB, {"gpu": (total or (gpus, cores))[0]}),
                Amounts(cores, 4 * GIB, {"gpu": gpus}),
            )
            for index, (gpus, cores) in enumerate(free)
        ),
    )


@pytest.mark.parametrize(
    ("requirement", "missing"),
    [
        ({"resources": {"gpu": 3}}, ""),
        ({"resources": {"gpu": 4}}, "needs 4 gpu, found 3"),
        ({"resources": {"fpga": 1}}, "needs 1 fpga, found 0"),
        ({"cores": 5}, "needs 5 cores, found 4"),
        ({"memory_bytes": 9 * GIB}, "needs 9.0 GiB of memory, found 8.0 GiB"),
        ({"resources": {"gpu": 3}, "hosts": 2}, ""),
        ({"resources": {"gpu": 3}, "hosts": 3}, "needs 3 hosts that have it, found 2"),
        ({"hosts": 2}, ""),
        ({"np": 3, "gpus_per_process": 1}, ""),
        (
            {"np": 2, "gpus_per_process": 2},
            "needs 2 places for processes of 2 gpu and 1 cores, found 1: "
            "2 nodes have 3 gpu, 4 cores and 8.0 GiB in all",
        ),
        ({"np": 4, "cpus_per_process": 2}, "found 2"),
        ({"np": 2, "gpus_per_process": 1, "cpus_per_process": 2, "hosts": 2}, ""),
        ({"resources": {"gpu": 9}, "cores": 9}, "needs 9 gpu, found 3; needs 9 cores, found 4"),
    ],
)
def test_decision(requirement: dict[str, Any], missing: str) -> None:
    decision = fits(cluster((2, 2), (1, 2)), Requirement(**requirement))
    assert decision.fits is (missing == "")
    assert missing in str(decision)


def test_four_gpus_on_four_hosts_are_no_place_for_processes_of_two() -> None:
    scattered = cluster((1, 8), (1, 8), (1, 8), (1, 8))
    assert fits(scattered, Requirement(resources={"gpu": 4})).fits
    assert not fits(scattered, Requirement(np=2, gpus_per_process=2)).fits


def test_in_total_counts_what_others_use() -> None:
    busy = cluster((0, 0), (0, 0), total=(2, 2))
    assert not fits(busy, Requirement(resources={"gpu": 4})).fits
    assert fits(busy, Requirement(resources={"gpu": 4}, free_now=False)).fits
    assert fits(busy, Requirement(np=4, gpus_per_process=1, free_now=False)).fits


def test_a_host_with_a_gpu_and_no_core_does_not_count() -> None:
    assert not fits(cluster((2, 0), (2, 4)), Requirement(resources={"gpu": 2}, hosts=2)).fits


def test_two_workers_of_a_machine_are_one_host() -> None:
    amounts = Amounts(2, GIB, {"gpu": 2})
    nodes = tuple(Node(name, "same", amounts, amounts) for name in ("w1", "w2"))
    assert not fits(ClusterSnapshot("m", nodes), Requirement(resources={"gpu": 2}, hosts=2)).fits


def test_a_cluster_without_nodes_has_nothing() -> None:
    assert not fits(cluster(), Requirement(cores=1)).fits
    assert not fits(cluster(), Requirement(np=1)).fits


hosts = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6)
gangs = st.builds(
    Requirement,
    np=st.integers(1, 12),
    gpus_per_process=st.integers(0, 4),
    cpus_per_process=st.integers(1, 4),
)


@given(hosts, gangs)
def test_a_gang_fits_exactly_when_its_processes_can_be_placed_one_by_one(
    free: list[tuple[int, int]], gang: Requirement
) -> None:
    left = [list(amounts) for amounts in free]
    placed = 0
    for amounts in left:
        while amounts[0] >= gang.gpus_per_process and amounts[1] >= gang.cpus_per_process:
            amounts[0] -= gang.gpus_per_process
            amounts[1] -= gang.cpus_per_process
            placed += 1
    assert fits(cluster(*free), gang).fits is (placed >= gang.np)


@given(hosts, gangs, st.integers(0, 9), st.integers(0, 9))
def test_more_of_anything_never_hurts(
    free: list[tuple[int, int]], gang: Requirement, gpus: int, cores: int
) -> None:
    if fits(cluster(*free), gang).fits:
        assert fits(cluster(*free, (gpus, cores)), gang).fits
        assert fits(cluster(*((g + gpus, c + cores) for g, c in free)), gang).fits


@given(hosts, gangs)
def test_a_gang_that_fits_finds_its_sums_as_well(free: list[tuple[int, int]], gang: Requirement) -> None:
    snapshot = cluster(*free)
    if fits(snapshot, gang).fits:
        assert snapshot.free.cores >= gang.np * gang.cpus_per_process
        assert snapshot.free.resources.get("gpu", 0) >= gang.np * gang.gpus_per_process


def test_fractions_of_a_core_hold_no_process() -> None:
    assert process_places(Amounts(1.999), Requirement(np=1), "yarn") == 1
    assert process_places(Amounts(2.0), Requirement(np=1), "yarn") == 2


# --- memory ------------------------------------------------------------------------------------------


def places(master: str, cores: int, memory_bytes: int, gpus: int, **gang: Any) -> int:
    amounts = Amounts(cores, memory_bytes, {"gpu": gpus})
    return process_places(amounts, Requirement(np=1, **gang), master)


def test_memory_on_other_nodes_is_of_no_use_to_a_process() -> None:
    nodes = (
        Node("gpus", "h1", Amounts(4, 0, {"gpu": 4}), Amounts(4, 0, {"gpu": 4})),
        Node("memory", "h2", Amounts(4, 64 * GIB), Amounts(4, 64 * GIB)),
    )
    gang = Requirement(np=2, gpus_per_process=1, executor_memory_bytes=GIB)
    decision = fits(ClusterSnapshot("spark://m:7077", nodes), gang)
    assert str(decision) == (
        "needs 2 places for processes of 1 gpu and 1 cores in executors of 1.0 GiB, found 0: 2 nodes have "
        "4 gpu, 8 cores and 64.0 GiB in all"
    )


@pytest.mark.parametrize(
    ("master", "memory_bytes", "expected"),
    [
        ("spark://m:7077", GIB, 1),  # no overhead
        ("yarn", GIB + (384 << 20) - 1, 0),
        ("yarn", GIB + (384 << 20), 1),
        ("k8s://https://api", GIB + GIB * 40 // 100, 1),
        ("k8s://https://api", GIB + GIB * 40 // 100 - 1, 0),
        ("local[*]", 0, 1),  # processes are children of the driver
    ],
)
def test_each_cluster_manager_adds_its_overhead(master: str, memory_bytes: int, expected: int) -> None:
    assert places(master, 1, memory_bytes, 1, gpus_per_process=1, executor_memory_bytes=GIB) == expected


def test_an_executor_takes_its_memory_for_all_of_its_processes() -> None:
    four = {"executor_cores": 4, "executor_memory_bytes": 4 * GIB, "gpus_per_process": 1}
    assert places("spark://m", 8, 8 * GIB, 8, **four) == 8
    assert places("spark://m", 8, 7 * GIB, 8, **four) == 4
    assert places("spark://m", 8, 8 * GIB, 7, **four) == 4
    assert places("spark://m", 3, 8 * GIB, 8, **four) == 0  # room for three processes, and for no executor
    assert places("spark://m", 8, 8 * GIB, 8, memory_per_process_bytes=2 * GIB, **four) == 4


def test_an_executor_that_takes_a_whole_worker_needs_its_memory_once() -> None:
    assert places("spark://m", 8, GIB, 0, executor_memory_bytes=GIB) == 8
    assert places("spark://m", 8, GIB - 1, 0, executor_memory_bytes=GIB) == 0
    assert places("spark://m", 8, 5 * GIB, 0, memory_per_process_bytes=2 * GIB) == 2


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=6),
    st.builds(
        Requirement,
        np=st.integers(1, 12),
        gpus_per_process=st.integers(0, 3),
        cpus_per_process=st.integers(1, 2),
        memory_per_process_bytes=st.integers(0, 3),
        executor_cores=st.sampled_from([0, 2, 3, 4]),
        executor_memory_bytes=st.integers(0, 4),
    ),
    st.randoms(),
)
def test_a_gang_fits_exactly_when_its_executors_can_be_started_one_by_one(
    free: list[tuple[int, int, int]], gang: Requirement, order: Any
) -> None:
    snapshot = ClusterSnapshot(
        "spark://m:7077",
        tuple(
            Node(f"w{index}", f"h{index}", Amounts(), Amounts(cores, memory, {"gpu": gpus}))
            for index, (gpus, cores, memory) in enumerate(free)
        ),
    )
    cores = gang.executor_cores or (gang.cpus_per_process if gang.gpus_per_process else None)
    left = [list(amounts) for amounts in free]
    started = 0
    while True:
        # Whatever node Spark takes next: no order places more.
        for node in order.sample(left, len(left)):
            if cores is None:
                fitting = node[1] // gang.cpus_per_process if node[2] >= gang.executor_memory_bytes else 0
                if gang.memory_per_process_bytes:
                    fitting = min(fitting, node[2] // gang.memory_per_process_bytes)
                started += fitting
                node[:] = [0, 0, -1]
                continue
            processes = cores // gang.cpus_per_process
            takes = (
                processes * gang.gpus_per_process,
                cores,
                max(gang.executor_memory_bytes, processes * gang.memory_per_process_bytes),
            )
            if all(has >= take for has, take in zip(node, takes, strict=True)):
                node[:] = [has - take for has, take in zip(node, takes, strict=True)]
                started += processes
                break
        else:
            break
    assert fits(snapshot, gang).fits is (started >= gang.np)


@given(gangs)
def test_a_requirement_survives_json(gang: Requirement) -> None:
    assert Requirement.from_dict(json.loads(json.dumps(gang.to_dict()))) == gang


def test_one_message_names_all_faults() -> None:
    with pytest.raises(InvalidJobError) as caught:
        Requirement(resources={"gpu": 0}, hosts=3, np=2, cpus_per_process=-1)
    assert str(caught.value) == (
        "what the sensor waits for cannot be: amount of 'gpu' must be at least 1, found 0; "
        "cpus_per_process must be at least 1, found -1; np=2 processes cannot run on hosts=3"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "it asks for nothing; give gpus"),
        ({"gpus_per_process": 1}, "gpus_per_process needs np"),
        ({"cores": -1}, "cores must be at least 0, found -1"),
        ({"cores": 1, "hosts": 0}, "hosts must be at least 1, found 0"),
        ({"cores": 1, "memory_per_process_bytes": 1}, "memory_per_process and executor_cores need np"),
        (
            {"np": 1, "cpus_per_process": 4, "executor_cores": 2},
            "executor_cores=2 have no room for a process",
        ),
    ],
)
def test_faults(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidJobError, match=complaint):
        Requirement(**arguments)


def test_it_reads_as_a_sentence() -> None:
    gang = Requirement(np=4, gpus_per_process=1, hosts=2, memory_bytes=GIB)
    assert str(gang) == (
        "1.0 GiB of memory and a gang of 4 processes of 1 gpu and 1 cores each on at least 2 hosts, free now"
    )
    assert str(Requirement(resources={"gpu": 2}, cores=3, free_now=False)) == "2 gpu and 3 cores, in total"


@pytest.mark.parametrize(
    ("value", "count"), [("4g", 4 * GIB), ("512m", 1 << 29), ("1.5Gi", 3 << 29), ("2 GB", 2 * GIB), (7, 7)]
)
def test_memory(value: object, count: int) -> None:
    assert parse_memory("memory", value) == count


@pytest.mark.parametrize("value", ["1024", "lots", "", None, 1.5, True])
def test_not_memory(value: object) -> None:
    with pytest.raises(InvalidJobError, match="memory must be bytes or a text such as '4g'"):
        parse_memory("memory", value)


def test_sizes_for_people() -> None:
    assert [format_bytes(size) for size in (5, 1536, GIB, 5 << 40)] == [
        "5 B",
        "1.5 KiB",
        "1.0 GiB",
        "5.0 TiB",
    ]


def test_gpus_have_one_name() -> None:
    assert resource_amounts({"nvidia.com/gpu": 2}) == resource_amounts({"yarn.io/gpu": 2}) == {"gpu": 2}
    assert resource_amounts({"amd.com/gpu": 2}) == {"amd.com/gpu": 2}
