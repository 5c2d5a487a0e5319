"""Calls of a deployment that computes groups: the results of a call, and delivering them."""

from collections.abc import Callable
from typing import Any

from serve_app.cache.coalescer import Deliver, Send
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.deployments.space_call import SpaceCall
from serve_app.errors import EmbedServeError, Unavailable
from serve_app.types import EncodedVectors, TextGroup

#: The outputs of a group, or its error as a value.
GroupResult = EncodedVectors | EmbedServeError


def group_call(method: RetryingCall) -> Callable[[str], Send]:
    """Returns a function from a space to the one that sends its groups and delivers the results."""

    def send_in(space: str) -> Send:
        call = SpaceCall(method, space)

        async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
            for i, result in enumerate(await call(groups)):
                deliver(i, result)

        return send

    return send_in


async def collect(send: Send, groups: tuple[TextGroup, ...]) -> list[GroupResult]:
    """Returns the result of each group, in their order."""
    results: list[Any] = [Unavailable("The replica returned no outputs; try again.")] * len(groups)
    await send(groups, results.__setitem__)
    return results
