"""Calls of a deployment that computes groups: the results of a call, and delivering them."""

from collections.abc import Callable
from typing import Any

from serve_app.cache.coalescer import Deliver, Send
from serve_app.deployments.engine_call import EngineCall
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.errors import EmbedServeError, Unavailable
from serve_app.types import EncodedVectors, TextGroup

#: The outputs of a group, or its error as a value.
GroupResult = EncodedVectors | EmbedServeError


def group_call(method: RetryingCall) -> Callable[[str], Send]:
    """Returns a function from an engine's id to the one that sends groups to it."""

    def send_to(engine_id: str) -> Send:
        call = EngineCall(method, engine_id)

        async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
            for i, result in enumerate(await call(groups)):
                deliver(i, result)

        return send

    return send_to


async def collect(send: Send, groups: tuple[TextGroup, ...]) -> list[GroupResult]:
    """Returns the result of each group, in their order."""
    results: list[Any] = [Unavailable("The replica returned no outputs; try again.")] * len(groups)
    await send(groups, results.__setitem__)
    return results
