"""A barrier stage, by an application's own SparkContext or by a Spark Connect server."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from airflow_hydrogen.runtime.connect import plans, sessions
from airflow_hydrogen.runtime.connect.reach import local_address
from airflow_hydrogen.runtime.gang import profiles
from airflow_hydrogen.runtime.session import is_local

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_LOOPBACK = ("127.0.0.1", "::1")

Stage = Callable[[Any], Iterator[Any]]


class Barrier(Protocol):
    """One stage whose tasks run at the same time, or not at all.

    Attributes:
        host: the name under which tasks reach this process.
        bind: the address on which it listens.
    """

    host: str
    bind: str

    def run(self, stage: Stage, size: int) -> list[Any]:
        """Run it, and return what its tasks have yielded."""
        ...

    def cancel(self) -> None:
        """End it, from any thread."""
        ...

    @contextmanager
    def tagged(self) -> Iterator[None]:
        """Have what runs in the block be what `cancel` ends."""
        ...


def barrier_of(spark: SparkSession, gpus: int) -> Barrier:
    """The next barrier stage of a session.

    Args:
        spark: the session.
        gpus: of a task.
    """
    return OnConnect(spark) if sessions.is_connect(spark) else OnContext(spark, gpus)


class OnContext:
    """See `Barrier`.

    Args:
        spark: a session with a SparkContext.
        gpus: of a task.
    """

    def __init__(self, spark: SparkSession, gpus: int) -> None:
        self._spark, self._gpus, self._context = spark, gpus, spark.sparkContext
        host = self._context.getConf().get("spark.driver.host")
        bind = self._context.getConf().get("spark.driver.bindAddress", host)
        assert host is not None and bind is not None
        self.host, self.bind = host, bind
        self._tag = _new_tag()

    def run(self, stage: Stage, size: int) -> list[Any]:
        """Run it, and return what its tasks have yielded."""
        # A data-free RDD: Spark refuses barrier stages over unions, coalesced RDDs and the like.
        ranks = self._context.parallelize(range(size), size)
        if (profile := profiles.of_gang(self._spark, self._gpus)) is not None:
            ranks = ranks.withResources(profile)
        answers: list[Any] = ranks.barrier().mapPartitions(stage).collect()
        return answers

    def cancel(self) -> None:
        """End it, from any thread."""
        self._context.cancelJobsWithTag(self._tag)

    @contextmanager
    def tagged(self) -> Iterator[None]:
        """Have what runs in the block be what `cancel` ends."""
        self._context.addJobTag(self._tag)
        try:
            yield
        finally:
            self._context.removeJobTag(self._tag)


class OnConnect:
    """See `Barrier`; the driver of the gang is this process, and that of the stage the server.

    Args:
        spark: a session of Spark Connect.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._spark, self._tag = spark, _new_tag()
        self.host = self.bind = local_address(sessions.access_of_job())
        if self.host in _LOOPBACK and not is_local(spark):
            # The server is on this machine and its executors are not: they reach it by this name.
            self.host = str(spark.conf.get("spark.driver.host"))
            self.bind = str(spark.conf.get("spark.driver.bindAddress", self.host))

    def run(self, stage: Stage, size: int) -> list[Any]:
        """Run it, and return what its tasks have yielded."""
        return plans.run_tasks(self._spark, size, stage, barrier=True)

    def cancel(self) -> None:
        """End it, from any thread."""
        self._spark.interruptTag(self._tag)

    @contextmanager
    def tagged(self) -> Iterator[None]:
        """Have what runs in the block be what `cancel` ends."""
        self._spark.addTag(self._tag)
        try:
            yield
        finally:
            self._spark.removeTag(self._tag)


def _new_tag() -> str:
    return f"airflow-hydrogen-gang-{secrets.token_hex(8)}"
