"""Sends groups to a deployment that computes them, with their traces."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from serve_app.cache.coalescer import Deliver, Result, Send
from serve_app.deployments.engine_call import EngineCall
from serve_app.deployments.group_stream import GroupStream
from serve_app.errors import EmbedServeError
from serve_app.spans import ending
from serve_app.types import TextGroup


def group_call(method: GroupStream, deployment: str) -> Callable[[str], Send]:
    """Returns a function from an engine's id to the one that sends groups to it.

    Args:
        method: those of the deployment that take groups.
        deployment: its name, in traces.
    """

    def send_to(engine_id: str) -> Send:
        call = EngineCall(method, engine_id)

        async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
            with ExitStack() as stack:
                traced = _trace(groups, f"call {deployment}", stack)

                def deliver_traced(index: int, result: Result) -> None:
                    if (span := traced[index].span) is not None:
                        span.end(error=result if isinstance(result, EmbedServeError) else None)
                    deliver(index, result)

                await call(traced, deliver_traced)

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
