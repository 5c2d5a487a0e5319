"""Calls of a deployment that runs models, to one engine."""

import asyncio
import time
from typing import Any

from serve_app.deployments.retrying_call import RetryingCall
from serve_app.errors import Unavailable


class EngineCall:
    """One method of another deployment as a coroutine function, for one model.

    The engine's id selects the model. While Ray replaces the replicas of a model by those of
    another one, replicas of both run. The method gets the id first, and returns None if its replica
    has no such engine: else a vector of one model could be cached and returned as one of another.
    """

    def __init__(
        self,
        call: RetryingCall,
        engine_id: str,
        *,
        retry_delay_s: float = 0.2,
        arrival_timeout_s: float = 60.0,
        departure_timeout_s: float = 2.0,
    ) -> None:
        """Prepares the call.

        Args:
            call: the method.
            engine_id: `ModelSpec.engine_id`.
            retry_delay_s: pause before another replica is tried.
            arrival_timeout_s: how long to try while no replica has had the engine yet: this process
                is newer than those that it calls, and their successors load the model.
            departure_timeout_s: how long to try if a replica had the engine before: the successor
                of this process answers the client's next attempt.
        """
        self._call = call
        self._engine_id = engine_id
        self._retry_delay_s = retry_delay_s
        self._arrival_timeout_s = arrival_timeout_s
        self._departure_timeout_s = departure_timeout_s
        self._has_answered = False

    async def __call__(self, *args: Any) -> Any:
        """Calls the method on a replica with the model and returns its reply.

        Raises:
            Unavailable: no replica had the model until the timeout.
            EmbedServeError: see `RetryingCall`.
        """
        start_s = time.monotonic()
        while (reply := await self._call(self._engine_id, *args)) is None:
            # A call that began before the first answer may learn of it while it waits.
            timeout_s = self._departure_timeout_s if self._has_answered else self._arrival_timeout_s
            if time.monotonic() - start_s > timeout_s:
                raise Unavailable("The service changes its model at the moment; try again.", 1)
            await asyncio.sleep(self._retry_delay_s)
        self._has_answered = True
        return reply
