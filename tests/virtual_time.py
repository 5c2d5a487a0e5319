"""An event loop whose clock jumps to the next timer, so that minutes of waiting take no time."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers in the order and at the exact times they are due, however slow the machine is.

    Only for code that waits for timers and for other tasks, not for sockets, threads or processes.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Returns the seconds that the loop has waited for timers."""
        return self._now_s

    def jump(self, seconds: float) -> None:
        """Advances the clock."""
        self._now_s += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "Nothing is due: the code waits for something outside the loop."
        self._loop.jump(timeout)
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return ready


def run_in_virtual_time(main: Callable[[Clock], Awaitable[T]]) -> T:
    """Runs a coroutine function, which gets the clock, and returns its result."""

    async def call() -> T:
        return await main(asyncio.get_running_loop().time)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(call())
