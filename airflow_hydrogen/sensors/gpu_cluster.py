"""Wait until the cluster has the accelerators, cores and memory that the next task needs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
    BaseHook,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_hydrogen.clusters.endpoint import DEFAULT_CONN_ID
from airflow_hydrogen.clusters.managers import endpoint_of, take_snapshot
from airflow_hydrogen.clusters.requirement import Requirement, fits, parse_memory, resource_amounts
from airflow_hydrogen.clusters.snapshot import GPU
from airflow_hydrogen.contract.errors import HydrogenError, InvalidJobError, NeverEnoughError
from airflow_hydrogen.contract.gpus import gpu_share, tasks_on, whole_gpus
from airflow_hydrogen.triggers.polls import DEFAULT_MAX_WAIT_S

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

DEFAULT_EXECUTOR_MEMORY = "1g"
"""Spark's own."""


class GPUClusterSensor(BaseSensorOperator):
    """Wait until a Spark cluster has what the next task needs, all of it at the same time.

    The cluster manager that the Spark connection names is asked: a standalone master, YARN, Kubernetes, or
    this machine, which is also what is meant where there is no connection. The XCom is what it said: `total`,
    `free` and the same for each of the `hosts`.

    What is free is not reserved: of two sensors that see the same GPUs, both succeed. Let a pool limit the
    tasks that may need them at once.

    Args:
        gpus: GPUs of the whole cluster (templated, like all amounts).
        resource: another resource of the whole cluster, by Spark's or the cluster manager's name, with
            `amount`.
        amount: how many of `resource`.
        cores: cores of the whole cluster.
        memory: memory of the whole cluster that executors can have: bytes, or a text such as "16g".
        hosts: number of hosts that must have at least one of everything asked for, or, with `np`, room for a
            process.
        np: processes of a gang, as for HorovodTrainOperator: each needs a place of its own with
            `gpus_per_process`, `cpus_per_process` and memory on one node, all at the same time.
        gpus_per_process: GPUs of each process of the gang.
        cpus_per_process: cores of each process of the gang.
        memory_per_process: memory of each process of the gang on its node, where that is more than its part
            of `executor_memory`: tensors lie outside of the heap.
        gpus_per_task: GPUs of a task that scores, as for ArrowInferenceOperator: there has to be a place for
            its executors, each with the GPUs of one task, or the one that its tasks share, on one node.
        num_executors: how many of these executors; one is enough to score.
        executor_cores: the operator's `executor_cores`: an executor holds as many processes as they allow.
        executor_memory: the operator's `executor_memory`, or Spark's default; its overhead is added as the
            cluster manager adds it.
        free_now: wait for resources that nobody uses; False: for a cluster that has as much, used or not.
        conn_id: the Spark connection (templated).
        deferrable: wait on the triggerer, without a worker slot. Default: `[operators] default_deferrable`.
        kwargs: options of every sensor. `exponential_backoff` is for `deferrable=False`; `max_wait` also
            limits the waits while the cluster manager does not answer.
    """

    template_fields: Sequence[str] = (
        "gpus",
        "resource",
        "amount",
        "cores",
        "memory",
        "hosts",
        "np",
        "gpus_per_process",
        "cpus_per_process",
        "memory_per_process",
        "gpus_per_task",
        "num_executors",
        "executor_cores",
        "executor_memory",
        "conn_id",
    )
    ui_color = "#d9ead3"

    def __init__(
        self,
        *,
        gpus: int | str | None = None,
        resource: str | None = None,
        amount: int | str | None = None,
        cores: int | str | None = None,
        memory: int | str | None = None,
        hosts: int | str = 1,
        np: int | str | None = None,
        gpus_per_process: int | str = 0,
        cpus_per_process: int | str = 1,
        memory_per_process: int | str | None = None,
        gpus_per_task: float | str | None = None,
        num_executors: int | str | None = None,
        executor_cores: int | str | None = None,
        executor_memory: int | str = DEFAULT_EXECUTOR_MEMORY,
        free_now: bool = True,
        conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gpus = gpus
        self.resource = resource
        self.amount = amount
        self.cores = cores
        self.memory = memory
        self.hosts = hosts
        self.np = np
        self.gpus_per_process = gpus_per_process
        self.cpus_per_process = cpus_per_process
        self.memory_per_process = memory_per_process
        self.gpus_per_task = gpus_per_task
        self.num_executors = num_executors
        self.executor_cores = executor_cores
        self.executor_memory = executor_memory
        self.free_now = free_now
        self.conn_id = conn_id
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        """Poke once, then wait on the triggerer; or wait here, as every sensor does.

        Raises:
            AirflowFailException: the arguments make no sense, whatever `soft_fail` says, or waiting cannot
                help.
        """
        try:
            self.requirement()
        except InvalidJobError as error:
            raise AirflowFailException(str(error)) from None
        if not self.deferrable:
            return super().execute(context)
        try:
            found = self.poke(context)
        except AirflowException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(f"Skipping: {error}") from error
            raise
        if found:
            return found.xcom_value
        # It imports a part of Airflow that parsing a DAG does not need.
        from airflow_hydrogen.triggers.gpu_cluster import GPUClusterTrigger

        trigger = GPUClusterTrigger(
            conn_id=self.conn_id,
            requirement=self.requirement().to_dict(),
            poke_interval_s=self.poke_interval,
            max_wait_s=self.max_wait.total_seconds() if self.max_wait else DEFAULT_MAX_WAIT_S,
        )
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=self.timeout))

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> Any:
        """Answer with what the trigger saw.

        Raises:
            AirflowFailException: it found out that waiting cannot help.
        """
        if event is None or event["status"] != "success":
            raise AirflowFailException(event["message"] if event else "the trigger fired without an event")
        self.log.info("The cluster has %s", self.requirement())
        return event["snapshot"]

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask once. A cluster manager that does not answer is one that has nothing yet."""
        requirement = self.requirement()
        try:
            try:
                connection = BaseHook.get_connection(self.conn_id)
            except AirflowNotFoundException:
                connection = None
            snapshot = asyncio.run(take_snapshot(endpoint_of(self.conn_id, connection)))
            decision = fits(snapshot, requirement)
            if not decision.fits and snapshot.fixed:
                raise NeverEnoughError(snapshot.master, str(decision))
        except HydrogenError as error:
            if not error.retryable:
                raise AirflowFailException(str(error)) from None
            self.log.warning("Waiting for the cluster manager: %s", error)
            return PokeReturnValue(False)
        if not decision.fits:
            self.log.info("Waiting for %s: %s", requirement, decision)
            return PokeReturnValue(False)
        self.log.info("The cluster has %s", requirement)
        return PokeReturnValue(True, snapshot.to_dict())

    def requirement(self) -> Requirement:
        """What the rendered arguments ask for.

        Raises:
            InvalidJobError: they make no sense. One message names all faults.
        """
        faults: list[str] = []

        def number(argument: str) -> int:
            value = getattr(self, argument)
            if value in (None, ""):
                return 0
            if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
                return int(value)
            if isinstance(value, bool) or not isinstance(value, int):
                faults.append(f"{argument} must be an integer, found {value!r}")
                return 0
            return value

        def size(argument: str) -> int:
            value = getattr(self, argument)
            try:
                return 0 if value in (None, "") else parse_memory(argument, value)
            except InvalidJobError as error:
                faults.append(str(error))
                return 0

        numbers: dict[str, Any] = {
            argument: number(argument)
            for argument in (
                "cores",
                "hosts",
                "np",
                "gpus_per_process",
                "cpus_per_process",
                "num_executors",
                "executor_cores",
            )
        }
        amounts = []
        if self.gpus not in (None, ""):
            amounts.append((GPU, number("gpus")))
        if bool(self.resource) != (self.amount not in (None, "")):
            faults.append("resource and amount go together")
        elif self.resource:
            amounts.append((self.resource, number("amount")))
        memories: dict[str, Any] = {
            f"{argument}_bytes": size(argument)
            for argument in ("memory", "memory_per_process", "executor_memory")
        }
        num_executors = numbers.pop("num_executors")
        if self.gpus_per_task not in (None, ""):
            numbers.update(self._executors(num_executors, numbers, faults))
        elif num_executors:
            faults.append("num_executors needs gpus_per_task: they are of a scoring")
        if not numbers["np"]:
            memories["executor_memory_bytes"] = 0  # there is no gang, and so no executor
        if faults:
            raise InvalidJobError(f"what the sensor waits for cannot be: {'; '.join(faults)}")
        resources: dict[str, int] = {}
        for pair in amounts:
            for name, amount in resource_amounts(dict([pair])).items():
                resources[name] = resources.get(name, 0) + amount
        return Requirement(resources=resources, free_now=self.free_now, **numbers, **memories)

    def _executors(self, count: int, numbers: Mapping[str, int], faults: list[str]) -> dict[str, Any]:
        """What executors of a scoring take, as the operator asks for them; adds what makes no sense."""
        try:
            gpus = gpu_share("gpus_per_task", self.gpus_per_task)
        except InvalidJobError as error:
            faults.append(str(error))
            return {}
        if not gpus:
            faults.append("gpus_per_task=0 needs no GPUs: leave it out")
        if numbers["np"] or numbers["gpus_per_process"]:
            faults.append(
                "np and gpus_per_process are of a gang, and gpus_per_task of a scoring: leave one out"
            )
        cores = numbers["executor_cores"] or numbers["cpus_per_process"] * tasks_on(gpus)
        return {
            "executors": True,
            "np": count or 1,
            "gpus_per_process": whole_gpus(gpus),
            "cpus_per_process": cores,
            "executor_cores": cores,
        }
