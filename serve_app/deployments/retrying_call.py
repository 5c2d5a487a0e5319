"""Calls to another deployment that outlive the death of the replica that took them."""

import asyncio
import logging
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import EmbedServeError, Overloaded, Unavailable

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_BACKOFF_S = 0.1


class RetryingCall:
    """One method of another deployment, as a plain coroutine function.

    Embedding a text twice gives the same vector, so a call whose replica dies goes to another
    one. The number of tries is bounded: a request that kills its replica must not kill all.
    Errors of the service come back as values, not raised: raising them across a handle would
    write a stack trace into the log for every refused request.
    """

    def __init__(self, handle: DeploymentHandle[Any], method: str) -> None:
        # Arguments and replies are small and short-lived: by value past the object store, and
        # pickled, the one built-in serialisation that carries errors too.
        self._method = handle.options(
            method_name=method,
            _by_reference=False,
            request_serialization="pickle",
            response_serialization="pickle",
        )

    async def __call__(self, *args: Any) -> Any:
        """The method's reply.

        Raises:
            EmbedServeError: the reply was an error of the service.
            Unavailable: every replica that took the call died.
            Overloaded: the deployment's queue is full.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            call = self._method.remote(*args)
            try:
                reply = await call
            except asyncio.CancelledError:
                call.cancel()  # type: ignore[no-untyped-call]
                raise
            except RayActorError as error:
                logger.warning("%s died under a call (try %d)", self._method, attempt)
                if attempt == _ATTEMPTS:
                    raise Unavailable(
                        "The replicas that took the request died; try again."
                    ) from error
                await asyncio.sleep(_BACKOFF_S * 2**attempt)
            except BackPressureError as error:
                raise Overloaded(f"The queue is full: {error}") from None
            except DeploymentUnavailableError as error:
                raise Unavailable(f"The service isn't up: {error}") from None
            else:
                if isinstance(reply, EmbedServeError):
                    raise reply
                return reply
        raise AssertionError("The last try returns or raises. This is a bug.")
