"""Delivers the outputs of queued groups as cache values."""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from serve_app.errors import EmbedServeError, InferenceError
from serve_app.scheduler.pending import QueuedGroup
from serve_app.tasks import Task
from serve_app.types import EncodedVectors, Outputs

logger = logging.getLogger(__name__)

Encode = Callable[[Any], EncodedVectors]


async def deliver_outputs(
    groups: Sequence[QueuedGroup],
    encoders: Mapping[Task, Encode],
    submit: Callable[[], Awaitable[None]],
    deliver: Callable[[int, EncodedVectors | Exception], None],
    *,
    load_s: float = 0.0,
) -> None:
    """Queues groups, and delivers the index and the outputs or the error of each.

    Cancelling it removes the groups from the queue.

    Args:
        groups: at least one.
        encoders: for each task, returns outputs as cache values.
        submit: queues the groups.
        deliver: takes each result as soon as it is known.
        load_s: time that loading the model took.
    """
    all_delivered = asyncio.get_running_loop().create_future()
    undelivered = len(groups)

    def on_done(index: int, future: asyncio.Future[Outputs | EmbedServeError]) -> None:
        nonlocal undelivered
        if future.cancelled():
            return
        encode = encoders[groups[index].text_group.task]
        deliver(index, _encoded(encode, future.result(), load_s))
        undelivered -= 1
        if not undelivered and not all_delivered.done():
            all_delivered.set_result(None)

    for i, group in enumerate(groups):
        group.future.add_done_callback(partial(on_done, i))
    try:
        await submit()
        await all_delivered
    finally:
        for group in groups:
            group.future.cancel()  # no effect unless the caller was cancelled


def _encoded(
    encode: Encode, result: Outputs | EmbedServeError, load_s: float
) -> EncodedVectors | EmbedServeError:
    if isinstance(result, EmbedServeError):
        return result
    if load_s:
        result = dataclasses.replace(result, timings=result.timings._replace(load_s=load_s))
    try:
        return encode(result)
    except Exception:
        logger.exception("The outputs of %d texts can't be encoded", len(result.values))
        return InferenceError("The outputs of the model can't be encoded.")
