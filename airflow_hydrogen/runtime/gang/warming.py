"""Templates that start before their gang does: while the data is prepared, a framework is imported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_hydrogen.runtime.connect import plans
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.gang import rendezvous, stage, templates
from airflow_hydrogen.runtime.gang.slots import given_omp_threads, threads_per_task
from airflow_hydrogen.runtime.gang.templates import NoTemplate, TemplateSpec

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class WarmTask:
    """What a task does that starts its executor's template, and does not wait for it.

    Attributes:
        template: which one.
        threads: math threads of a rank.
        omp_threads: the user's own OMP_NUM_THREADS, if there is one.
    """

    template: TemplateSpec
    threads: int
    omp_threads: str | None

    def __call__(self, _partition: Iterable[int]) -> None:
        warm(
            stage.of_this_executor(self.template),
            rendezvous.thread_environment(self.threads, self.omp_threads),
        )


def warm(template: TemplateSpec, environment: dict[str, str]) -> None:
    """Start a template for the ranks of this process. Where there can be none, the ranks say why."""
    with suppress(NoTemplate):
        templates.warm(template, environment)


def warm_executors(
    spark: SparkSession, template: TemplateSpec, size: int, say: Callable[[str], None]
) -> threading.Thread:
    """Start templates on the executors that are there, by a small job beside whatever else runs.

    An executor that gets none of its tasks starts its template with its first rank.

    Args:
        spark: the session.
        template: which templates.
        size: ranks of the gang.
        say: called with a line where that fails; the gang does without.

    Returns:
        The thread that runs the job.
    """
    task = WarmTask(template, threads_per_task(spark, size), given_omp_threads(spark))
    if is_connect(spark):
        return _beside(lambda: plans.run_tasks(spark, size, task), _failing(say))
    tasks = spark.sparkContext.defaultParallelism
    return beside(spark, task, tasks, _failing(say))


def _failing(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda why: say(f"no template was started before the gang: {why}")


def beside(
    spark: SparkSession, task: Callable[[Iterable[int]], None], tasks: int, failed: Callable[[str], None]
) -> threading.Thread:
    """Run a small job beside whatever else runs.

    Args:
        spark: the session.
        task: what each task does.
        tasks: how many.
        failed: called with the reason where the job fails.

    Returns:
        The thread that runs it.
    """
    context = spark.sparkContext
    return _beside(lambda: context.parallelize(range(tasks), tasks).foreachPartition(task), failed)


def _beside(job: Callable[[], object], failed: Callable[[str], None]) -> threading.Thread:
    def run() -> None:
        try:
            job()
        except Exception as error:
            failed(str(error).strip().partition(chr(10))[0])

    thread = threading.Thread(target=run, name="warming", daemon=True)
    thread.start()
    return thread
