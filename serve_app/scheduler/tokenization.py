"""Tokenizes the texts of pending groups, next to the event loop if they are long."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from serve_app.engines.base import ModelInput
from serve_app.engines.tokenizer_service import tokenizer_runs
from serve_app.inputs import Input
from serve_app.scheduler.pending import PendingGroup

#: Fewer characters are tokenized on the event loop, since a thread hop would take longer.
_MAX_INLINE_CHARS = 2000


async def tokenize(
    groups: Sequence[PendingGroup],
    inputs: Sequence[Input],
    thread: Executor,
    is_rejected: Callable[[PendingGroup, int], bool],
) -> Sequence[ModelInput]:
    """Returns all inputs as the model takes them; fewer if nobody waits for the rest.

    Args:
        groups: groups of one model.
        inputs: theirs, in their order.
        thread: runs the tokenizer on long inputs.
        is_rejected: whether a single group is rejected because it has at least this many tokens.
    """
    encode = groups[0].engine.tokenizer.encode
    if sum(map(len, inputs)) <= _MAX_INLINE_CHARS:
        return encode(inputs)
    loop = asyncio.get_running_loop()
    rows, tokens = list[ModelInput](), 0
    for run in tokenizer_runs(inputs):
        encoded = await loop.run_in_executor(thread, encode, run)
        rows += encoded
        if all(group.future.done() for group in groups):
            break
        tokens += sum(row.length for row in encoded)
        if len(groups) == 1 and is_rejected(groups[0], tokens):
            break
    return rows
