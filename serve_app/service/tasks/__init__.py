"""How the service runs each job: one module for each kind of output."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serve_app.jobs import (
    BatchJob,
    DecodeJob,
    EmbedJob,
    ScoreJob,
    SparseJob,
    TokenizeJob,
    TokenVectorsJob,
)
from serve_app.results import Result
from serve_app.service.task_context import TaskContext
from serve_app.service.tasks.embed import embed, embed_batch
from serve_app.service.tasks.score import score
from serve_app.service.tasks.sparse import embed_sparse
from serve_app.service.tasks.token_vectors import embed_tokens
from serve_app.service.tasks.tokenize import decode, tokenize

#: For each type of job the function that runs it: context, job, seconds that are left → result.
RUNNERS: Mapping[type, Callable[[TaskContext, Any, float], Awaitable[Result]]] = {
    EmbedJob: embed,
    BatchJob: embed_batch,
    TokenVectorsJob: embed_tokens,
    SparseJob: embed_sparse,
    ScoreJob: score,
    TokenizeJob: tokenize,
    DecodeJob: decode,
}
