"""Calls of a deployment that computes groups: the results of a call, and delivering them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from serve_app.cache.coalescer import Deliver, Send
from serve_app.deployments.engine_call import EngineCall
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.errors import EmbedServeError, Unavailable
from serve_app.spans import ending
from serve_app.types import EncodedVectors, TextGroup

#: The outputs of a group, or its error as a value.
GroupResult = EncodedVectors | EmbedServeError


def group_call(method: RetryingCall, deployment: str) -> Callable[[str], Send]:
    """Returns a function from an engine's id to the one that sends groups to it.

    Args:
        method: takes groups.
        deployment: its name, in traces.
    """

    def send_to(engine_id: str) -> Send:
        call = EngineCall(method, engine_id)

        async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
            with ExitStack() as stack:
                traced = _trace(groups, f"call {deployment}", stack)
                results: Sequence[GroupResult] = await call(traced)
                for group, result in zip(traced, results, strict=True):
                    if group.span is not None and isinstance(result, EmbedServeError):
                        group.span.end(error=result)
            for i, result in enumerate(results):
                deliver(i, result)

        return send

    return send_to


def _trace(groups: tuple[TextGroup, ...], name: str, stack: ExitStack) -> tuple[TextGroup, ...]:
    """Returns groups with spans of the call, which end with the stack."""
    if not any(group.span for group in groups):
        return groups
    return tuple(
        group
        if group.span is None
        else replace(group, span=stack.enter_context(ending(group.span.child(name, is_call=True))))
        for group in groups
    )


async def collect(send: Send, groups: tuple[TextGroup, ...]) -> list[GroupResult]:
    """Returns the result of each group, in their order."""
    results: list[Any] = [Unavailable("The replica returned no outputs; try again.")] * len(groups)
    await send(groups, results.__setitem__)
    return results
