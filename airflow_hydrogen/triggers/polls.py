"""One poll per cluster manager, whoever waits for it.

A triggerer runs the triggers of all waiting tasks on one event loop. Here they share: per loop, endpoint and
question there is one task that asks, as often as the most impatient of them wants, and everyone gets every
answer.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.managers import manager_of
from airflow_hydrogen.clusters.session import Session, open_session
from airflow_hydrogen.clusters.snapshot import ClusterSnapshot
from airflow_hydrogen.contract.errors import ClusterUnreachableError

Answer = TypeVar("Answer")

Question = Callable[[ClusterEndpoint], Callable[[Session], Awaitable[Answer]]]
"""What is asked of an endpoint: a module's function, because equal questions share one poll."""

DEFAULT_MAX_WAIT_S = 300.0
MIN_INTERVAL_S = 0.1  # whatever poke_interval says: zero would be a loop without a pause


def backoff_s(failures: int, interval_s: float, max_wait_s: float, jitter: float) -> float:
    """How long to wait after polls that failed in a row.

    Twice as long after each, from the interval on, never longer than `max_wait_s` (or the interval, if that
    is more); the second half of the wait is random, so that triggerers do not come back all at once.

    Args:
        failures: number of polls that failed in a row, at least 1.
        jitter: a random number from 0 to 1.
    """
    longest = max(interval_s, max_wait_s)
    # 2 ** 30 intervals are more than any limit; a larger power would not fit in a float one day.
    wait_s = min(longest, interval_s * float(2 ** min(failures, 30)))
    return wait_s * (1 + jitter) / 2


@dataclass(eq=False)
class Waiter(Generic[Answer]):
    """One who waits for the answers of a shared poll; misses none, but may see only the last of several.

    Attributes:
        interval_s: at least this often is asked.
        max_wait_s: longest wait while the cluster manager does not answer.
        seen: number of answers when this one looked last.
    """

    poll: SharedPoll[Answer]
    interval_s: float
    max_wait_s: float
    seen: int

    async def next(self) -> Answer | Exception:
        """What came since this one joined or looked last: an answer, or why there is none."""
        outcome, self.seen = await self.poll.after(self.seen)
        return outcome


class SharedPoll(Generic[Answer]):
    """Asks one endpoint one question for all who wait on one event loop."""

    def __init__(self, endpoint: ClusterEndpoint, question: Question[Answer]) -> None:
        self._endpoint = endpoint
        self._question = question
        self._waiting: set[Waiter[Answer]] = set()
        self._answered = asyncio.Condition()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._outcome: Answer | Exception | None = None
        self._count = 0

    @property
    def is_idle(self) -> bool:
        """Nobody waits."""
        return not self._waiting

    def join(self, interval_s: float, max_wait_s: float) -> Waiter[Answer]:
        """Wait as well; the first one starts the polling."""
        waiter = Waiter(self, max(interval_s, MIN_INTERVAL_S), max_wait_s, self._count)
        self._waiting.add(waiter)
        self._changed.set()
        if self._task is None:
            # In a context of its own: that of the first trigger names its task in every log line.
            self._task = contextvars.Context().run(asyncio.ensure_future, self._run())
        return waiter

    async def leave(self, waiter: Waiter[Answer]) -> None:
        """Wait no more; the last one ends the polling."""
        self._waiting.discard(waiter)
        if self.is_idle and self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def after(self, seen: int) -> tuple[Answer | Exception, int]:
        """The last answer, once there are more than `seen`, and how many there are."""
        async with self._answered:
            await self._answered.wait_for(lambda: self._count > seen)
            assert self._outcome is not None
            return self._outcome, self._count

    async def _run(self) -> None:
        try:
            async with open_session(self._endpoint) as session:
                ask = self._question(self._endpoint)
                failures = 0
                while True:
                    try:
                        outcome: Answer | Exception = await ask(session)
                        failures = 0
                    except ClusterUnreachableError as error:
                        outcome = error
                        failures += 1
                    await self._publish(outcome)
                    await self._pause(failures)
        except Exception as error:
            # Not asyncio.CancelledError: then nobody waits any more. Of anything else everyone learns.
            self._task = None
            await self._publish(error)

    async def _publish(self, outcome: Answer | Exception) -> None:
        async with self._answered:
            self._outcome = outcome
            self._count += 1
            self._answered.notify_all()

    async def _pause(self, failures: int) -> None:
        """Wait for as long as the most impatient wants; when somebody joins, think again."""
        loop = asyncio.get_running_loop()
        start, jitter = loop.time(), random.random()
        while True:
            interval_s = min((waiter.interval_s for waiter in self._waiting), default=MIN_INTERVAL_S)
            max_wait_s = min((waiter.max_wait_s for waiter in self._waiting), default=0.0)
            pause_s = backoff_s(failures, interval_s, max_wait_s, jitter) if failures else interval_s
            left_s = start + pause_s - loop.time()
            if left_s <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left_s)
            except asyncio.TimeoutError:  # the built-in one since Python 3.11
                return


_Polls = dict[tuple[ClusterEndpoint, Question[Any]], SharedPoll[Any]]
_POLLS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Polls] = weakref.WeakKeyDictionary()


@asynccontextmanager
async def shared_answers(
    endpoint: ClusterEndpoint,
    question: Question[Answer],
    interval_s: float,
    max_wait_s: float = DEFAULT_MAX_WAIT_S,
) -> AsyncIterator[Waiter[Answer]]:
    """Take part in the poll of an endpoint while the block lasts.

    Args:
        endpoint: who is asked.
        question: what is asked.
        interval_s: at least this often is asked.
        max_wait_s: longest wait while the cluster manager does not answer.
    """
    polls = _POLLS.setdefault(asyncio.get_running_loop(), {})
    key = (endpoint, question)
    poll: SharedPoll[Answer] = polls.setdefault(key, SharedPoll(endpoint, question))
    waiter = poll.join(interval_s, max_wait_s)
    try:
        yield waiter
    finally:
        try:
            await poll.leave(waiter)
        finally:
            if poll.is_idle and polls.get(key) is poll:
                del polls[key]


def shared_poll(
    endpoint: ClusterEndpoint, interval_s: float, max_wait_s: float = DEFAULT_MAX_WAIT_S
) -> AbstractAsyncContextManager[Waiter[ClusterSnapshot]]:
    """Take part in the poll for what is free on a cluster."""
    return shared_answers(endpoint, ask_snapshot, interval_s, max_wait_s)


def ask_snapshot(endpoint: ClusterEndpoint) -> Callable[[Session], Awaitable[ClusterSnapshot]]:
    """The question what nodes a cluster has, and what of them is free."""
    return manager_of(endpoint).snapshot
