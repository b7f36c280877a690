from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import create_autospec

import pytest

from airflow_hydrogen.runtime.gang.channel import DriverChannel, TaskChannel
from airflow_hydrogen.runtime.gang.logs import BURST_LINES
from airflow_hydrogen.runtime.gang.monitor import GangMonitor
from airflow_hydrogen.runtime.rank.failures import RankFailure


@pytest.fixture
def monitor():
    return create_autospec(GangMonitor, instance=True)


@pytest.fixture
def driver(monitor):
    channel = DriverChannel("127.0.0.1", "127.0.0.1", 2)
    channel.open(monitor)
    yield channel
    channel.close()


@pytest.fixture
def pool():
    """Ends after the channels, which end what waits in it."""
    with ThreadPoolExecutor(3) as threads:
        yield threads


@pytest.fixture
def task(driver, pool):
    opened = []

    def open_one(rank):
        opened.append(TaskChannel(driver.address, rank, "here"))
        return opened[-1]

    yield open_one
    for channel in opened:
        channel.close()


def test_tasks_that_meet_know_what_all_offer_by_rank(task, pool, monitor):
    later, first = (pool.submit(task(rank).meet, {"port": rank}) for rank in (1, 0))
    assert later.result(5) == first.result(5) == [{"port": 0}, {"port": 1}]
    assert sorted(call.args for call in monitor.started.call_args_list) == [(0, "here"), (1, "here")]


def test_a_driver_that_is_reached_by_ipv6(monitor, pool):
    channel = DriverChannel("::1", "::1", 1)
    channel.open(monitor)
    opened = TaskChannel(channel.address, 0, "here")
    assert pool.submit(opened.meet, "port").result(5) == ["port"]
    opened.close()
    channel.close()


def test_tasks_that_spark_starts_again_meet_where_those_before_are_gone(task, pool, monitor, eventually):
    first = task(1)
    waiting = pool.submit(first.meet, "old")
    eventually(lambda: monitor.started.called, "the offer")
    first.close()
    assert waiting.result(5) is None
    met = [pool.submit(task(rank).meet, f"new {rank}") for rank in (0, 1)]
    assert [found.result(5) for found in met] == [["new 0", "new 1"]] * 2
    monitor.failed.assert_not_called()


def test_a_task_knows_an_order_from_a_line_that_broke(driver, task, eventually):
    ordered, broken = task(0), task(1)
    broken._socket.shutdown(socket.SHUT_RDWR)
    eventually(broken.stopped, "the end of the line")
    assert not broken.is_ordered()
    assert not broken.failed(RankFailure(1, "here", "main", "why")), "nobody hears it"
    driver.stop_ranks()
    eventually(ordered.stopped, "the order")
    assert ordered.is_ordered()


def test_and_else_the_gang_has_failed_since_tasks_of_two_tries_are_none(
    driver, task, pool, monitor, eventually
):
    waiting = [pool.submit(task(1).meet, "old")]
    eventually(lambda: monitor.started.called, "the offer")
    waiting.append(pool.submit(task(1).meet, "new"))
    eventually(lambda: monitor.failed.called, "the failure")
    (failure,) = monitor.failed.call_args.args
    assert (failure.rank, failure.kind) == (1, "peer")
    driver.stop_ranks()
    assert [found.result(5) for found in waiting] == [None, None]


def test_a_task_that_waits_for_the_others_hears_that_the_gang_ends(driver, task, pool):
    channel = task(0)
    waiting = pool.submit(channel.meet, "offer")
    driver.stop_ranks()
    assert waiting.result(5) is None
    assert channel.stopped()


def test_and_so_does_one_whose_driver_has_hung_up_and_one_that_comes_later(driver, task):
    early = task(0)
    driver.stop_ranks()
    late = task(1)
    assert early.meet("offer") is None
    assert late.meet("offer") is None


def test_lines_arrive_soon_and_so_does_the_count_of_those_that_were_left_out(task, monitor, eventually):
    channel = task(1)
    channel.line("first")
    eventually(lambda: monitor.line.called, "the first line, while the channel is open")
    for _ in range(3 * BURST_LINES):
        channel.line("one of many")

    def accounted_for():
        lines = [call.args[1] for call in monitor.line.call_args_list]
        counts = [int(line.split()[1].replace(",", "")) for line in lines if "were left out" in line]
        return lines.count("one of many") + sum(counts)

    eventually(lambda: accounted_for() == 3 * BURST_LINES, "the last count, though no further line comes")


def test_a_channel_closes_at_once(monitor):
    """`socketserver` looks for its end twice a second."""
    done = threading.Event()

    def open_and_close():
        for _ in range(20):
            channel = DriverChannel("127.0.0.1", "127.0.0.1", 1)
            channel.open(monitor)
            channel.close()
        done.set()

    threading.Thread(target=open_and_close, daemon=True).start()
    assert done.wait(2.5)  # 20 half seconds are 10
