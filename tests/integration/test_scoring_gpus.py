"""Tasks that score on GPUs, which a script makes up, on a real cluster: who sees which, and when.

What a model does on a GPU is not tested here: there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.reports import InferenceReport
from airflow_hydrogen.operators.gang_conf import scoring_conf
from tests.integration.applications import Driver, application, start_driver
from tests.integration.cluster import StandaloneCluster, standalone_cluster
from tests.integration.models import publish_plain

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROWS = 48
TASKS = 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandaloneCluster]:
    with standalone_cluster(workers=1, cores=4, memory="1g", gpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def start(
    cluster: StandaloneCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Driver]]:
    """Starts a driver with what the operator asks of Spark; the one before gives its executors back."""
    drivers: list[Driver] = []

    def run(gpus: float, executor_cores: int, **given: str) -> Driver:
        for driver in drivers:
            driver.kill()
        conf = {
            "spark.executor.cores": str(executor_cores),
            "spark.cores.max": "4",
            **scoring_conf(
                cluster.master_url, gpus_per_task=gpus, executor_cores=executor_cores, given=given
            ),
            **given,
        }
        drivers.append(start_driver(cluster, tmp_path_factory.mktemp("driver") / "driver", conf))
        return drivers[-1]

    yield run
    for driver in drivers:
        driver.kill()


@pytest.fixture(scope="module")
def shared(start: Callable[..., Driver]) -> Driver:
    """Two executors of two cores, with one GPU each."""
    return start(0.5, 2)


@pytest.fixture
def scored(tmp_path: Path, eventually: Callable[..., None]) -> Callable[..., dict[str, list[dict[str, Any]]]]:
    """Scores, and gives what the tasks have told: those that prepare, and those that score."""

    def run(driver: Driver, gpus: float, at_once: int) -> dict[str, list[dict[str, Any]]]:
        pq.write_table(
            pa.table({name: pa.array(range(ROWS), pa.float32()) for name in ("a", "b")}),
            tmp_path / "rows.parquet",
        )
        (tmp_path / "prepare").write_text("4")
        (tmp_path / "score").write_text(str(at_once))
        job = InferenceJob(
            model_uri=publish_plain(tmp_path, str(tmp_path)),
            predictor="tests.integration.scoring_apps:tells_its_gpus",
            source=Source.parquet(str(tmp_path / "rows.parquet")),
            sink=Sink.parquet(str(tmp_path / "scored")),
            prepare="tests.integration.scoring_apps:on_all_cores",
            prepare_kwargs={"folder": str(tmp_path), "tasks": TASKS},
            report_uri=str(tmp_path / "report.json"),
            gpus_per_task=gpus,
        )
        (tmp_path / "job.json").write_text(jobs.dumps(job))
        driver.submit(tmp_path / "job.json")
        report = tmp_path / "report.json"
        eventually(lambda: report.exists() or not driver.is_alive(), "the scoring ends", timeout_s=240)
        assert report.exists(), driver.log
        found = reports.loads(report.read_text())
        assert isinstance(found, InferenceReport)
        assert found.failure is None, f"{found.failure}\n{driver.log}"
        assert found.rows == ROWS
        return {
            what: [json.loads(file.read_text()) for file in sorted(tmp_path.glob(f"{what}-*.json"))]
            for what in ("prepare", "score")
        }

    return run


def tasks_by_gpu(told: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The tasks that have each GPU, in the order in which they began."""
    found: dict[str, list[dict[str, Any]]] = {}
    for task in sorted(told, key=lambda task: task["began"]):
        assert task["visible"] == ",".join(task["assigned"])
        found.setdefault(task["visible"], []).append(task)
    return found


def at_the_same_time(tasks: list[dict[str, Any]]) -> int:
    """How many of them ran at once, at most."""
    edges = sorted([(task["began"], 1) for task in tasks] + [(task["ended"], -1) for task in tasks])
    running = most = 0
    for _, change in edges:
        running += change
        most = max(most, running)
    return most


def test_a_whole_gpu_is_of_one_task_while_all_cores_prepare(
    shared: Driver, scored: Callable[..., Any]
) -> None:
    told = scored(shared, gpus=1, at_once=2)
    assert at_the_same_time(told["prepare"]) == 4
    by_gpu = tasks_by_gpu(told["score"])
    assert set(by_gpu) == {"0", "1"}
    for tasks in by_gpu.values():
        assert len({task["pid"] for task in tasks}) == 1
        assert all(before["ended"] <= after["began"] for before, after in pairwise(tasks))


def test_tasks_share_a_gpu_as_asked_and_those_that_prepare_hold_none(
    shared: Driver, scored: Callable[..., Any]
) -> None:
    told = scored(shared, gpus=0.5, at_once=4)
    assert at_the_same_time(told["prepare"]) == 4
    assert {tuple(task["assigned"]) for task in told["prepare"]} == {()}
    by_gpu = tasks_by_gpu(told["score"])
    assert set(by_gpu) == {"0", "1"}
    assert sum(map(len, by_gpu.values())) == TASKS
    assert {at_the_same_time(tasks) for tasks in by_gpu.values()} == {2}
    assert {task["growth"] for task in told["score"]} == {"true"}
    # No more processes come to hold the model than the GPU has room for.
    assert {len({task["pid"] for task in tasks}) for tasks in by_gpu.values()} == {2}
    assert not {task["pid"] for task in told["prepare"]} & {task["pid"] for task in told["score"]}


def test_a_gang_has_a_rank_for_each_gpu_where_executors_have_more_cores(
    shared: Driver, tmp_path: Path
) -> None:
    """Its stage alone asks for GPUs: the application has four slots, and two GPUs."""
    with application(shared, tmp_path / "a", "count", np=0, options={"gpus_per_process": 1}) as running:
        ranks = running.ranks(2)
        report = running.finish()
    assert report.failure is None, running.log
    assert report.np == 2
    assert sorted(rank["environment"]["CUDA_VISIBLE_DEVICES"] for rank in ranks) == ["0", "1"]
    assert "Spark's resource scheduling gave none" not in running.log


def test_workers_of_an_executor_with_several_gpus_take_one_task_each(
    start: Callable[..., Driver], scored: Callable[..., Any]
) -> None:
    """A worker cannot go from one GPU to another."""
    driver = start(1, 4, **{"spark.executor.resource.gpu.amount": "2"})
    told = scored(driver, gpus=1, at_once=2)
    by_gpu = tasks_by_gpu(told["score"])
    assert set(by_gpu) == {"0", "1"}
    assert {at_the_same_time(tasks) for tasks in by_gpu.values()} == {1}
    assert len({task["pid"] for task in told["score"]}) == TASKS
