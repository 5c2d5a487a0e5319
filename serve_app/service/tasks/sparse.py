"""Embeds texts sparsely: weights of tokens of the vocabulary."""

from serve_app.errors import InvalidRequest
from serve_app.jobs import SparseJob
from serve_app.results import SparseResult
from serve_app.service.task_context import TaskContext, character_count, distinct


async def embed_sparse(context: TaskContext, job: SparseJob, timeout_s: float) -> SparseResult:
    """Returns the sparse vectors of a job. Equal texts are computed once.

    Raises:
        InvalidRequest: a text, the number of texts, `input_type` or `truncation` is not valid.
        EmbedServeError: see `EmbedService.run`.
    """
    options = job.job
    if options.truncation not in ("end", "error"):
        raise InvalidRequest("A sparse model truncates texts at their end only.", "truncate")
    inputs = context.prepare(options.texts)
    texts, order = distinct(inputs)
    group = context.group(
        "embed_sparse",
        texts,
        timeout_s,
        input_type=options.input_type,
        lane=options.lane,
        use_cache=options.use_cache,
    )
    outputs = await context.run_ragged(group)
    if options.truncation == "error":
        context.reject_truncated(outputs.truncated[order])
    return SparseResult(
        context.spec.name,
        [outputs.values[i] for i in order],
        outputs.token_counts[order],
        outputs.truncated[order],
        outputs.tiers[order],
        outputs.timings,
        character_count(inputs),
    )
