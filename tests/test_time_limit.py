"""The time limit of work that may wait, or not."""

import asyncio

import pytest

from serve_app.time_limit import limit_time


class Work:
    """Work that ends when `released` is set, and records how it ended."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.ending: str | None = None

    async def run(self, waits: int = 1) -> str:
        try:
            for _ in range(waits):
                await asyncio.sleep(0)
            await self.released.wait()
        except asyncio.CancelledError:
            self.ending = "cancelled"
            raise
        self.ending = "done"
        return "result"


async def test_work_that_never_waits_returns_its_result() -> None:
    work = Work()
    work.released.set()
    assert await limit_time(work.run(waits=0), 1) == "result"


@pytest.mark.parametrize("waits", [1, 3])
async def test_work_that_waits_returns_its_result(waits: int) -> None:
    work = Work()
    asyncio.get_running_loop().call_later(0.01, work.released.set)
    assert await limit_time(work.run(waits), 10) == "result"


@pytest.mark.parametrize("waits", [0, 2])
async def test_work_over_the_limit_is_cancelled(waits: int) -> None:
    work = Work()
    with pytest.raises(TimeoutError):
        await limit_time(work.run(waits), 0.02)
    assert work.ending == "cancelled"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_cancelling_the_caller_cancels_the_work() -> None:
    work = Work()
    task = asyncio.create_task(limit_time(work.run(), 10))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ending == "cancelled"


@pytest.mark.parametrize("waits", [0, 1])
async def test_errors_of_the_work_are_raised(waits: int) -> None:
    async def fail() -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        await limit_time(fail(), 10)


async def test_work_may_return_a_result_when_the_time_is_up() -> None:
    async def partial() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "what is there"

    assert await limit_time(partial(), 0.02) == "what is there"


@pytest.mark.parametrize(("inner_s", "outer_s"), [(0.02, 10), (10, 0.02)])
async def test_the_shorter_of_two_limits_ends_the_work(inner_s: float, outer_s: float) -> None:
    ended_by = []

    async def limited() -> None:
        try:
            async with asyncio.timeout(inner_s):
                await asyncio.sleep(60)
        except TimeoutError:
            ended_by.append("inner")
            raise

    with pytest.raises(TimeoutError):
        await limit_time(limited(), outer_s)
    assert ended_by == (["inner"] if inner_s < outer_s else [])


async def test_each_waits_for_its_own_events() -> None:
    works = [Work() for _ in range(20)]

    async def release() -> None:
        for work in reversed(works):
            await asyncio.sleep(0)
            work.released.set()

    *results, _ = await asyncio.gather(
        *(limit_time(w.run(i), 10) for i, w in enumerate(works)), release()
    )
    assert results == ["result"] * 20
