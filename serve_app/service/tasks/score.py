"""Scores pairs of texts, by a cross-encoder or by MaxSim of token vectors; classifies texts."""

import asyncio
from collections.abc import Sequence

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.inputs import TextPair
from serve_app.jobs import ScoreJob
from serve_app.results import ScoreResult
from serve_app.service.task_context import TaskContext, distinct
from serve_app.service.tasks.token_vectors import token_group
from serve_app.types import Float32, Row, Timings


async def score(context: TaskContext, job: ScoreJob, timeout_s: float) -> ScoreResult:
    """Returns the scores of a job. Equal pairs are computed once.

    Raises:
        InvalidRequest: a text, the number of pairs or `truncation` is not valid.
        EmbedServeError: see `EmbedService.run`.
    """
    if job.truncation not in ("end", "error"):
        raise InvalidRequest("Pairs of texts are truncated at their end only.", "truncate")
    inputs = context.prepare(job.pairs)
    if context.spec.kind == "multi-vector":
        return await _max_sim(context, job, inputs, timeout_s)
    pairs, order = distinct(inputs)
    group = context.group(job.task, pairs, timeout_s, lane=job.lane, use_cache=job.use_cache)
    outputs = await context.run(group)
    if job.truncation == "error":
        context.reject_truncated(outputs.truncated[order])
    return ScoreResult(
        context.spec.name,
        outputs.values[order],
        outputs.token_counts[order],
        outputs.truncated[order],
        outputs.tiers[order],
        context.spec.labels,
        context.spec.activation,
        outputs.timings,
        sum(map(len, inputs)),
    )


async def _max_sim(
    context: TaskContext, job: ScoreJob, pairs: tuple[TextPair, ...], timeout_s: float
) -> ScoreResult:
    """Scores pairs by their token vectors (Khattab and Zaharia, 2020, "ColBERT").

    For each token of the query the largest dot product with a token of the document, summed.
    """
    queries, query_rows = distinct([pair.query for pair in pairs])
    documents, document_rows = distinct([pair.document for pair in pairs])
    query_outputs, document_outputs = await asyncio.gather(
        context.run_ragged(token_group(context, queries, timeout_s, input_type="query")),
        context.run_ragged(token_group(context, documents, timeout_s, input_type="document")),
    )
    # In a thread: a thousand documents would stop the event loop for a fifth of a second.
    scores = await asyncio.to_thread(
        _best_matches,
        [query_outputs.values[q] for q in query_rows],
        [document_outputs.values[d] for d in document_rows],
    )
    truncated = query_outputs.truncated[query_rows] | document_outputs.truncated[document_rows]
    if job.truncation == "error":
        context.reject_truncated(truncated)
    return ScoreResult(
        context.spec.name,
        scores,
        query_outputs.token_counts[query_rows] + document_outputs.token_counts[document_rows],
        truncated,
        np.minimum(query_outputs.tiers[query_rows], document_outputs.tiers[document_rows]),
        ("score",),
        "identity",
        Timings(*map(max, query_outputs.timings, document_outputs.timings)),
        sum(map(len, pairs)),
        np.array([len(query_outputs.values[q]) for q in query_rows], dtype=np.int32),
    )


def _best_matches(queries: Sequence[Row], documents: Sequence[Row]) -> Float32:
    """Returns the MaxSim of n pairs of token vectors, shape (n, 1), float32."""
    sums = [
        [(query @ document.T).max(axis=1).sum()]
        for query, document in zip(queries, documents, strict=True)
    ]
    return np.array(sums, dtype=np.float32)
