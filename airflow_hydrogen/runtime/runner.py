"""HorovodRunner: single-node training code on a gang of processes."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_hydrogen.contract.errors import EntrypointError, InvalidJobError
from airflow_hydrogen.contract.jobs import Entrypoint
from airflow_hydrogen.contract.pickling import dumps_by_value
from airflow_hydrogen.runtime import gang
from airflow_hydrogen.runtime.process import RankTask
from airflow_hydrogen.runtime.slots import require_slots


class HorovodRunner:
    """Run a training function under Horovod, with the semantics of Databricks' HorovodRunner.

    Args:
        np: number of processes. Positive: that many Spark tasks, started together in barrier mode.
            0: one on every task slot of the cluster. Negative: that many processes on this machine,
            without Spark at all, to find mistakes in the training code.
        driver_log_verbosity: "all" prints every line of every rank, `[rank]` in front;
            "log_callback_only" prints what `report` is given.
        start_timeout_s: how long executors may take to register, in seconds.

    Raises:
        InvalidJobError: an argument that cannot work.
    """

    def __init__(
        self, np: int, *, driver_log_verbosity: gang.Verbosity = "all", start_timeout_s: float = 120.0
    ) -> None:
        if isinstance(np, bool) or not isinstance(np, int):
            raise InvalidJobError(f"np must be an integer, found {np!r}")
        if driver_log_verbosity not in ("all", "log_callback_only"):
            raise InvalidJobError(
                f"driver_log_verbosity must be 'all' or 'log_callback_only', found {driver_log_verbosity!r}"
            )
        self.np = np
        self._log = gang.GangLog(driver_log_verbosity)
        self._start_timeout_s = start_timeout_s

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
            RankFailedError: `main` raised on a rank, with that rank's traceback.
            GangLostError: an executor was lost.
        """
        task = rank_task(main, args, kwargs)
        return pickle.loads(self.run_task(task))

    def run_task(self, task: RankTask) -> bytes:
        """Run a prepared task and return rank 0's pickled answer: what the training application calls."""
        if self.np < 0:
            return gang.run_locally(task, -self.np, self._log)
        from pyspark.sql import SparkSession

        spark = SparkSession.builder.getOrCreate()
        size = require_slots(spark, self.np, self._start_timeout_s)
        return gang.run_on_spark(spark, task, size, self._log)


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
        return RankTask(Entrypoint.pickled(dumps_by_value(bound), name))
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
