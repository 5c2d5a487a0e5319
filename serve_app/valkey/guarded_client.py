"""A Redis or Valkey client behind a circuit breaker, so that a lost server delays no requests.

results of calls and background probes → breaker → `state`, `down_reason`, hooks
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

from serve_app.breaker import Breaker
from serve_app.valkey.client import (
    Client,
    close_client,
    deadline,
    describe_failure,
    reset_connections,
)

_TICK_S = 0.1


class GuardedClient:
    """Tracks whether a server is up. For one event loop.

    The owner makes the calls on `client`, with one of the two timeouts, while `state` is `up`, and
    reports how each one ended. A background task probes the server: at the start, after failures,
    when idle, and for as long as it is down, so no request waits for a probe. A probe has more time
    than a request, so its failure is conclusive.
    """

    def __init__(
        self,
        client: Client,
        *,
        timeout_s: float,
        probe: Callable[[Client], Awaitable[object]],
        on_down: Callable[[str], None],
        on_up: Callable[[], None],
        on_failure: Callable[[Exception], None] = lambda error: None,
        breaker: Breaker | None = None,
    ) -> None:
        """A client that isn't connected yet.

        Args:
            client: connects to the server.
            timeout_s: time limit of calls that a request waits for.
            probe: makes a call that raises unless the server works.
            on_down: called with `down_reason` when `state` changes to `down`.
            on_up: called when `state` changes to `up`.
            on_failure: called for each reported failure and each failed probe.
            breaker: decides when the server is down; None: one with the default limits.
        """
        self.client = client
        self.timeout_s = timeout_s
        #: Time limit of calls that no request waits for; enough for a slow new connection.
        self.background_timeout_s = max(10 * timeout_s, 0.5)
        self.down_reason: str | None = None  #: without secrets; None while `up`
        self._probe = probe
        self._on_down = on_down
        self._on_up = on_up
        self._on_failure = on_failure
        self._breaker = breaker or Breaker()
        self._watch_task: asyncio.Task[None] | None = None

    @property
    def state(self) -> Literal["up", "down"]:
        """Whether to make calls."""
        return "down" if self._breaker.is_open else "up"

    def start(self) -> None:
        """Starts probing, in the background of the running event loop."""
        self._watch_task = asyncio.get_running_loop().create_task(
            self._watch(), context=contextvars.Context()
        )

    async def close(self) -> None:
        """Stops probing and closes all connections. Never raises."""
        if self._watch_task is not None:
            self._watch_task.cancel()
            await asyncio.gather(self._watch_task, return_exceptions=True)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self.background_timeout_s):
                await close_client(self.client)

    def record_success(self) -> None:
        """Reports a call that succeeded within `timeout_s`."""
        self._breaker.record_success()

    def record_failure(self, error: Exception) -> None:
        """Reports a call that failed or timed out."""
        self._record(self._breaker.record_failure, error)

    async def probe(self) -> None:
        """Probes the server now and updates `state`."""
        failure: Exception | None = None
        try:
            async with deadline(self.background_timeout_s):
                if self._breaker.is_open:
                    await reset_connections(self.client)
                await self._probe(self.client)
        except Exception as error:
            failure = error
        self._record(partial(self._breaker.record_probe, failure is None), failure)

    def _record(self, update: Callable[[], None], failure: Exception | None) -> None:
        before = self.state
        update()
        if failure is not None:
            self._on_failure(failure)
        if failure is None or self.state == "up":
            self.down_reason = None
            if before == "down":
                self._on_up()
        else:
            self.down_reason = describe_failure(failure)
            if before == "up":
                self._on_down(self.down_reason)

    async def _watch(self) -> None:
        while True:
            if self._breaker.probe_due():
                await self.probe()
            await asyncio.sleep(_TICK_S)
