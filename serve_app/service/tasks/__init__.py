"""How the service runs each job: one module for each kind of output."""

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from serve_app.jobs import (
    BatchJob,
    DecodeJob,
    EmbedJob,
    ScoreJob,
    SparseJob,
    TokenizeJob,
    TokenVectorsJob,
)
from serve_app.results import ComputedResult, Result
from serve_app.service.task_context import TaskContext
from serve_app.service.tasks.batch import run_batch
from serve_app.service.tasks.embed import embed
from serve_app.service.tasks.score import score
from serve_app.service.tasks.sparse import embed_sparse
from serve_app.service.tasks.token_vectors import embed_tokens
from serve_app.service.tasks.tokenize import decode, tokenize

ResultT = TypeVar("ResultT")
Runner = Callable[[TaskContext, Any, float], Coroutine[Any, Any, ResultT]]

_COMPUTE: Mapping[type, Runner[ComputedResult]] = {
    EmbedJob: embed,
    TokenVectorsJob: embed_tokens,
    SparseJob: embed_sparse,
    ScoreJob: score,
}
#: For each type of job the function that runs it: context, job, seconds that are left → result.
RUNNERS: Mapping[type, Runner[Result]] = {
    **_COMPUTE,
    BatchJob: partial(run_batch, runners=_COMPUTE),
    TokenizeJob: tokenize,
    DecodeJob: decode,
}
