"""Embeds texts and images: one vector for each, in one space."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.inputs import Image, ImageUrl, Input
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.service.dimensions import normalize, truncate_dimensions
from serve_app.service.task_context import TaskContext, character_count, distinct
from serve_app.types import Timings, Vectors


async def embed(context: TaskContext, job: EmbedJob, timeout_s: float) -> EmbedResult:
    """Returns the vectors of a job. Equal inputs are computed once.

    Raises:
        InvalidRequest: a text, the number of texts, `dimensions`, `max_tokens` or `input_type` is
            not valid.
        ImageFetchError: an image can't be fetched from its URL.
        EmbedServeError: see `EmbedService.run`.
    """
    spec, values = context.spec, job.texts
    if ImageUrl in map(type, values):
        started_s = time.monotonic()
        values = await context.fetch_images(values)
        timeout_s -= time.monotonic() - started_s
    inputs = context.prepare(values, is_split=job.is_split)
    _check_limits(job, spec)
    texts, order = distinct(inputs)
    compute = _text_vectors
    if job.is_split:
        compute = _vectors_in_parts
    elif Image in map(type, texts):
        compute = _image_vectors
    result = await compute(context, job, texts, timeout_s)
    if job.truncation == "error":
        context.reject_truncated(result.truncated[order], job.max_tokens)
    vectors = truncate_dimensions(result.values, job.dimensions)
    if job.normalize and not spec.unit_length:  # a second division would change bits
        vectors = normalize(vectors)
    tokens, truncated, tiers, raw = (
        result.token_counts,
        result.truncated,
        result.tiers,
        result.values,
    )
    if len(texts) < len(order):
        vectors, tokens, raw = vectors[order], tokens[order], raw[order]
        truncated, tiers = truncated[order], tiers[order]
    return EmbedResult(
        spec.name,
        vectors,
        tokens,
        truncated,
        tiers,
        result.timings,
        raw,
        character_count(inputs),
        inputs=inputs,
    )


async def _vectors_in_parts(
    context: TaskContext, job: EmbedJob, texts: tuple[Input, ...], timeout_s: float
) -> Vectors:
    """Returns the vectors of distinct texts, of which `job.batch_size` are computed at a time."""
    limit = context.settings.max_texts_per_request
    size = job.batch_size or limit
    if size > limit:
        raise InvalidRequest(
            f"`batch_size` must be between 1 and {limit}, the model's `max_batch_size`; it was "
            f"{size}.",
            "batch_size",
        )
    job = replace(job, lane=job.lane or context.default_lane(len(texts)))
    deadline_s = time.monotonic() + timeout_s
    parts = [
        await _text_vectors(context, job, texts[i : i + size], deadline_s - time.monotonic())
        for i in range(0, len(texts), size)
    ]
    seconds = zip(*(part.timings for part in parts), strict=True)
    return _merge(parts, range(len(texts)), Timings(*map(sum, seconds)))


async def _image_vectors(
    context: TaskContext, job: EmbedJob, texts: tuple[Input, ...], timeout_s: float
) -> Vectors:
    """Returns the vectors of distinct texts and images, with all dimensions."""
    images = [i for i, text in enumerate(texts) if isinstance(text, Image)]
    group = context.group(
        "embed_images",
        tuple(texts[i] for i in images),
        timeout_s,
        lane=job.lane,
        use_cache=job.use_cache,
    )
    others = [i for i, text in enumerate(texts) if not isinstance(text, Image)]
    if not others:
        return await context.run(group)
    parts = await asyncio.gather(
        context.run(group),
        _text_vectors(context, job, tuple(texts[i] for i in others), timeout_s),
    )
    timings = Timings(*map(max, *(part.timings for part in parts)))
    return _merge(parts, [*images, *others], timings)


def _text_vectors(
    context: TaskContext, job: EmbedJob, texts: tuple[Input, ...], timeout_s: float
) -> Awaitable[Vectors]:
    group = context.group(
        "embed",
        texts,
        timeout_s,
        input_type=job.input_type,
        lane=job.lane,
        use_cache=job.use_cache,
    )
    if job.truncation in ("end", "error") and job.max_tokens is None:
        return context.run(group)
    return context.truncator.embed(group, job.truncation, job.max_tokens)


def _merge(parts: Sequence[Vectors], positions: Sequence[int], timings: Timings) -> Vectors:
    """Returns the rows of the parts at their positions."""
    order = np.argsort(positions)
    return Vectors(
        np.concatenate([part.values for part in parts])[order],
        np.concatenate([part.token_counts for part in parts])[order],
        np.concatenate([part.truncated for part in parts])[order],
        np.concatenate([part.tiers for part in parts])[order],
        timings,
    )


def _check_limits(job: EmbedJob, spec: ModelSpec) -> None:
    if job.dimensions is not None and not 1 <= job.dimensions <= spec.dim:
        raise InvalidRequest(
            f"`dimensions` must be between 1 and {spec.dim}, the model's own; "
            f"it was {job.dimensions}.",
            "dimensions",
        )
    if spec.dimensions and job.dimensions not in (None, spec.dim, *spec.dimensions):
        known = ", ".join(map(str, sorted({*spec.dimensions, spec.dim})))
        raise InvalidRequest(
            f"`dimensions` must be one of those that the model was trained for: {known}; it was "
            f"{job.dimensions}.",
            "dimensions",
        )
    if job.max_tokens is not None and not 1 <= job.max_tokens <= spec.max_tokens:
        raise InvalidRequest(
            f"A text can be cut to between 1 and {spec.max_tokens} tokens, the most that "
            f"the model takes; {job.max_tokens} was asked for.",
            "max_tokens",
        )
