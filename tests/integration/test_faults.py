"""Each fault of a shared cluster, made for real in the middle of a training on two hosts."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime.models.exports import ExportedModel
from tests.integration.applications import (
    Application,
    Driver,
    application,
    executor_of,
    shared_driver,
    start_driver,
)
from tests.integration.cluster import StandaloneCluster, skip_without_namespaces, standalone_cluster
from tests.integration.models import publish
from tests.integration.scoring_apps import FATAL

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RankProcesses = Callable[[], list[psutil.Process]]
Eventually = Callable[..., None]

# A gang of two takes both hosts: one core each.
SPREAD = {"spark.cores.max": "2", "spark.executor.cores": "1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneCluster]:
    skip_without_namespaces()
    settings = {
        "spark.worker.timeout": "10",
        # A master that has forgotten its applications has their executors killed once their workers are back.
        "spark.deploy.recoveryMode": "FILESYSTEM",
        "spark.deploy.recoveryDirectory": str(tmp_path_factory.mktemp("recovery")),
    }
    with standalone_cluster(
        workers=2, cores=1, memory="1g", gpus=0, namespaces=True, settings=settings
    ) as started:
        yield started


@pytest.fixture(scope="module")
def drivers(
    cluster: StandaloneCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Driver]]:
    with shared_driver(cluster, tmp_path_factory.mktemp("drivers"), SPREAD) as current:
        yield current


@pytest.fixture
def driver(both_hosts: StandaloneCluster, drivers: Callable[[], Driver]) -> Driver:
    """The tests' common driver, on a cluster that has all of its workers."""
    return drivers()


@pytest.fixture
def both_hosts(cluster: StandaloneCluster, eventually: Eventually) -> StandaloneCluster:
    """The cluster with all of its workers, whatever the test before has done to them."""
    running = len(cluster.worker_processes)
    eventually(lambda: len(cluster.alive_workers()) == running, "the master misses what is gone", 90)
    missing = [index for index in (0, 1) if index not in cluster.worker_processes]
    if missing:
        cluster.start_workers(missing)
    return cluster


def wait_for_checkpoints(running: Application, epochs: int = 3) -> int:
    """The epoch of the newest checkpoint, once there are some."""
    running.until(lambda: running.epoch() >= epochs, f"{epochs} checkpoints")
    return running.epoch()


def kill(process: psutil.Process | int) -> None:
    pid = process if isinstance(process, int) else process.pid
    os.kill(pid, signal.SIGKILL)


# --- a process dies ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> str:
    """y = 2x, as Parquet."""
    path = tmp_path_factory.mktemp("line") / "line.parquet"
    x = [number / 500 for number in range(1_000)]
    pq.write_table(
        pa.table({"x": pa.array(x, "float32"), "y": pa.array([2 * v for v in x], "float32")}), path
    )
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(drivers: Callable[[], Driver], line: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The metrics of a training that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with application(drivers(), folder, "fit", train=line, epochs=4) as running:
        report = running.report()
    assert report.failure is None, running.log
    assert report.restarts == ()
    return report


def test_a_killed_rank_costs_less_than_a_checkpoint_interval_and_changes_no_result(
    driver: Driver, line: str, undisturbed: Any, tmp_path: Path, rank_processes: RankProcesses
) -> None:
    with application(driver, tmp_path / "a", "fit", train=line, epochs=4, die_in_epoch=2) as running:
        report = running.report()
    assert report.failure is None, running.log
    assert len(report.restarts) == 1
    assert "its process was killed by signal 9 (SIGKILL)" in report.restarts[0]
    assert report.resumed_from_epoch == 2
    assert report.epochs == 4
    assert report.metrics["loss"] == pytest.approx(undisturbed.metrics["loss"], rel=1e-5)
    assert "[gang] restart 1 of 2 with np=2" in running.log
    assert not rank_processes()


@pytest.mark.parametrize("victim", ["rank", "python worker", "executor"])
def test_whatever_dies_the_gang_resumes_from_its_last_checkpoint(
    driver: Driver,
    tmp_path: Path,
    rank_processes: RankProcesses,
    eventually: Eventually,
    victim: str,
) -> None:
    with application(driver, tmp_path / "a", "count") as running:
        ranks = running.ranks(2)
        epoch = wait_for_checkpoints(running)
        doomed = {"rank": ranks[1]["pid"], "python worker": ranks[1]["parent"]}
        kill(doomed[victim] if victim in doomed else executor_of(ranks[1]))
        old = {rank["pid"] for rank in ranks}
        eventually(lambda: not old & {process.pid for process in rank_processes()}, "no orphan", 5)
        running.ranks(2, attempt=1)
        report = running.finish()
    assert report.failure is None, running.log
    assert report.result["attempt"] == 1
    assert report.result["begin"] >= epoch
    assert len(report.restarts) == 1


# --- a host goes ---------------------------------------------------------------------------------------


def test_a_host_that_is_gone_is_done_without_where_min_np_allows(
    both_hosts: StandaloneCluster, driver: Driver, tmp_path: Path
) -> None:
    with application(driver, tmp_path / "a", "count", options={"min_np": 1}) as running:
        running.ranks(2)
        epoch = wait_for_checkpoints(running)
        both_hosts.kill_host(1)
        running.ranks(1, attempt=1)
        report = running.finish()
    assert report.failure is None, running.log
    assert report.result["size"] == report.np == 1
    assert report.result["begin"] >= epoch
    assert "with np=1, fewer than the 2 it began with" in running.log


def test_else_its_slots_are_waited_for(both_hosts: StandaloneCluster, driver: Driver, tmp_path: Path) -> None:
    with application(driver, tmp_path / "a", "count") as running:
        running.ranks(2)
        wait_for_checkpoints(running)
        both_hosts.kill_host(1)
        running.until(lambda: "waiting: 1 of 2 task slots are free" in running.log, "it waits")
        both_hosts.start_worker(1)
        running.ranks(2, attempt=1)
        report = running.finish()
    assert report.failure is None, running.log
    assert report.result["size"] == 2


def test_and_slots_that_do_not_come_are_a_clear_failure(
    both_hosts: StandaloneCluster, driver: Driver, tmp_path: Path
) -> None:
    with application(driver, tmp_path / "a", "count", options={"start_timeout_s": 25.0}) as running:
        running.ranks(2)
        both_hosts.kill_host(1)
        report = running.report()
    assert report.failure is not None
    assert report.failure.retryable
    assert "giving up: 1 task slots are free, 2 are needed, after 25 s (start_timeout_s)" in running.log


def test_a_cable_that_is_pulled_is_noticed_by_the_watchdog(
    both_hosts: StandaloneCluster, driver: Driver, tmp_path: Path, rank_processes: RankProcesses
) -> None:
    with application(
        driver, tmp_path / "a", "count", options={"min_np": 1, "stall_timeout_s": 5.0}
    ) as running:
        ranks = running.ranks(2)
        lost = next(rank for rank in ranks if rank["host"] == both_hosts.worker_host(1))
        epoch = wait_for_checkpoints(running)
        both_hosts.link_down(1)
        try:
            running.ranks(1, attempt=1)
            report = running.finish()
        finally:
            both_hosts.link_up(1)
            both_hosts.kill_host(1)
    assert report.failure is None, running.log
    assert report.result["size"] == 1
    # Rank 0 may be the one that is lost; it writes the checkpoints, on a disk that both hosts have.
    assert report.result["begin"] >= epoch
    assert f"rank {lost['rank']} on {lost['host']}" in report.restarts[0]
    assert "has not answered for" in report.restarts[0]


# --- a rank hangs --------------------------------------------------------------------------------------


def test_a_frozen_rank_is_named_and_the_gang_starts_again(driver: Driver, tmp_path: Path) -> None:
    with application(driver, tmp_path / "a", "count", options={"stall_timeout_s": 4.0}) as running:
        ranks = running.ranks(2)
        wait_for_checkpoints(running)
        os.kill(ranks[1]["pid"], signal.SIGSTOP)
        stopped = time.monotonic()
        running.until(lambda: "[gang] failed: rank 1" in running.log, "the watchdog speaks", 30)
        assert time.monotonic() - stopped < 15
        running.ranks(2, attempt=1)
        report = running.finish()
    assert report.failure is None, running.log
    assert f"rank 1 on {ranks[1]['host']} failed: its process has not answered for" in report.restarts[0]


def test_a_rank_that_skips_a_collective_is_named_with_the_line_where_it_stands(
    driver: Driver, tmp_path: Path
) -> None:
    options = {"stall_timeout_s": 5.0, "max_restarts": 0}
    with application(driver, tmp_path / "a", "skip_a_collective", options=options, rank=1) as running:
        report = running.report()
    assert report.failure is not None
    assert report.failure.error_type == "StallError"
    message = report.failure.message
    assert "rank 1 on" in message
    assert "the gang has made no progress for" in message
    assert "the others at \"allreduce 'total'\"" in message
    assert "in skip_a_collective" in message


def test_a_peer_that_never_comes_to_init_is_named_with_host_and_interface(
    driver: Driver, tmp_path: Path
) -> None:
    with application(
        driver,
        tmp_path / "a",
        "never_come_to_init",
        options={"max_restarts": 0},
        rank=1,
    ) as running:
        ranks = running.ranks(2)
        report = running.report()
    assert report.failure is not None
    message = report.failure.message
    assert (
        f"rank 0 on {ranks[0]['host']} failed: its process was aborted (SIGABRT) on {ranks[0]['host']} (eth0)"
        in message
    )
    assert f"these have not come to it: rank 1 on {ranks[1]['host']}" in message


# --- errors that no restart helps ----------------------------------------------------------------------


def test_an_error_of_the_program_is_not_tried_again(driver: Driver, tmp_path: Path) -> None:
    with application(driver, tmp_path / "a", "fail_on_rank", rank=1) as running:
        report = running.report()
    assert report.failure is not None
    assert "ValueError: the same every time" in report.failure.message
    assert "Traceback on rank 1" in report.failure.message
    assert "giving up: main raised an error, which a restart would meet again" in running.log
    assert not (tmp_path / "a" / "rank-0.1.json").exists()


# --- the driver, the master ----------------------------------------------------------------------------


def test_a_master_that_recovers_does_not_disturb_the_gang(
    both_hosts: StandaloneCluster, driver: Driver, tmp_path: Path, eventually: Eventually
) -> None:
    with application(driver, tmp_path / "a", "count") as running:
        running.ranks(2)
        wait_for_checkpoints(running)
        both_hosts.kill_master()
        both_hosts.start_master()
        eventually(lambda: len(both_hosts.alive_workers()) == 2, "the workers are back", 90)
        epoch = running.epoch()
        running.until(lambda: running.epoch() > epoch + 5, "training goes on")
        report = running.finish()
    assert report.failure is None, running.log
    assert report.restarts == ()


def test_a_killed_driver_frees_the_cluster_and_the_next_try_resumes(
    both_hosts: StandaloneCluster,
    drivers: Callable[[], Driver],
    tmp_path: Path,
    rank_processes: RankProcesses,
    eventually: Eventually,
) -> None:
    """Last in the file: the tests' common driver has to leave its cores to others."""
    drivers().kill()
    folder = tmp_path / "a"
    doomed = start_driver(both_hosts, tmp_path / "doomed", SPREAD)
    with application(doomed, folder, "count") as running:
        running.ranks(2)
        epoch = wait_for_checkpoints(running)
        kill(doomed.python())
        eventually(lambda: not rank_processes(), "no rank is left", 5)
        eventually(lambda: _free_cores(both_hosts) == 2, "the cores are free", 15)
    for file in folder.glob("rank-*.json"):
        file.unlink()
    following = start_driver(both_hosts, tmp_path / "following", SPREAD)
    with application(following, folder, "count") as running:
        running.ranks(2)
        report = running.finish()
    following.kill()
    assert report.failure is None, running.log
    assert report.result["begin"] >= epoch


def _free_cores(cluster: StandaloneCluster) -> int:
    return sum(int(worker["coresfree"]) for worker in cluster.alive_workers())


# --- an executor dies while it scores ------------------------------------------------------------------


def test_rows_that_a_dead_executor_had_begun_to_write_are_nowhere(driver: Driver, tmp_path: Path) -> None:
    """Workers write files themselves: what a lost try has written must not be found beside the next one's."""
    (tmp_path / "weights").write_text(str(tmp_path))
    signature = Signature(
        (InputSpec("a", (ColumnSpec("a", "float32"),), "float32", ()),), (OutputSpec("p", "float32", ()),)
    )
    model = ExportedModel(
        path=str(tmp_path / "weights"),
        framework="mine",
        predictor="tests.integration.scoring_apps:kills_its_executor",
        signature=signature,
    )
    (tmp_path / "lake").mkdir()
    size, text = 400, "x" * 250_000  # 100 MB a file in memory: more than a worker holds before it writes
    for number in range(4):
        ids = range(size * number, size * (number + 1))
        values = [float(i) for i in ids]
        values[-5] = FATAL if number == 0 else values[-5]
        table = {"id": pa.array(ids, "int64"), "a": pa.array(values, "float32"), "text": [text] * size}
        pq.write_table(pa.table(table), tmp_path / "lake" / f"{number}.parquet")
    job = InferenceJob(
        model_uri=publish(model, str(tmp_path / "model")),
        source=Source.parquet(str(tmp_path / "lake")),
        sink=Sink.parquet(str(tmp_path / "scores"), partition={"ds": "1"}),
        report_uri=str(tmp_path / "report.json"),
        batch_rows=32,
    )
    (tmp_path / "job.json").write_text(jobs.dumps(job))
    running = Application(tmp_path, driver, len(driver.log))
    driver.submit(tmp_path / "job.json")
    running.until(running.ended, "the scoring ends")
    report = reports.loads((tmp_path / "report.json").read_text())
    assert report.failure is None, running.log
    begun = json.loads((tmp_path / "died").read_text())
    assert any(begun.values()), "some rows were in a file when its writer died"
    found = pq.read_table(tmp_path / "scores" / "ds=1", partitioning=None, columns=["id", "p"]).to_pandas()
    assert sorted(found["id"]) == list(range(4 * size))
    assert report.rows == 4 * size
    assert os.listdir(tmp_path / "scores") == ["ds=1"], "nothing is left of the lost try"
