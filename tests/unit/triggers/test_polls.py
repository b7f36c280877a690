"""One poll for all who wait, and its back-off."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.clusters import managers
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.session import Session
from airflow_hydrogen.clusters.snapshot import ClusterSnapshot
from airflow_hydrogen.contract.errors import ClusterResponseError, ClusterUnreachableError
from airflow_hydrogen.triggers import polls
from airflow_hydrogen.triggers.polls import backoff_s, shared_poll

SNAPSHOT = ClusterSnapshot("fake://m", ())
DOWN = ClusterUnreachableError("http://m", "ConnectError")
ENDPOINT = ClusterEndpoint("fake://m")
WHO = contextvars.ContextVar("WHO", default="nobody")


class FakeManager:
    """Answers as the test says, again and again with the last answer."""

    answers: list[ClusterSnapshot | Exception]
    times: list[float]
    asked_as: list[str]

    def __init__(self, endpoint: ClusterEndpoint) -> None:
        pass

    async def snapshot(self, session: Session) -> ClusterSnapshot:
        self.times.append(asyncio.get_running_loop().time())
        self.asked_as.append(WHO.get())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> type[FakeManager]:
    FakeManager.answers, FakeManager.times, FakeManager.asked_as = [SNAPSHOT], [], []
    monkeypatch.setitem(managers.MANAGERS, "fake", FakeManager)
    return FakeManager


def run(test: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    result = asyncio.run(test())
    assert not any(polls._POLLS.values())  # nothing is left behind
    return result


def test_many_who_wait_make_one_request_an_interval(manager: type[FakeManager]) -> None:
    async def wait() -> int:
        async with shared_poll(ENDPOINT, 0.2) as poll:
            return sum([await poll.next() is SNAPSHOT for _ in range(3)])

    async def test() -> list[int]:
        return await asyncio.gather(*(wait() for _ in range(200)))

    assert run(test) == [3] * 200
    assert len(manager.times) == 3


def test_the_most_impatient_sets_the_pace_also_when_coming_late(manager: type[FakeManager]) -> None:
    async def test() -> None:
        async with shared_poll(ENDPOINT, 3600) as patient:
            await patient.next()
            patiently = asyncio.ensure_future(patient.next())
            async with shared_poll(ENDPOINT, 0.1) as impatient:
                await asyncio.wait_for(impatient.next(), 10)
                await asyncio.wait_for(patiently, 10)

    run(test)


def test_other_credentials_make_another_poll(manager: type[FakeManager]) -> None:
    async def test() -> None:
        other = ClusterEndpoint("fake://m", token="x")
        async with shared_poll(ENDPOINT, 3600) as one, shared_poll(other, 3600) as two:
            assert one is not two
            await asyncio.gather(one.next(), two.next())

    run(test)
    assert len(manager.times) == 2


def test_polling_stops_when_nobody_waits(manager: type[FakeManager]) -> None:
    async def test() -> None:
        async with shared_poll(ENDPOINT, 0.1) as poll:
            await poll.next()
        asked = len(manager.times)
        await asyncio.sleep(0.4)
        assert len(manager.times) == asked
        async with shared_poll(ENDPOINT, 0.1) as poll:
            await poll.next()

    run(test)


def test_one_who_is_cancelled_leaves_the_others_waiting(manager: type[FakeManager]) -> None:
    async def wait() -> None:
        async with shared_poll(ENDPOINT, 0.2) as poll:
            while True:
                await poll.next()

    async def test() -> None:
        first = asyncio.ensure_future(wait())  # its task started the poll
        await asyncio.sleep(0)
        async with shared_poll(ENDPOINT, 0.2) as poll:
            await poll.next()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert await poll.next() is SNAPSHOT

    run(test)


def test_poll_runs_in_a_context_of_its_own(manager: type[FakeManager]) -> None:
    async def test() -> None:
        WHO.set("the first task")
        async with shared_poll(ENDPOINT, 1) as poll:
            await poll.next()

    run(test)
    assert manager.asked_as == ["nobody"]


def test_a_master_that_is_down_is_asked_less_and_less_and_found_when_it_is_back(
    manager: type[FakeManager],
) -> None:
    manager.answers = [DOWN, DOWN, DOWN, SNAPSHOT]

    async def test() -> list[Any]:
        async with shared_poll(ENDPOINT, 0.1) as poll:
            return [await poll.next() for _ in range(5)]

    assert run(test) == [DOWN, DOWN, DOWN, SNAPSHOT, SNAPSHOT]
    waits = [after - before for before, after in zip(manager.times, manager.times[1:], strict=False)]
    for wait, least in zip(waits, [0.1, 0.2, 0.4, 0.1], strict=True):
        assert wait >= least - 0.01


@pytest.mark.parametrize("error", [ClusterResponseError("http://m", "status 403"), KeyError("a bug")])
def test_an_error_that_is_final_reaches_all_who_wait(manager: type[FakeManager], error: Exception) -> None:
    manager.answers = [error]

    async def wait() -> Any:
        async with shared_poll(ENDPOINT, 0.1) as poll:
            return await poll.next()

    async def test() -> Any:
        return await asyncio.gather(*(wait() for _ in range(3)))

    assert run(test) == [error] * 3


@given(st.integers(1, 10_000), st.floats(0.1, 1e4), st.floats(0, 1e4), st.floats(0, 1))
def test_backoff_lies_between_half_the_limit_and_the_limit(
    failures: int, interval_s: float, max_wait_s: float, jitter: float
) -> None:
    wait_s = backoff_s(failures, interval_s, max_wait_s, jitter)
    assert interval_s / 2 <= wait_s <= max(interval_s, max_wait_s)
    assert backoff_s(failures + 1, interval_s, max_wait_s, jitter) >= wait_s


def test_backoff_doubles_and_is_random_in_its_second_half() -> None:
    assert [backoff_s(failures, 10, 60, 1) for failures in (1, 2, 3, 4)] == [20, 40, 60, 60]
    assert [backoff_s(failures, 10, 60, 0) for failures in (1, 2, 3, 4)] == [10, 20, 30, 30]
