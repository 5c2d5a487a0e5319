"""The job that computes what the cache keeps of texts."""

from collections.abc import Callable, Mapping, Sequence

from serve_app.errors import UnsupportedOperation
from serve_app.jobs import EmbedJob, Job, SparseJob, TokenVectorsJob
from serve_app.models import ModelSpec
from serve_app.results import ComputedResult
from serve_app.tasks import Task

#: By the main task of the model.
_JOBS: Mapping[Task, Callable[[EmbedJob], Job[ComputedResult]]] = {
    "embed": lambda job: job,
    "embed_sparse": SparseJob,
    "embed_tokens": TokenVectorsJob,
}


def warm_job(spec: ModelSpec, texts: Sequence[str], input_type: str | None) -> Job[ComputedResult]:
    """Returns the job for texts, in the bulk lane.

    Raises:
        UnsupportedOperation: the model scores pairs of texts.
    """
    create = _JOBS.get(spec.main_task)
    if create is None:
        raise UnsupportedOperation(
            f"The model {spec.name!r} scores pairs of texts, which a list of texts doesn't have. "
            "Name an embedding model.",
            "model",
        )
    return create(EmbedJob(tuple(texts), input_type=input_type, lane="bulk"))
