"""Spill-over: when texts go to the second engine of a chain although the first one works."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve_app.cache.coalescer import Deliver, Result
from serve_app.cache.engine_link import EngineLink
from serve_app.cache.spill_over import Forecast, SpillOverChain, choose_engine, counting
from serve_app.errors import EmbedServeError, InferenceError, Unavailable
from serve_app.meter import Meter
from serve_app.metrics import FALLBACK_TEXTS, SPILLED_TEXTS
from serve_app.types import EncodedVectors, Lane, TextGroup

AFTER_S = 0.5


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        (Forecast(0.4, 9.0), Forecast(0.0, 0.1), 0),  # within the objective
        (Forecast(0.5, 9.0), Forecast(0.0, 0.1), 0),
        (Forecast(0.6, 0.1), Forecast(0.0, 0.1), 1),
        (Forecast(0.6, 0.1), Forecast(0.0, 0.8), 0),  # sooner, though past the objective
        (Forecast(0.6, 0.1), Forecast(0.7, 0.0), 0),  # as soon as the first: it stays
        (Forecast(0.6, 0.1), None, 0),  # no replica
        (None, Forecast(0.0, 0.0), 0),  # nobody knows how long the first one takes
    ],
)
def test_the_second_engine_is_chosen_past_the_objective_if_it_is_sooner(
    first: Forecast | None, second: Forecast | None, chosen: int
) -> None:
    assert choose_engine([first, second], AFTER_S) == chosen


def test_the_soonest_of_several_engines_is_chosen() -> None:
    busy, sooner, soonest = Forecast(1, 1), Forecast(0.5, 1), Forecast(0.9, 0.1)
    assert choose_engine([busy, sooner, soonest], AFTER_S) == 2
    assert choose_engine([busy, None, soonest], AFTER_S) == 2
    assert choose_engine([busy, soonest, sooner], AFTER_S) == 1


def test_beyond_the_objective_engines_share_by_speed() -> None:
    speeds, waiting, counts = (900.0, 100.0), [0.0, 0.0], [0, 0]
    for _ in range(1000):
        chosen = choose_engine(
            [Forecast(t / v, 10 / v) for t, v in zip(waiting, speeds, strict=True)], AFTER_S
        )
        counts[chosen] += 1
        waiting[chosen] += 10
    within = AFTER_S * speeds[0] / 10
    assert counts[0] == pytest.approx(within + (1000 - within) * 0.9, rel=0.02)


class FakeQueue:
    """Counts what is sent, and computes it at a speed."""

    def __init__(self, tokens_per_s: float = 1.0) -> None:
        self.tokens_per_s = tokens_per_s
        self.sent = 0

    def forecast(self, lane: Lane, tokens: int) -> Forecast | None:
        return Forecast(self.sent / self.tokens_per_s, tokens / self.tokens_per_s)

    @contextmanager
    def sending(self, groups: tuple[TextGroup, ...]) -> Iterator[None]:
        tokens = sum(group.estimated_tokens for group in groups)
        self.sent += tokens
        try:
            yield
        finally:
            self.sent -= tokens


class FakeEngine:
    """Answers each text with a value of its own once it is open."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.error: EmbedServeError | None = None
        self.texts = 0

    async def ping(self) -> None: ...

    async def send(self, groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        self.texts += sum(len(group.texts) for group in groups)
        await self.is_open.wait()
        for i, group in enumerate(groups):
            values = [str(text).encode() for text in group.texts]
            deliver(i, self.error or EncodedVectors(values, bytes(len(values))))


class Chain:
    """A chain of two engines, with a bound that eleven of twelve texts exceed."""

    def __init__(self, after_s: float = 0.0) -> None:
        self.first, self.second = self.engines = FakeEngine(), FakeEngine()
        self.queues = FakeQueue(), FakeQueue()
        self.now_s = 0.0
        self.links = [
            EngineLink(f"m{i}", e.ping, clock=lambda: self.now_s)
            for i, e in enumerate(self.engines)
        ]
        self.meter = Meter()
        self.chain = SpillOverChain(
            self.links,
            [engine.send for engine in self.engines],
            self.meter.for_model("m0"),
            queues=self.queues,
            after_s=after_s,
        )

    def open(self) -> None:
        for engine in self.engines:
            engine.is_open.set()

    def close(self) -> None:
        for engine in self.engines:
            engine.is_open.clear()

    async def compute(self, text: str) -> Result:
        results = dict[int, Result]()
        async with asyncio.timeout(30):
            await self.chain((TextGroup((text,)),), results.__setitem__)
        return results[0]

    async def compute_at_once(self, count: int) -> list[Result]:
        """Computes texts that are all sent before any is computed."""
        calls = [asyncio.ensure_future(self.compute(f"{i}")) for i in range(count)]
        await asyncio.sleep(0)
        self.open()
        return await asyncio.gather(*calls)

    @property
    def counts(self) -> tuple[int, int]:
        return self.first.texts, self.second.texts

    def spilled(self) -> float:
        return self.meter.value(SPILLED_TEXTS, "m1", "m0")


async def test_calls_of_one_moment_are_shared() -> None:
    chain = Chain()
    results = await chain.compute_at_once(12)
    assert [r.values for r in results if isinstance(r, EncodedVectors)] == [
        [f"{i}".encode()] for i in range(12)
    ]
    assert chain.counts == (6, 6)
    assert chain.spilled() == 6
    assert chain.meter.value(FALLBACK_TEXTS, "m1", "m0") == 0
    assert [queue.sent for queue in chain.queues] == [0, 0]


async def test_within_the_objective_nothing_spills() -> None:
    chain = Chain(after_s=math.inf)
    await chain.compute_at_once(12)
    assert chain.counts == (12, 0)
    assert chain.spilled() == 0


async def test_one_after_the_other_all_go_to_the_first() -> None:
    chain = Chain()
    chain.open()
    for i in range(12):
        await chain.compute(f"{i}")
    assert chain.counts == (12, 0)


async def test_what_the_second_fails_to_compute_returns_to_the_first() -> None:
    chain = Chain()
    chain.second.error = InferenceError("no")
    results = await chain.compute_at_once(12)
    assert all(isinstance(result, EncodedVectors) for result in results)
    assert chain.counts == (12, 6)
    assert chain.spilled() == 0


async def test_an_engine_that_fails_relieves_the_first_once_it_answers_again() -> None:
    chain = Chain()
    for _ in range(5):
        chain.links[1].record(Unavailable("no"))
    await chain.compute_at_once(12)
    assert chain.counts == (12, 0)
    chain.close()
    chain.now_s += 1
    await chain.compute_at_once(12)  # one of which tries it
    assert chain.counts == (23, 1)
    chain.close()
    await chain.compute_at_once(12)
    assert chain.counts == (29, 7)


async def test_what_the_first_fails_to_compute_is_a_fallback() -> None:
    chain = Chain()
    chain.first.error = InferenceError("no")
    results = await chain.compute_at_once(12)
    assert all(isinstance(result, EncodedVectors) for result in results)
    assert chain.spilled() == 6
    assert chain.meter.value(FALLBACK_TEXTS, "m1", "m0") == 6


async def test_other_models_of_the_deployment_count_too() -> None:
    chain = Chain()
    other = FakeEngine()
    send = counting(other.send, chain.queues[0])
    running = asyncio.ensure_future(send((TextGroup(("a text",)),), lambda i, result: None))
    await asyncio.sleep(0)
    chain.open()
    await chain.compute("a")
    assert chain.counts == (0, 1)
    other.is_open.set()
    await running
    await chain.compute("b")
    assert chain.counts == (1, 1)
