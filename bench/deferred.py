"""What it costs to wait for fifty trainings at once.

The drivers are lines on the page of a master that is none. Ours: fifty triggers on one event loop, as on a
triggerer, which share one poll. Against: fifty triggers that poll each for itself (CPU), and tasks that wait
each in a process of its own, as without `deferrable` (memory).
"""

from __future__ import annotations

import asyncio
import functools
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from bench import waiters
from bench.masters import PageMaster
from bench.measure import Result, Target, alternate, compare

TRAININGS = 50
_INTERVAL_S = 1.0  # the default of status_poll_interval
_PROCESSES = 4


def measure(folder: Path, quick: bool) -> list[Result]:
    """Measure CPU, then memory."""
    seconds = 4.0 if quick else 20.0
    rates: dict[str, float] = {}
    memory: dict[str, float] = {}
    pairs = alternate(
        lambda: _cpu_per_minute("shared", seconds, rates, memory),
        lambda: _cpu_per_minute("single", seconds, rates, memory),
        1 if quick else 3,
    )
    cpu = compare(
        f"{TRAININGS} deferred trainings, CPU seconds a minute",
        pairs,
        unit="s",
        against="triggers that poll each for itself",
        target=Target("<=", 0.2),
        requests_per_second=rates,
        memory_mb=memory,
    )
    pairs = alternate(lambda: memory["shared"] / TRAININGS, _task_mb, 1 if quick else 3)
    return [
        cpu,
        compare(
            "a deferred training, memory",
            pairs,
            unit="MB",
            against="a process that waits",
            target=Target("<=", 0.02),
        ),
    ]


# --- the master ----------------------------------------------------------------------------------------


def _page(running: bool) -> dict[str, Any]:
    """As large as that of a cluster of ten workers with an application for each driver."""
    drivers = [
        {
            "id": _driver_id(number),
            "starttime": "1795407905596",
            "state": "RUNNING" if running else "FINISHED",
            "cores": 1,
            "memory": 1024,
            "submitdate": "Mon Nov 23 07:15:00 UTC 2026",
            "worker": f"worker-{number % 10}",
            "mainclass": "org.apache.spark.deploy.PythonRunner",
        }
        for number in range(TRAININGS)
    ]
    applications = [
        {
            "id": f"app-20261123071500-{number:04}",
            "starttime": 1795407905596,
            "name": "airflow-hydrogen.flights__train__scheduled",
            "cores": 4,
            "user": "spark",
            "memoryperexecutor": 1024,
            "memoryperslave": 1024,
            "resourcesperexecutor": [],
            "resourcesperslave": [],
            "submitdate": "Mon Nov 23 07:15:00 UTC 2026",
            "state": "RUNNING",
            "duration": 120000,
        }
        for number in range(TRAININGS)
    ]
    workers = [
        {"id": f"worker-{number}", "webuiaddress": f"http://10.0.0.{number}:8081", "state": "ALIVE"}
        for number in range(10)
    ]
    return {
        "url": "spark://m:7077",
        "workers": workers,
        "activeapps": applications,
        "completedapps": [],
        "activedrivers": drivers if running else [],
        "completeddrivers": [] if running else drivers,
        "status": "ALIVE",
    }


def _driver_id(number: int) -> str:
    return f"driver-20261123071500-{number:04}"


# --- who waits -----------------------------------------------------------------------------------------


def _cpu_per_minute(mode: str, seconds: float, rates: dict[str, float], memory: dict[str, float]) -> float:
    running = True
    with (
        PageMaster(lambda: _page(running)) as master,
        waiters.start("bench.deferred", mode, master, seconds) as process,
    ):
        found, rates[mode] = waiters.measured(process, master, seconds)
        memory[mode] = round(found["mb"], 2)
        running = False
        assert waiters.answer(process) == TRAININGS
        process.wait(30)
    return float(found["cpu_s"]) * 60 / seconds


def _task_mb() -> float:
    """Memory that a waiting task has to itself."""
    running = True
    with PageMaster(lambda: _page(running)) as master, ExitStack() as stack:
        processes = [
            stack.enter_context(waiters.start("bench.deferred", "task", master, 0)) for _ in range(_PROCESSES)
        ]
        for process in processes:
            assert waiters.answer(process) == "waiting"
        found = [psutil.Process(process.pid).memory_full_info().uss / 2**20 for process in processes]
        running = False
        for process in processes:
            process.wait(30)
    return sum(found) / len(found)


async def _wait_for_all(mode: str, seconds: float) -> None:
    """Fifty waiters on one loop; between two commands nothing but them runs."""
    from airflow.sdk.bases.hook import BaseHook

    from airflow_hydrogen.clusters.managers import endpoint_of
    from airflow_hydrogen.triggers.polls import shared_answers
    from airflow_hydrogen.triggers.spark_driver import SparkDriverTrigger, ask_drivers, follow

    endpoint = endpoint_of("spark_default", BaseHook.get_connection("spark_default"))

    async def trigger(number: int) -> bool:
        waiting = SparkDriverTrigger("spark_default", _driver_id(number), "/report.json", _INTERVAL_S)
        return [event.payload["status"] async for event in waiting.run()] == ["ended"]

    async def alone(number: int) -> bool:
        # A question that is equal to no other.
        question: Any = functools.partial(ask_drivers)
        async with shared_answers(endpoint, question, _INTERVAL_S) as waiter:
            driver = await follow(
                waiter, _driver_id(number), until=lambda driver: not driver.active, say=lambda news: None
            )
        return driver.finished

    process = psutil.Process()
    first = process.memory_info().rss
    start = trigger if mode == "shared" else alone
    tasks = [asyncio.ensure_future(start(number)) for number in range(TRAININGS)]
    await asyncio.sleep(3 * _INTERVAL_S)
    used = await waiters.cpu_seconds(seconds)
    mb = (process.memory_info().rss - first) / 2**20
    waiters.say({"cpu_s": used, "mb": mb})
    waiters.say(sum(await asyncio.gather(*tasks)))


def _wait_as_a_task() -> None:
    """What a task that is not deferred does while its driver runs."""
    from airflow_hydrogen.drivers import tries
    from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook
    from airflow_hydrogen.operators.train import HorovodTrainOperator

    assert HorovodTrainOperator.__name__
    hook = HydrogenSparkSubmitHook(status_poll_interval=1)
    tries.wait_here(
        hook, _driver_id(0), lambda driver: not driver.active, lambda news: waiters.say("waiting")
    )


if __name__ == "__main__":
    if sys.argv[1] == "task":
        _wait_as_a_task()
    else:
        asyncio.run(_wait_for_all(sys.argv[1], float(sys.argv[2])))
