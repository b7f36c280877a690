"""The gang: one barrier stage of Spark, or processes of this machine, with one child process per rank."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from airflow_hydrogen.contract.errors import GangLostError
from airflow_hydrogen.runtime import rendezvous
from airflow_hydrogen.runtime.channel import ChannelAddress, DriverChannel, TaskChannel
from airflow_hydrogen.runtime.process import (
    RankCancelled,
    RankFailed,
    RankFailure,
    RankProcess,
    RankTask,
)
from airflow_hydrogen.runtime.slots import threads_per_task
from airflow_hydrogen.runtime.topology import Placement, assign_ranks, host_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Verbosity = Literal["all", "log_callback_only"]

_CAUSE_WAIT_S = 3.0


# --- the driver's log ----------------------------------------------------------------------------------


class GangLog:
    """Prints the ranks' lines, rank in front, and one line of progress for each report of rank 0."""

    def __init__(self, verbosity: Verbosity) -> None:
        self._verbosity = verbosity
        self._lock = threading.Lock()

    def line(self, rank: int, text: str) -> None:
        """One line of a rank's output."""
        if self._verbosity == "all":
            self._print(f"[{rank}] {text}")

    def report(self, rank: int, metrics: Mapping[str, float]) -> None:
        """One `report`, of rank 0 only: the others say the same."""
        if rank == 0:
            numbers = ", ".join(f"{name}={value:.6g}" for name, value in metrics.items())
            self._print(f"[gang] {numbers}")

    def _print(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)


# --- on Spark ------------------------------------------------------------------------------------------


def run_on_spark(spark: SparkSession, task: RankTask, size: int, log: GangLog) -> bytes:
    """Run a gang as one barrier stage.

    Args:
        spark: the session; its executors need this package, or get it from `--py-files`.
        task: what every rank runs.
        size: ranks; the slots must be there (`require_slots`).
        log: where lines and reports go.

    Returns:
        The pickled answer of rank 0.

    Raises:
        RankFailedError: a rank failed; the others were stopped.
        GangLostError: Spark lost the stage and no rank said why.
    """
    context = spark.sparkContext
    host = context.getConf().get("spark.driver.host")
    bind = context.getConf().get("spark.driver.bindAddress", host)
    assert host is not None and bind is not None
    with DriverChannel(host, bind, on_line=log.line, on_report=log.report) as channel:
        stage = _RankStage(task, channel.address, threads_per_task(spark, size))
        try:
            # A data-free RDD: Spark refuses barrier stages over unions, coalesced RDDs and the like.
            answers = context.parallelize(range(size), size).barrier().mapPartitions(stage).collect()
        except Exception as error:
            failure = channel.failure(_CAUSE_WAIT_S)
            if failure is not None:
                raise failure.to_error() from None
            raise GangLostError(
                f"Spark lost the barrier stage and no rank said why; Spark says: {_first_lines(error)}"
            ) from error
        return answers[0]


@dataclass(frozen=True)
class _RankStage:
    """The function that the barrier tasks run; a value, so that it pickles without a closure."""

    task: RankTask
    channel: ChannelAddress
    threads: int

    def __call__(self, _partition: Iterable[int]) -> Iterator[bytes]:
        from pyspark import BarrierTaskContext

        barrier = BarrierTaskContext.get()
        hosts = [host_of(info.address) for info in barrier.getTaskInfos()]
        placement = assign_ranks(hosts)[barrier.partitionId()]
        address = rendezvous.gang_address(placement.host, single_host=placement.local_size == placement.size)
        channel = TaskChannel(self.channel, placement.rank)
        try:
            if placement.rank == 0:
                with rendezvous.rendezvous_server(assign_ranks(hosts), address) as port:
                    answer = self._run(
                        barrier, placement, address, {"address": address, "port": port}, channel
                    )
                yield answer
            else:
                self._run(barrier, placement, address, None, channel)
        finally:
            channel.close()

    def _run(
        self,
        barrier: Any,
        placement: Placement,
        address: str,
        offer: dict[str, Any] | None,
        channel: TaskChannel,
    ) -> bytes:
        """Meet the other tasks, run the rank, and wait for the others to end well.

        Every task calls allGather once and barrier once, or the stage hangs.
        """
        offers = [json.loads(text) for text in barrier.allGather(json.dumps(offer))]
        server = next(found for found in offers if found is not None)
        environment = {
            **rendezvous.horovod_environment(
                placement, server["address"], server["port"], rendezvous.interface_of(address)
            ),
            **rendezvous.thread_environment(self.threads),
            **_gpu_environment(barrier.resources()),
        }
        answer = _run_rank(self.task, placement, environment, channel)
        barrier.barrier()
        return answer


def _gpu_environment(resources: Mapping[str, Any]) -> dict[str, str]:
    """The accelerators that Spark assigned to this task, and no others."""
    gpus = resources.get("gpu")
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus.addresses)} if gpus else {}


def _run_rank(
    task: RankTask, placement: Placement, environment: Mapping[str, str], channel: TaskChannel
) -> bytes:
    process = RankProcess(task, placement, environment, on_line=channel.line, on_report=channel.report)
    try:
        return process.wait(channel.stopped)
    except RankFailed as failed:
        channel.failed(failed.failure)
        raise
    except RankCancelled:
        raise RuntimeError(f"rank {placement.rank} was stopped because the gang ended") from None


# --- on this machine -----------------------------------------------------------------------------------


def run_locally(task: RankTask, size: int, log: GangLog) -> bytes:
    """Run a gang as processes of this machine, without Spark.

    Returns:
        The pickled answer of rank 0.

    Raises:
        RankFailedError: a rank failed; the others were stopped.
    """
    placements = assign_ranks(["localhost"] * size)
    address = rendezvous.gang_address("localhost", single_host=True)
    stop = threading.Event()
    failures: list[RankFailure] = []
    answers: dict[int, bytes] = {}
    threads = max(1, len(os.sched_getaffinity(0)) // size)

    def follow(rank: int, process: RankProcess) -> None:
        try:
            answers[rank] = process.wait(stop.is_set)
        except RankFailed as failed:
            failures.append(failed.failure)
            stop.set()
        except RankCancelled:
            return

    with rendezvous.rendezvous_server(placements, address) as port:
        # Started here and not in the followers: a child dies with the thread that started it.
        processes = []
        try:
            for place in placements:
                environment = {
                    **rendezvous.horovod_environment(place, address, port, rendezvous.interface_of(address)),
                    **rendezvous.thread_environment(threads),
                }
                processes.append(
                    RankProcess(
                        task,
                        place,
                        environment,
                        on_line=lambda line, rank=place.rank: log.line(rank, line),  # type: ignore[misc]
                        on_report=lambda metrics, rank=place.rank: log.report(rank, metrics),  # type: ignore[misc]
                    )
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
    if failures:
        primary = [failure for failure in failures if not failure.secondary]
        raise (primary or failures)[0].to_error()
    return answers[0]


def _first_lines(error: BaseException, lines: int = 5) -> str:
    return "\n".join(str(error).strip().splitlines()[:lines])
