"""HorovodRunner: single-node training code on a gang of processes."""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.code import hash_callable
from airflow_hydrogen.contract.errors import EntrypointError, InvalidJobError
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.jobs import Entrypoint
from airflow_hydrogen.contract.pickling import dumps_by_value
from airflow_hydrogen.runtime.connect import sessions
from airflow_hydrogen.runtime.gang import attempt, warming
from airflow_hydrogen.runtime.gang.logs import GangLog
from airflow_hydrogen.runtime.gang.preload import Preload, named, plan
from airflow_hydrogen.runtime.gang.restarts import RestartPolicy
from airflow_hydrogen.runtime.gang.slots import gang_slots, require_slots
from airflow_hydrogen.runtime.gang.supervision import GangResult, run_supervised
from airflow_hydrogen.runtime.gang.templates import TemplateSpec, secret_of_driver
from airflow_hydrogen.runtime.progress import beat_interval_s
from airflow_hydrogen.runtime.rank.task import RankTask

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class HorovodRunner:
    """Run a training function under Horovod, with the semantics of Databricks' HorovodRunner.

    Args:
        np: number of processes. Positive: that many Spark tasks, started together in barrier mode.
            0: one on every task slot of the cluster. Negative: that many processes on this machine,
            without Spark at all, to find mistakes in the training code.
        options: those of `contract.gang.GangOptions`: driver_log_verbosity, start_timeout_s,
            stall_timeout_s, max_restarts, min_np, gpus_per_process, network_interface, port_range, fork.

    Raises:
        InvalidJobError: an argument that cannot work.
    """

    def __init__(self, np: int, **options: Any) -> None:
        if isinstance(np, bool) or not isinstance(np, int):
            raise InvalidJobError(f"np must be an integer, found {np!r}")
        self.np = np
        self.options = GangOptions.from_dict(options)
        self.options.check_size(np)
        self._warming: threading.Thread | None = None

    def run(self, main: Callable[..., Any] | str, /, *args: str, **kwargs: Any) -> Any:
        """Run `main` on every rank.

        Args:
            main: a callable, which is pickled by value with cloudpickle; `"package.module:function"`,
                which every rank imports; or the path of a script, run as `__main__` on every rank.
            args: the command line of a script.
            kwargs: keyword arguments of a function.

        Returns:
            What `main` returned on rank 0; None for a script.

        Raises:
            InvalidJobError: `main` cannot run (`EntrypointError`, `EntrypointPickleError`), or np is more
                than the cluster's task slots (`NotEnoughSlotsError`).
            RankFailedError: `main` raised on a rank, with that rank's traceback, or its process died
                (`StallError`: it made no progress; `PeerUnreachableError`: it did not reach another rank).
            GangLostError: an executor was lost.
            RanksDivergedError: `main` returned a Keras model on every rank, and they are not the same.
        """
        task = rank_task(main, args, kwargs)
        return pickle.loads(self.run_task(task).answer)

    def run_task(self, task: RankTask, *, folded: bool = False) -> GangResult:
        """Run a prepared task: what the training application calls.

        Args:
            task: what every rank runs.
            folded: put the ranks' lines into groups, as Airflow folds them.
        """
        log = GangLog(self.options.driver_log_verbosity, folded=folded)
        try:
            return self._run_supervised(task, log)
        finally:
            log.close()

    def _run_supervised(self, task: RankTask, log: GangLog) -> GangResult:
        task = dataclasses.replace(task, beat_s=beat_interval_s(self.options.stall_timeout_s))
        options = self.options
        template = self._template(task.entrypoint, task.script)
        if template is not None and (why_not := self._preload(task.entrypoint, task.script).why_not):
            log.event(f"ranks import their frameworks themselves: {why_not}")
        if self.np < 0:
            return run_supervised(
                lambda task, size: attempt.run_locally(task, size, options, log, template),
                task,
                self._policy(-self.np),
                free_slots=lambda: -self.np,
                say=log.event,
            )
        from pyspark.sql import SparkSession

        spark = SparkSession.builder.getOrCreate()
        if self._warming is not None:  # its tasks take slots, for a moment
            self._warming.join(options.start_timeout_s)
        return run_supervised(
            lambda task, size: attempt.run_on_spark(spark, task, size, options, log, template),
            task,
            self._policy(require_slots(spark, self.np, options, log.event)),
            free_slots=lambda: gang_slots(spark, options).free,
            say=log.event,
        )

    def warm(self, spark: SparkSession, entrypoint: Entrypoint, script: str | None) -> None:
        """Start what ranks are forked from, before the gang: what takes time goes on beside other work.

        Args:
            spark: the session; ranks of this machine do without.
            entrypoint: the gang's.
            script: the text of a script.
        """
        template = self._template(entrypoint, script)
        if template is None:
            return
        if self.np < 0:
            warming.warm(template, attempt.local_threads(-self.np))
        else:
            size = self.np or gang_slots(spark, self.options).total
            self._warming = warming.warm_executors(
                spark, template, size, GangLog(self.options.driver_log_verbosity).event
            )

    def _template(self, entrypoint: Entrypoint, script: str | None) -> TemplateSpec | None:
        """Which templates the ranks are forked from."""
        if not self.options.fork:
            return None
        found = self._preload(entrypoint, script)
        owner = os.getpid() if self.np < 0 else None
        secret = sessions.secret_of_session() or secret_of_driver()
        return TemplateSpec(secret, found.modules, owner, required=found.required)

    def _preload(self, entrypoint: Entrypoint, script: str | None) -> Preload:
        fork = self.options.fork
        return plan(entrypoint, script) if isinstance(fork, bool) else named(fork)

    def _policy(self, np: int) -> RestartPolicy:
        return RestartPolicy(
            np=np,
            max_restarts=self.options.max_restarts,
            min_np=self.options.min_np,
            start_timeout_s=self.options.start_timeout_s,
        )


def rank_task(main: Callable[..., Any] | str, args: tuple[str, ...], kwargs: dict[str, Any]) -> RankTask:
    """The task for what a user passed to `run`.

    Raises:
        EntrypointError, EntrypointPickleError: it cannot run on the cluster.
    """
    if callable(main):
        if args:
            raise InvalidJobError(
                "positional arguments are the command line of a script; pass keyword arguments"
            )
        name = getattr(main, "__qualname__", repr(main))
        bound = functools.partial(main, **kwargs) if kwargs else main
        code = hash_callable(main).digest
        return RankTask(
            Entrypoint.pickled(dumps_by_value(bound), name),
            fingerprint=code,
            parts={"code of entrypoint": code},
        )
    if not isinstance(main, str):
        raise EntrypointError(repr(main), f"is a {type(main).__name__}")
    entrypoint = Entrypoint.parse(main)
    if entrypoint.kind == "import":
        if args:
            raise InvalidJobError(
                "positional arguments are the command line of a script; pass keyword arguments"
            )
        return RankTask(entrypoint, kwargs=kwargs)
    if kwargs:
        raise InvalidJobError("keyword arguments are for a function; a script takes positional arguments")
    return RankTask(entrypoint, args=args, script=read_script(main))


def read_script(path: str) -> str:
    """The text of a script, which travels to hosts that do not see its path.

    Raises:
        EntrypointError: there is no such file.
    """
    try:
        return Path(path).read_text()
    except OSError as error:
        raise EntrypointError(path, f"cannot be read ({error.strerror})") from error
