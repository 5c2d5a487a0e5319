"""One sampler for all listeners, which runs only while somebody listens."""

import asyncio
from collections.abc import Sequence

import pytest

from serve_app.errors import Overloaded, Unavailable
from serve_app.live.fleet_sample import FleetSample
from serve_app.live.live_feed import LiveFeed
from serve_app.live.model_status import ModelStatus
from serve_app.metrics import REQUESTS
from tests.live.samples import fleet, replica

LIMIT_S = 30
#: The shortest that tests need; `GET /live` takes at least half a second.
INTERVAL_S = 0.02
MODEL = ModelStatus("m", "embed", is_priced=False)


class Service:
    """Counts its samples; each has one more request than the one before."""

    def __init__(self) -> None:
        self.samples = 0
        self.error: Exception | None = None
        self.is_stopping = False
        self.feed = LiveFeed(self.collect, self.describe, models=[MODEL], max_listeners=3)

    async def collect(self) -> FleetSample:
        self.samples += 1
        if self.error is not None:
            raise self.error
        counts = {(REQUESTS, "200,m"): float(self.samples)}
        return fleet(replica(counts, taken_s=float(self.samples)), is_stopping=self.is_stopping)

    async def describe(self) -> Sequence[ModelStatus]:
        return [MODEL._replace(state="ready")]


@pytest.fixture
def service() -> Service:
    return Service()


async def test_the_first_snapshot_comes_at_once_and_the_next_ones_have_rates(
    service: Service,
) -> None:
    listener = service.feed.listen(INTERVAL_S)
    async with asyncio.timeout(LIMIT_S):
        first, second = await listener.next(), await listener.next()
    listener.close()
    assert first is not None
    assert second is not None
    assert first["requests"]["per_s"] is None
    assert first["models"][0]["state"] == "ready"
    assert second["requests"]["per_s"] == 1


async def test_listeners_share_samples_and_nothing_is_sampled_without_any(
    service: Service,
) -> None:
    listeners = [service.feed.listen(INTERVAL_S) for _ in range(3)]
    async with asyncio.timeout(LIMIT_S):
        for _ in range(3):
            await asyncio.gather(*(listener.next() for listener in listeners))
    assert service.samples <= 4
    for listener in listeners:
        listener.close()
    sampled = service.samples
    await asyncio.sleep(5 * INTERVAL_S)
    assert service.samples == sampled
    assert service.feed.listeners == 0


async def test_each_listener_has_its_own_interval(service: Service) -> None:
    fast, slow = service.feed.listen(INTERVAL_S), service.feed.listen(10 * INTERVAL_S)
    async with asyncio.timeout(LIMIT_S):
        await slow.next()
        waiting = asyncio.create_task(slow.next())
        received = 0
        while not waiting.done():
            received += (await fast.next()) is not None
        snapshot = await waiting
    fast.close()
    slow.close()
    assert received >= 4
    assert snapshot is not None
    assert snapshot["requests"]["per_s"] == 1  # over all samples since its previous snapshot


async def test_a_slow_listener_gets_one_snapshot_of_all_it_has_missed(service: Service) -> None:
    slow, fast = service.feed.listen(INTERVAL_S), service.feed.listen(INTERVAL_S)
    async with asyncio.timeout(LIMIT_S):
        await slow.next()
        for _ in range(20):
            await fast.next()
        fast.close()
        sampled = service.samples
        first, second = await slow.next(), await slow.next()
    slow.close()
    assert first is not None
    assert second is not None
    assert first["requests"]["per_s"] == second["requests"]["per_s"] == 1
    assert service.samples <= sampled + 2  # nothing is kept for it


async def test_who_comes_later_gets_rates_at_once(service: Service) -> None:
    first = service.feed.listen(INTERVAL_S)
    async with asyncio.timeout(LIMIT_S):
        for _ in range(2):
            await first.next()
        second = service.feed.listen(10)
        snapshot = await second.next()
    first.close()
    second.close()
    assert snapshot is not None
    assert snapshot["requests"]["per_s"] == 1


async def test_one_snapshot_waits_for_its_rates(service: Service) -> None:
    listener = service.feed.listen(INTERVAL_S)
    async with asyncio.timeout(LIMIT_S):
        snapshot = await listener.next_with_rates()
    listener.close()
    assert snapshot is not None
    assert snapshot["requests"]["per_s"] == 1


async def test_too_many_listeners_are_rejected_until_one_leaves(service: Service) -> None:
    listeners = [service.feed.listen(1) for _ in range(3)]
    with pytest.raises(Overloaded) as caught:
        service.feed.listen(1)
    assert caught.value.retry_after_s > 0
    listeners.pop().close()
    listeners.append(service.feed.listen(1))
    for listener in listeners:
        listener.close()


async def test_a_sample_that_fails_is_skipped(service: Service) -> None:
    listener = service.feed.listen(INTERVAL_S)
    async with asyncio.timeout(LIMIT_S):
        await listener.next()
        service.error = RuntimeError("Ray is on its way down")
        assert await listener.next(timeout_s=5 * INTERVAL_S) is None
        assert not listener.has_ended
        service.error = None
        assert await listener.next() is not None
    listener.close()


@pytest.mark.parametrize("by_ray", [True, False])
async def test_a_stop_ends_all_listeners_and_admits_no_more(service: Service, by_ray: bool) -> None:
    listener = service.feed.listen(INTERVAL_S)
    async with asyncio.timeout(LIMIT_S):
        await listener.next()
        if by_ray:
            service.is_stopping = True
        else:
            service.feed.close()
        while await listener.next() is not None:
            pass
    assert listener.has_ended
    listener.close()
    with pytest.raises(Unavailable):
        service.feed.listen(1)
