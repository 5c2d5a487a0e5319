"""A connection to the shared server for what a process does in the background."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Literal

from serve_app.breaker import Breaker
from serve_app.errors import ConfigurationError
from serve_app.valkey.client import Client
from serve_app.valkey.embedded import EmbeddedUnavailable
from serve_app.valkey.guarded_client import GuardedClient
from serve_app.valkey.shared_server import SharedServer


class SharedConnection:
    """Connects to the shared server without blocking, and keeps an embedded one running.

    For one event loop.
    """

    def __init__(
        self,
        server: SharedServer,
        *,
        timeout_s: float,
        probe: Callable[[Client], Awaitable[object]],
        on_down: Callable[[str], None],
        on_up: Callable[[], None],
        on_connect: Callable[[GuardedClient], None] = lambda guarded: None,
        breaker: Breaker | None = None,
    ) -> None:
        """A connection that isn't opened yet.

        Args:
            server: provides the client; released by `close`.
            timeout_s: see `GuardedClient`.
            probe: see `GuardedClient`.
            on_down: called with the reason when the server is lost or can't be used at all.
            on_up: called when the server is back.
            on_connect: called once, when there is a client.
            breaker: see `GuardedClient`.
        """
        self.guarded: GuardedClient | None = None  #: None until there is a client
        self.is_unavailable = False  #: whether there will never be a client
        self._server = server
        self._timeout_s = timeout_s
        self._probe = probe
        self._on_down = on_down
        self._on_up = on_up
        self._on_connect = on_connect
        self._breaker = breaker
        self._background_task: asyncio.Task[None] | None = None

    @property
    def state(self) -> Literal["up", "down"]:
        """Whether the server can be used; `down` also before there is a client."""
        return "down" if self.guarded is None else self.guarded.state

    def open(self) -> None:
        """Connects; an embedded server is connected later. Idempotent; call it in the event loop.

        Raises:
            ConfigurationError: see `SharedServer.connect`.
        """
        if self._background_task is not None:
            return
        if not self._server.is_embedded:
            try:
                self._start(self._server.connect())
            except ConfigurationError:
                self.is_unavailable = True
                raise
        # In an empty context: Ray cancels calls by the context they were made in.
        self._background_task = asyncio.get_running_loop().create_task(
            self._keep_connected(), context=contextvars.Context()
        )

    async def close(self) -> None:
        """Closes the connection and releases the server. Never raises."""
        if self._background_task is not None:
            self._background_task.cancel()
            await asyncio.gather(self._background_task, return_exceptions=True)
        if self.guarded is not None:
            guarded, self.guarded = self.guarded, None
            await guarded.close()
        self._server.release()

    def _start(self, client: Client | None) -> None:
        if client is None:
            return
        self.guarded = GuardedClient(
            client,
            timeout_s=self._timeout_s,
            probe=self._probe,
            on_down=self._on_down,
            on_up=self._on_up,
            breaker=self._breaker,
        )
        self._on_connect(self.guarded)
        self.guarded.start()

    async def _keep_connected(self) -> None:
        if self._server.is_embedded:
            try:
                self._start(await asyncio.to_thread(self._server.connect))
            except (EmbeddedUnavailable, ConfigurationError) as error:
                self.is_unavailable = True
                self._on_down(str(error))
                return
        await self._server.keep_alive(lambda: self.state == "up")
