"""What it costs to let two hundred sensors wait for one cluster on one triggerer.

The master is a page with ten workers whose GPUs are all taken. Ours: two hundred triggers on one event loop,
which share one poll. Against: the same two hundred, each with a poll of its own.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path
from typing import Any

from bench import waiters
from bench.masters import PageMaster
from bench.measure import Result, Target, alternate, compare

SENSORS = 200
_INTERVAL_S = 5.0


def measure(folder: Path, quick: bool) -> list[Result]:
    """Measure the CPU of a process that does nothing but wait."""
    seconds = 10.0 if quick else 30.0
    rates: dict[str, float] = {}
    pairs = alternate(
        lambda: _cpu_per_minute("shared", seconds, rates),
        lambda: _cpu_per_minute("single", seconds, rates),
        1 if quick else 3,
    )
    return [
        compare(
            f"{SENSORS} sensors that wait, CPU seconds a minute",
            pairs,
            unit="s",
            against="sensors that poll each for itself",
            target=Target("<=", 0.2),
            poke_interval_s=_INTERVAL_S,
            requests_per_second=rates,
        )
    ]


def page() -> dict[str, Any]:
    """Ten workers with four GPUs each, all taken."""
    resource = {"name": "gpu", "addresses": ["0", "1", "2", "3"]}
    workers = [
        {
            "id": f"worker-{number}",
            "host": f"10.0.0.{number}",
            "state": "ALIVE",
            "cores": 16,
            "coresused": 16,
            "coresfree": 0,
            "memory": 65536,
            "memoryused": 65536,
            "memoryfree": 0,
            "resources": {"gpu": resource},
            "resourcesused": {"gpu": resource},
            "resourcesfree": {"gpu": {"name": "gpu", "addresses": []}},
        }
        for number in range(10)
    ]
    return {"url": "spark://m:7077", "status": "ALIVE", "workers": workers}


def _cpu_per_minute(mode: str, seconds: float, rates: dict[str, float]) -> float:
    with PageMaster(page) as master, waiters.start("bench.sensors", mode, master, seconds) as process:
        used, rates[mode] = waiters.measured(process, master, seconds)
    return float(used) * 60 / seconds


async def _wait(mode: str, seconds: float) -> None:
    """Wait with two hundred triggers, and tell the CPU seconds of a while."""
    from airflow_hydrogen.clusters.requirement import Requirement
    from airflow_hydrogen.triggers import gpu_cluster, polls

    requirement = Requirement(resources={"gpu": 4}).to_dict()
    if mode == "single":
        gpu_cluster.shared_poll = lambda endpoint, *waits: polls.shared_answers(
            # A question that is equal to no other.
            endpoint,
            functools.partial(polls.ask_snapshot),
            *waits,
        )

    async def run(number: int) -> None:
        waiting = gpu_cluster.GPUClusterTrigger("spark_default", requirement, _INTERVAL_S)
        async for event in waiting.run():
            raise AssertionError(f"no GPU is free, but sensor {number} fired: {event}")

    tasks = [asyncio.ensure_future(run(number)) for number in range(SENSORS)]
    await asyncio.sleep(_INTERVAL_S)
    waiters.say(await waiters.cpu_seconds(seconds))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(_wait(sys.argv[1], float(sys.argv[2])))
