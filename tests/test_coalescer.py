"""The coalescer of reads and scripts; tests/cache/test_coalescer.py has that of groups."""

import asyncio

import pytest

from serve_app.coalescer import Coalescer, Deliver
from serve_app.errors import Unavailable

LIMIT_S = 30


class GatedSend:
    """Doubles numbers; each call waits until the test opens the gate."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.gate = asyncio.Event()

    async def __call__(self, numbers: tuple[int, ...], deliver: Deliver[int]) -> None:
        self.calls.append(numbers)
        await self.gate.wait()
        for i, number in enumerate(numbers):
            deliver(i, 2 * number)


@pytest.fixture
async def send() -> GatedSend:
    return GatedSend()


async def run_loop() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_full_calls_wait_for_the_calls_in_flight(send: GatedSend) -> None:
    coalescer = Coalescer(send, max_in_flight_calls=1, max_size=2)
    results: list[int | Exception] = []
    for number in range(5):
        coalescer.submit(number, results.append)
    await run_loop()
    assert send.calls == [(0, 1)]
    send.gate.set()
    await coalescer.flush(LIMIT_S)
    assert send.calls == [(0, 1), (2, 3), (4,)]
    assert results == [0, 2, 4, 6, 8]


async def test_the_sizes_of_a_call_are_limited_and_a_larger_item_is_alone(send: GatedSend) -> None:
    coalescer = Coalescer(send, max_in_flight_calls=9, max_size=10, size=lambda number: number)
    for number in (4, 6, 1, 25, 5):
        coalescer.submit(number, lambda result: None)
    await run_loop()
    assert send.calls == [(4, 6), (1,), (25,), (5,)]
    send.gate.set()
    await coalescer.flush(LIMIT_S)


async def test_a_flush_that_takes_too_long_ends_the_calls_and_sends_no_more(
    send: GatedSend,
) -> None:
    coalescer = Coalescer(send, max_in_flight_calls=1, max_size=1)
    results: list[int | Exception] = []
    for number in range(2):
        coalescer.submit(number, results.append)
    await coalescer.flush(0.01)
    await run_loop()
    assert send.calls == [(0,)]
    assert [type(result) for result in results] == [Unavailable]


async def test_a_flush_of_nothing_returns(send: GatedSend) -> None:
    await Coalescer(send, max_in_flight_calls=1, max_size=1).flush(LIMIT_S)
