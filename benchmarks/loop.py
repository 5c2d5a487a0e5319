"""The event loop that benchmarks run on."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Runs work on uvloop where there is one (Ray Serve brings it), else on asyncio's own loop."""
    with asyncio.Runner(loop_factory=_fastest) as runner:
        return runner.run(work)


def _fastest() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
