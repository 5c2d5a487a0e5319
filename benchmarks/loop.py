"""The event loop that benchmarks run on."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on uvloop, which Ray Serve installs, or on asyncio's loop without it."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(coroutine)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
