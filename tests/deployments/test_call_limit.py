"""The limit of calls in flight follows the replicas."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.deployments.call_limit import CallLimit
from serve_app.types import ReplicaCount


class Counts:
    """Deployments whose replicas the test sets."""

    def __init__(self, *running: int | None) -> None:
        self.running = [*running]
        self.limits: list[int] = []

    async def _count(self, index: int) -> ReplicaCount | None:
        running = self.running[index]
        return None if running is None else ReplicaCount(running)

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[CallLimit]:
        counts = [lambda i=i: self._count(i) for i in range(len(self.running))]
        limit = CallLimit(counts, self.limits.append, period_s=0.001)
        limit.set(4)
        limit.start()
        try:
            yield limit
        finally:
            await limit.stop()

    async def until(self, limit: int) -> None:
        async with asyncio.timeout(30):
            while self.limits[-1] != limit:
                await asyncio.sleep(0.001)


async def test_more_replicas_get_more_calls_and_fewer_get_fewer() -> None:
    counts = Counts(1)
    async with counts.limit():
        assert counts.limits == [4]
        counts.running[0] = 6
        await counts.until(24)
        counts.running[0] = 2
        await counts.until(8)


async def test_the_largest_deployment_counts() -> None:
    counts = Counts(2, 5)
    async with counts.limit():
        await counts.until(20)


async def test_a_changed_setting_applies_to_the_replicas_there_are() -> None:
    counts = Counts(3)
    async with counts.limit() as limit:
        await counts.until(12)
        limit.set(10)
        assert counts.limits[-1] == 30


async def test_without_an_answer_the_limit_stays_and_without_replicas_one_counts() -> None:
    counts = Counts(3)
    async with counts.limit():
        await counts.until(12)
        counts.running[0] = None
        await asyncio.sleep(0.01)
        assert counts.limits[-1] == 12
        counts.running[0] = 0  # a call has to be sent, to wake a replica
        await counts.until(4)
