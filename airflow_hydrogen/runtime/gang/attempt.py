"""The gang: one barrier stage of Spark, or processes of this machine, with one child process per rank.

One attempt. What happens when it fails is `supervision.py`'s affair.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_hydrogen.contract.errors import GangError, GangLostError
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.runtime import devices as gpus
from airflow_hydrogen.runtime.gang import accelerators, network, rendezvous
from airflow_hydrogen.runtime.gang.barriers import barrier_of
from airflow_hydrogen.runtime.gang.channel import DriverChannel
from airflow_hydrogen.runtime.gang.logs import GangLog
from airflow_hydrogen.runtime.gang.monitor import GangMonitor
from airflow_hydrogen.runtime.gang.process import RankCancelled, RankFailed, RankProcess
from airflow_hydrogen.runtime.gang.slots import given_omp_threads, threads_per_task
from airflow_hydrogen.runtime.gang.stage import RankStage
from airflow_hydrogen.runtime.gang.templates import TemplateSpec
from airflow_hydrogen.runtime.gang.topology import assign_ranks
from airflow_hydrogen.runtime.progress import Beat
from airflow_hydrogen.runtime.rank import checksums
from airflow_hydrogen.runtime.rank.task import Answer, RankTask

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# --- on Spark ------------------------------------------------------------------------------------------


def run_on_spark(
    spark: SparkSession,
    task: RankTask,
    size: int,
    options: GangOptions,
    log: GangLog,
    template: TemplateSpec | None,
) -> bytes:
    """Run a gang as one barrier stage.

    Args:
        spark: the session; its executors need this package, or get it from `--py-files`.
        task: what every rank runs.
        size: ranks; the slots must be free (`require_slots`).
        options: of the gang.
        log: where lines and reports go.
        template: which templates ranks are forked from; None starts them.

    Returns:
        The pickled answer of rank 0.

    Raises:
        RankFailedError: a rank failed; the others were stopped.
        GangLostError: Spark lost the stage and no rank said why, or the ranks did not all start.
        RanksDivergedError: `main` returned models that are not the same.
    """
    barrier = barrier_of(spark, options.gpus_per_process)
    channel = DriverChannel(barrier.host, barrier.bind, size, options.ports())
    monitor = GangMonitor(
        size,
        options,
        log,
        on_failure=channel.stop_ranks,
        # A task whose host is gone does not hear that; Spark itself would wait for it.
        on_overdue=barrier.cancel,
    )
    with ExitStack() as stack:
        stack.callback(channel.close)
        stack.enter_context(monitor)
        channel.open(monitor)
        stack.enter_context(barrier.tagged())
        threads = threads_per_task(spark, size)
        stage = RankStage(task, channel.address, threads, given_omp_threads(spark), options, template)
        try:
            answers = barrier.run(stage, size)
        except Exception as error:
            failure = _why(monitor, error)
            failure.tasks_ended = False
            raise failure from error
        found = [answer for answer in answers if answer is not None]
        if len(found) < size:
            raise _why(monitor, RuntimeError("a task has ended without an answer"))
        return _answer_of_first(found)


def _why(monitor: GangMonitor, error: Exception) -> GangError:
    silent = monitor.silent()
    if monitor.missing is not None:
        return GangLostError(monitor.missing)
    failure = monitor.cause()
    if failure is None:
        gone = f"; not heard any more: {silent}" if silent else ""
        return GangLostError(
            f"Spark lost the barrier stage and no rank said why{gone}; Spark says: {_first_lines(error)}"
        )
    return failure.to_error(silent)


# --- on this machine -----------------------------------------------------------------------------------


def run_locally(
    task: RankTask, size: int, options: GangOptions, log: GangLog, template: TemplateSpec | None
) -> bytes:
    """Run a gang as processes of this machine, without Spark.

    Args:
        task: what every rank runs.
        size: ranks.
        options: of the gang.
        log: where lines and reports go.
        template: which template ranks are forked from; None starts them.

    Returns:
        The pickled answer of rank 0.

    Raises:
        RankFailedError: a rank failed; the others were stopped.
        RanksDivergedError: `main` returned models that are not the same.
    """
    placements = assign_ranks(["localhost"] * size)
    here = network.gang_address("localhost", [], options.network_interface)
    ports = options.ports()
    stop = threading.Event()
    answers: dict[int, Answer] = {}
    threads = local_threads(size)
    monitor = GangMonitor(size, options, log, on_failure=stop.set, on_overdue=stop.set)

    def follow(rank: int, process: RankProcess) -> None:
        try:
            answers[rank] = process.wait(stop.is_set)
        except RankFailed as failed:
            monitor.failed(failed.failure)
        except RankCancelled:
            return

    with rendezvous.rendezvous_server(placements, here.address, ports) as server, monitor:
        server.admit([here.address])
        # Started here and not in the followers: a child dies with the thread that started it.
        processes = []
        try:
            for place in placements:
                devices = accelerators.visible_devices(
                    [],
                    os.environ.get(gpus.VISIBLE),
                    options.gpus_per_process,
                    place.local_rank,
                    place.rank,
                )
                environment = {
                    **rendezvous.horovod_environment(place, here, (here.address, server.port), ports),
                    **threads,
                    **gpus.environment(devices),
                }
                monitor.started(place.rank, place.host)
                processes.append(
                    RankProcess(task, place, environment, here, _LocalListener(monitor, place.rank), template)
                )
            followers = [
                threading.Thread(target=follow, args=(place.rank, process), daemon=True)
                for place, process in zip(placements, processes, strict=True)
            ]
            for follower in followers:
                follower.start()
            for follower in followers:
                follower.join()
        finally:
            stop.set()
            for process in processes:
                process.kill()
    failure = monitor.cause() if len(answers) < size else None
    if failure is not None:
        raise failure.to_error(monitor.silent())
    return _answer_of_first(answers.values())


def local_threads(size: int) -> dict[str, str]:
    """The limits on the math threads of ranks that are processes of this machine."""
    threads = max(1, len(os.sched_getaffinity(0)) // size)
    return rendezvous.thread_environment(threads, os.environ.get(rendezvous.OMP_THREADS))


@dataclass(frozen=True)
class _LocalListener:
    """Passes what a rank says to the monitor, as the channel does on Spark."""

    monitor: GangMonitor
    rank: int

    def line(self, text: str) -> None:
        self.monitor.line(self.rank, text)

    def report(self, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        self.monitor.report(self.rank, metrics, seconds_left)

    def beat(self, beat: Beat) -> None:
        self.monitor.beat(self.rank, beat)

    def returned(self) -> None:
        self.monitor.returned(self.rank)


def _answer_of_first(answers: Iterable[Answer]) -> bytes:
    """Rank 0's answer, once it is the one that all ranks stand for."""
    by_rank = sorted(answers, key=lambda answer: answer.rank)
    checksums.require_equal([answer.weights for answer in by_rank])
    return by_rank[0].value


def _first_lines(error: BaseException, lines: int = 5) -> str:
    return "\n".join(str(error).strip().splitlines()[:lines])
