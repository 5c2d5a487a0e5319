"""Calls of a deployment that embeds groups: the results of a call, and delivering them."""

from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.cache.coalescer import Deliver, Send
from serve_app.deployments.space_call import SpaceCall
from serve_app.errors import EmbedServeError, Unavailable
from serve_app.types import EncodedVectors, TextGroup

#: The vectors of a group, or its error as a value.
GroupResult = EncodedVectors | EmbedServeError


def group_call(handle: DeploymentHandle[Any], space: str) -> Send:
    """Returns a function that sends groups to a deployment and delivers their results."""
    embed = SpaceCall(handle, "embed", space)

    async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        for i, result in enumerate(await embed(groups)):
            deliver(i, result)

    return send


async def collect(send: Send, groups: tuple[TextGroup, ...]) -> list[GroupResult]:
    """Returns the result of each group, in their order."""
    results: list[Any] = [Unavailable("The replica returned no vectors; try again.")] * len(groups)
    await send(groups, results.__setitem__)
    return results
