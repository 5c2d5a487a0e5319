"""Embeds the tokens of texts: one vector for each token."""

from dataclasses import replace

import numpy as np

from serve_app.inputs import Input, QueryText
from serve_app.jobs import TokenVectorsJob
from serve_app.results import TokenVectorsResult
from serve_app.service.task_context import TaskContext, character_count, distinct
from serve_app.types import TextGroup


async def embed_tokens(
    context: TaskContext, job: TokenVectorsJob, timeout_s: float
) -> TokenVectorsResult:
    """Returns the token vectors of a job. Equal texts are computed once.

    Raises:
        InvalidRequest: a text, the number of texts or `input_type` is not valid.
        EmbedServeError: see `EmbedService.run`.
    """
    options = job.job
    inputs = context.prepare(options.texts)
    texts, order = distinct(inputs)
    group = token_group(context, texts, timeout_s, input_type=options.input_type)
    # An engine that computes vectors of texts serves those first.
    lane = options.lane if context.spec.kind == "multi-vector" else "bulk"
    group = replace(group, lane=lane or context.default_lane(len(texts)))
    cut = np.zeros(len(texts), dtype=np.bool_)
    if options.truncation == "start":
        plan = await context.truncator.plan(group, options.truncation)
        group = replace(group, texts=tuple(chunks.parts[0] for chunks in plan))
        cut = np.array([chunks.truncated for chunks in plan], dtype=np.bool_)
    outputs = await context.run_ragged(group)
    truncated = outputs.truncated | cut
    if options.truncation == "error":
        context.reject_truncated(truncated[order])
    return TokenVectorsResult(
        context.spec.name,
        [outputs.values[i] for i in order],
        outputs.token_counts[order],
        truncated[order],
        outputs.tiers[order],
        outputs.timings,
        character_count(inputs),
    )


def token_group(
    context: TaskContext,
    texts: tuple[Input, ...],
    timeout_s: float,
    *,
    input_type: str | None,
) -> TextGroup:
    """Returns a group for token vectors; a model with two encoders encodes queries as such."""
    if context.spec.kind == "multi-vector" and input_type == "query":
        texts = tuple(QueryText(text) if isinstance(text, str) else text for text in texts)
    return context.group("embed_tokens", texts, timeout_s, input_type=input_type, use_cache=False)
