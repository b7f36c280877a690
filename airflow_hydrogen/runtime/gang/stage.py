"""One task of the barrier stage: meet the others, then run a rank in a child process."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from airflow_hydrogen.contract.errors import HydrogenError
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.runtime import devices as gpus
from airflow_hydrogen.runtime.gang import accelerators, network, rendezvous
from airflow_hydrogen.runtime.gang.channel import ChannelAddress, TaskChannel
from airflow_hydrogen.runtime.gang.network import GangAddress
from airflow_hydrogen.runtime.gang.process import RankCancelled, RankFailed, RankProcess
from airflow_hydrogen.runtime.gang.templates import TemplateSpec
from airflow_hydrogen.runtime.gang.topology import assign_ranks, host_of
from airflow_hydrogen.runtime.rank.failures import RankFailure
from airflow_hydrogen.runtime.rank.task import Answer, Placement, RankTask


@dataclass(frozen=True)
class RankStage:
    """The function that the barrier tasks run; a value, so that it pickles without a closure.

    Attributes:
        task: what every rank runs.
        channel: the line to the driver.
        threads: math threads of a rank.
        omp_threads: the user's own OMP_NUM_THREADS, if there is one.
        options: of the gang.
        template: which templates ranks are forked from; None forks none.
    """

    task: RankTask
    channel: ChannelAddress
    threads: int
    omp_threads: str | None
    options: GangOptions
    template: TemplateSpec | None = None

    def __call__(self, _partition: Iterable[int]) -> Iterator[Answer | None]:
        """Yield the rank's answer; None where there is none, and the driver was told why.

        An error that Spark sees costs it the Python worker, and on a cluster it tries the stage again.
        """
        from pyspark import BarrierTaskContext

        _spare_modules_from_collections()
        barrier = BarrierTaskContext.get()
        hosts = [host_of(info.address) for info in barrier.getTaskInfos()]
        placements = assign_ranks(hosts)
        placement = placements[barrier.partitionId()]
        channel = TaskChannel(self.channel, placement.rank, placement.host)
        try:
            yield self._run(barrier, placements, placement, channel)
        except RankCancelled:
            # The others wait for this one: where the driver does not know of its end, Spark has to.
            if not channel.is_ordered():
                raise RuntimeError(f"rank {placement.rank} has lost its line to the driver") from None
            yield None
        except RankFailed as failed:
            if not channel.failed(failed.failure):
                raise
            yield None
        except Exception as error:
            # Before the rank's process: an interface that is not there, a package that the executors lack.
            if not channel.failed(_task_failure(placement, error)):
                raise
            yield None
        finally:
            channel.close()

    def _run(
        self, barrier: Any, placements: list[Placement], placement: Placement, channel: TaskChannel
    ) -> Answer:
        """Meet the other tasks and run the rank."""
        ports = self.options.ports()
        others = [place.host for place in placements if place.host != placement.host]
        here = network.gang_address(
            placement.host, list(dict.fromkeys(others)), self.options.network_interface
        )
        with ExitStack() as stack:
            offer: dict[str, Any] = {"address": here.address}
            if others:
                offer["door"] = stack.enter_context(network.open_door(here.address, ports))
                offer["sources"] = sorted(
                    address for found in network.local_interfaces().values() for address in found
                )
            server = None
            if placement.rank == 0:
                server = stack.enter_context(rendezvous.rendezvous_server(placements, here.address, ports))
                offer["rendezvous"] = server.port
            offers = channel.meet(offer)
            if offers is None:
                raise RankCancelled
            if server is not None:
                sources = [source for found in offers for source in found.get("sources", ())]
                server.admit([network.LOOPBACK, *sources])
            _require_reachable(placements, placement, here, offers)
            environment = {
                **rendezvous.horovod_environment(
                    placement, here, (offers[0]["address"], offers[0]["rendezvous"]), ports
                ),
                **rendezvous.thread_environment(self.threads, self.omp_threads),
                **self._accelerators(barrier, placement, channel),
            }
            template = self.template and of_this_executor(self.template)
            process = RankProcess(self.task, placement, environment, here, channel, template)
            return process.wait(channel.stopped)

    def _accelerators(self, barrier: Any, placement: Placement, channel: TaskChannel) -> dict[str, str]:
        assigned = gpus.assigned(barrier)
        given = os.environ.get(gpus.VISIBLE)
        devices = accelerators.visible_devices(
            assigned, given, self.options.gpus_per_process, placement.local_rank, placement.rank
        )
        if devices and not assigned:
            which = "" if given is None else f" among {gpus.VISIBLE}={given}"
            channel.line(
                f"GPU {', '.join(devices)} by local rank{which}: Spark's resource scheduling gave none"
            )
        return gpus.environment(devices)


@functools.cache
def _spare_modules_from_collections() -> None:
    """Keep what this Python worker has imported out of the garbage collection that ends each of its tasks."""
    gc.collect()
    gc.freeze()


def of_this_executor(template: TemplateSpec) -> TemplateSpec:
    """The templates of the gang as a Python worker looks for them."""
    from pyspark import SparkFiles

    return dataclasses.replace(template, private=SparkFiles.getRootDirectory())


def _require_reachable(
    placements: list[Placement], placement: Placement, here: GangAddress, offers: Sequence[Any]
) -> None:
    """Find out now what would later end the process without a word: Gloo aborts where it cannot connect.

    Raises:
        RankFailed: another host is not reached; both ends are named.
    """
    first_on_host = {
        place.host: place.rank for place in sorted(placements, key=lambda place: place.rank, reverse=True)
    }
    for host, rank in first_on_host.items():
        if host == placement.host:
            continue
        address, port = offers[rank]["address"], offers[rank]["door"]
        reason = network.why_unreachable(address, port, here.address)
        if reason is not None:
            raise RankFailed(
                RankFailure(
                    placement.rank,
                    placement.host,
                    "network",
                    f"{here} on {placement.host} does not reach rank {rank} at {address}:{port} on {host}: "
                    f"{reason}; name another interface (network_interface), or open the ports between "
                    "the hosts (port_range)",
                )
            )


def _task_failure(placement: Placement, error: Exception) -> RankFailure:
    kind = type(error)
    where = f" (in {sys.executable} on {placement.host})" if isinstance(error, ImportError) else ""
    ours = isinstance(error, HydrogenError)
    return RankFailure(
        placement.rank,
        placement.host,
        "main",
        f"{kind.__name__}: {error}{where}",
        error_type=f"{kind.__module__}.{kind.__qualname__}",
        remote_traceback=None if ours else "".join(traceback.format_exception(error)),
    )
