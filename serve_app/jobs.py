"""Jobs: requests for the output of one task, independent of the dialect they arrived in.

A job answers for itself what handler, admission and headers need of it. All are small, and can be
pickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Self, TypeVar

from serve_app.inputs import Image, ImageUrl, Input, RequestInput
from serve_app.results import (
    BatchResult,
    ComputedResult,
    EmbedResult,
    ScoreResult,
    SparseResult,
    TokenizerResult,
    TokenVectorsResult,
)
from serve_app.tasks import Task
from serve_app.types import Lane, Tokenization, Truncation

ResultT = TypeVar("ResultT", covariant=True)
T = TypeVar("T")
_EMBED = frozenset[Task](("embed",))
_EMBED_IMAGES = frozenset[Task](("embed_images",))
_IMAGES = frozenset[type]((Image, ImageUrl))


class Job(Generic[ResultT]):
    """What is asked of a service, which returns a `ResultT`."""

    __slots__ = ()

    @property
    def inputs(self) -> Sequence[RequestInput]:
        """The inputs that count toward a token quota."""
        raise NotImplementedError

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks that a model must support to run the job; empty: any model with a tokenizer."""
        raise NotImplementedError

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the job with these options; None keeps the job's value."""
        raise NotImplementedError


class QueuedJob(Job[ResultT]):
    """A job with a lane."""

    __slots__ = ()

    @property
    def lane(self) -> Lane | None:
        """The priority; None: chosen by the number of inputs."""
        raise NotImplementedError


class _CachedJob(QueuedJob[ResultT]):
    """A job whose outputs may be cached."""

    __slots__ = ()

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the job with these options; None keeps the job's value."""
        options = {"lane": lane, "use_cache": use_cache}
        changes = {name: value for name, value in options.items() if value is not None}
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class EmbedJob(_CachedJob[EmbedResult]):
    """A request for one vector per text or image."""

    texts: tuple[RequestInput, ...]
    input_type: str | None = None  #: name of a prompt of the model; None: the default prompt
    dimensions: int | None = None  #: None: all dimensions of the model
    lane: Lane | None = None  #: None: chosen by the number of texts
    use_cache: bool = True  #: False: neither read from the cache nor written to it
    normalize: bool = False  #: True: unit length, even if the model's pipeline doesn't normalize
    truncation: Truncation = "end"
    max_tokens: int | None = None  #: token limit, special tokens included; None: the model's
    #: Whether texts are computed in parts, one after the other, so that there may be more of them
    #: than in other requests. Only for texts, not for images.
    is_split: bool = False
    batch_size: int | None = None  #: texts in one part; None: as many as other requests may have

    @property
    def inputs(self) -> tuple[RequestInput, ...]:
        """The inputs that count toward a token quota."""
        return self.texts

    @property
    def tasks(self) -> frozenset[Task]:
        """`embed` for texts, `embed_images` for images."""
        types = set(map(type, self.texts))
        if types.isdisjoint(_IMAGES):
            return _EMBED
        return _EMBED_IMAGES if types <= _IMAGES else _EMBED | _EMBED_IMAGES


@dataclass(frozen=True, slots=True)
class _TextsJob(QueuedJob[ResultT]):
    """A job for the texts of an `EmbedJob`, with another output."""

    task: ClassVar[Task]
    job: EmbedJob

    @property
    def lane(self) -> Lane | None:
        """The lane of the `EmbedJob`."""
        return self.job.lane

    @property
    def inputs(self) -> tuple[RequestInput, ...]:
        """The inputs that count toward a token quota."""
        return self.job.texts

    @property
    def tasks(self) -> frozenset[Task]:
        """The task of the job."""
        return frozenset((self.task,))

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the job with these options; None keeps the job's value."""
        return replace(self, job=self.job.with_options(lane=lane, use_cache=use_cache))


@dataclass(frozen=True, slots=True)
class TokenVectorsJob(_TextsJob[TokenVectorsResult]):
    """A request for one vector per token of each text, instead of one per text."""

    task: ClassVar[Task] = "embed_tokens"


@dataclass(frozen=True, slots=True)
class SparseJob(_TextsJob[SparseResult]):
    """A request for one sparse vector per text: weights of the vocabulary's tokens."""

    task: ClassVar[Task] = "embed_sparse"


@dataclass(frozen=True, slots=True)
class ScoreJob(_CachedJob[ScoreResult]):
    """A request for the scores of pairs of texts, or of single texts."""

    pairs: tuple[Input, ...]
    task: Task = "rerank"  #: `rerank`: one score per pair; `classify`: one per label of the model
    lane: Lane | None = None  #: None: chosen by the number of pairs
    use_cache: bool = True
    truncation: Truncation = "end"

    @property
    def inputs(self) -> tuple[RequestInput, ...]:
        """The inputs that count toward a token quota."""
        return self.pairs

    @property
    def tasks(self) -> frozenset[Task]:
        """The task of the job."""
        return frozenset((self.task,))


class _TokenizerJob(Job[TokenizerResult[T]]):
    """A job that only the tokenizer runs, without lanes or a cache."""

    __slots__ = ()

    @property
    def tasks(self) -> frozenset[Task]:
        """Empty: every model has a tokenizer."""
        return frozenset()

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the job itself: it has no such options."""
        return self


@dataclass(frozen=True, slots=True)
class TokenizeJob(_TokenizerJob[Tokenization]):
    """A request for the tokens of each text, without truncation."""

    texts: tuple[str, ...]
    add_special_tokens: bool = True
    input_type: str | None = None  #: None: no prompt, not even the model's default

    @property
    def inputs(self) -> tuple[RequestInput, ...]:
        """The inputs that count toward a token quota."""
        return self.texts


@dataclass(frozen=True, slots=True)
class DecodeJob(_TokenizerJob[str]):
    """A request to decode token ids to texts."""

    token_ids: tuple[tuple[int, ...], ...]
    skip_special_tokens: bool = True

    @property
    def inputs(self) -> tuple[RequestInput, ...]:
        """Empty: decoding counts toward no token quota."""
        return ()


@dataclass(frozen=True, slots=True)
class BatchJob(Job[BatchResult]):
    """Several jobs in one request; if one of them fails, all do."""

    jobs: tuple[QueuedJob[ComputedResult], ...]

    @property
    def inputs(self) -> tuple[RequestInput, ...]:
        """The inputs that count toward a token quota."""
        return tuple(value for job in self.jobs for value in job.inputs)

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks of all jobs."""
        return frozenset().union(*(job.tasks for job in self.jobs))

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the batch with these options in each job; None keeps the job's value."""
        jobs = tuple(job.with_options(lane=lane, use_cache=use_cache) for job in self.jobs)
        return replace(self, jobs=jobs)
