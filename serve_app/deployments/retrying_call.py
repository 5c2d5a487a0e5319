"""Calls to another deployment, retried on another replica if the first one dies, or moved to it."""

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.movable_calls import MOVABLE_CALLS, resent
from serve_app.deployments.wake_up import WakeUp
from serve_app.errors import EmbedServeError, Overloaded, Unavailable

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RetryingCall:
    """One method of another deployment as a coroutine function.

    The method must be idempotent, because a call whose replica dies is retried. The number of
    attempts is bounded, because the request itself may kill replicas. `TokenRouter` may end a call
    that waits, to have it sent to a replica that is free. Methods return errors of the
    service as values: Ray logs a stack trace for each exception that crosses a handle.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        method: str,
        *,
        max_attempts: int = 3,
        backoff_s: float = 0.2,
        wake_up: WakeUp | None = None,
    ) -> None:
        """Prepares the call.

        Args:
            handle: the deployment.
            method: name of the method.
            max_attempts: number of replicas that are tried.
            backoff_s: pause after the first attempt; it doubles after each further one.
            wake_up: bounds the wait for a replica; None: calls wait as long as it takes.
        """
        self._max_attempts = max_attempts
        self._backoff_s = backoff_s
        self._wake_up = wake_up
        # Arguments and replies are small and short-lived, so they bypass the object store. Pickle
        # is the only built-in serialization, besides slower cloudpickle, that carries exceptions.
        self._method = handle.options(
            method_name=method,
            _by_reference=False,
            request_serialization="pickle",
            response_serialization="pickle",
        )

    async def __call__(self, *args: Any) -> Any:
        """Calls the method and returns its reply.

        Raises:
            EmbedServeError: the method returned this error.
            Unavailable: each attempt's replica died, or the deployment has none.
            Overloaded: the deployment's queue is full.
        """
        if self._wake_up is None:
            return await self._try(args)
        return await self._wake_up.wait(self._try(args))

    async def _try(self, args: Sequence[Any]) -> Any:
        for attempt in range(1, self._max_attempts + 1):
            try:
                reply = await self._send(args)
            except RayActorError as error:
                logger.warning("A replica died during %s (attempt %d)", self._method, attempt)
                if attempt == self._max_attempts:
                    raise Unavailable("The replicas died during the request; try again.") from error
                args = self._again(args)
                await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))
            except BackPressureError as error:
                raise Overloaded(f"The queue is full: {error}") from None
            except DeploymentUnavailableError as error:
                raise Unavailable(f"The service isn't available: {error}") from None
            else:
                if isinstance(reply, EmbedServeError):
                    raise reply
                return reply
        raise AssertionError("The last attempt returns or raises. This is a bug.")

    async def _send(self, args: Sequence[Any]) -> Any:
        """Returns the reply, of another replica each time that the router moves the call."""
        while True:
            with MOVABLE_CALLS.register(args) as call:
                response = self._request(args)
                try:
                    return await self._receive(response, args)
                except asyncio.CancelledError:
                    response.cancel()
                    if not call.is_to_be_sent_again():
                        raise
                    args = self._again(args)

    def _request(self, args: Sequence[Any]) -> Any:
        """Sends a request, and returns Ray's response to it."""
        return self._method.remote(*args)

    async def _receive(self, response: Any, args: Sequence[Any]) -> Any:
        """Returns the reply of a response to `args`."""
        return await response

    def _again(self, args: Sequence[Any]) -> Sequence[Any]:
        """Returns the arguments of the next attempt."""
        return resent(args)


def returns_errors(
    method: Callable[_P, Coroutine[Any, Any, _T]],
) -> Callable[_P, Coroutine[Any, Any, _T | EmbedServeError]]:
    """Lets a method of a deployment return errors of the service, which `RetryingCall` raises."""

    @functools.wraps(method)
    async def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T | EmbedServeError:
        try:
            return await method(*args, **kwargs)
        except EmbedServeError as error:
            return error

    return wrapper
