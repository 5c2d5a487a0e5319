"""Calls of a deployment that computes vectors, in one vector space."""

import asyncio
import time
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.deployments.retrying_call import RetryingCall
from serve_app.errors import Unavailable


class SpaceCall:
    """One method of another deployment as a coroutine function.

    While Ray replaces the replicas of a model by those of another one, replicas of both run. The
    method gets the caller's space first, and returns None if it isn't its own: else a vector of one
    model could be cached and returned as one of the other.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        method: str,
        space: str,
        *,
        retry_delay_s: float = 0.2,
        timeout_s: float = 5.0,
    ) -> None:
        """Prepares the call.

        Args:
            handle: the deployment.
            method: name of the method.
            space: the caller's vector space.
            retry_delay_s: pause before another replica is tried.
            timeout_s: how long to try. Ray stops the replicas of the old model sooner.
        """
        self._call = RetryingCall(handle, method)
        self._space = space
        self._retry_delay_s = retry_delay_s
        self._timeout_s = timeout_s

    async def __call__(self, *args: Any) -> Any:
        """Calls the method on a replica of the same space and returns its reply.

        Raises:
            Unavailable: all replicas had another space until the timeout.
            EmbedServeError: see `RetryingCall`.
        """
        deadline = time.monotonic() + self._timeout_s
        while (reply := await self._call(self._space, *args)) is None:
            if time.monotonic() > deadline:
                raise Unavailable("The service changes its model at the moment; try again.")
            await asyncio.sleep(self._retry_delay_s)
        return reply
