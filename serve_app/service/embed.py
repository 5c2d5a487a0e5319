"""The service proper: what happens to a job between a dialect and the cache.

Validates, drops duplicates, has the rest looked up, restores the order, cuts dimensions. Knows
neither HTTP nor Ray: `lookup` stands for whatever is behind it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from serve_app import __version__
from serve_app.config import IngressSettings
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    InvalidRequest,
    ModelNotFound,
    TextTooLong,
    short_repr,
)
from serve_app.metrics import Meter
from serve_app.models import ModelSpec
from serve_app.service.health import HealthProbe, HealthReport
from serve_app.service.openai_token_ids import TiktokenDecoder
from serve_app.service.replica_stats import ReplicaStats, SingleReplica
from serve_app.service.truncation import Truncator
from serve_app.service.validation import validate_inputs
from serve_app.types import (
    BatchJob,
    BatchResult,
    Bool,
    CacheState,
    DecodeJob,
    EmbedJob,
    EmbedResult,
    EngineInfo,
    Float32,
    Input,
    Job,
    Lane,
    TextGroup,
    Tokenization,
    TokenizeJob,
    TokenizerResult,
    TokenVectors,
    TokenVectorsJob,
    TokenVectorsResult,
    Vectors,
)

_PROBE = TextGroup(("Is anybody there?",), use_cache=False)
_INFO_TIMEOUT_S = 2.0


class Backend(Protocol):
    """What the service asks of the tiers behind it."""

    async def embed(self, group: TextGroup) -> Vectors:
        """Full-size vectors of the group's texts, in order."""
        ...

    async def describe(self) -> EngineInfo:
        """What runs the model in a live replica."""
        ...

    async def cache_state(self) -> CacheState:
        """How the shared tier of the cache is."""
        ...

    async def spell(self, texts: tuple[str, ...], special: bool) -> Sequence[Tokenization]:
        """How the model's tokenizer spells texts; `special`: with the tokens around them."""
        ...

    async def decode(self, rows: tuple[tuple[int, ...], ...], skip_special: bool) -> Sequence[str]:
        """The texts that token ids stand for."""
        ...

    async def embed_tokens(self, group: TextGroup) -> Sequence[TokenVectors]:
        """For each of the group's texts the vectors of its tokens."""
        ...


class EmbedService:
    """Turns jobs into results, for one model."""

    def __init__(
        self,
        spec: ModelSpec,
        lookup: Backend,
        settings: IngressSettings,
        meter: Meter | None = None,
        replica_stats: ReplicaStats | None = None,
    ) -> None:
        """A service.

        Args:
            spec: the model.
            lookup: the tiers behind it.
            settings: what is asked for; `apply` takes others.
            meter: counts what is answered here.
            fleet: the other replicas of the same service, this one included; None: there are none.
        """
        self.spec = spec
        self._lookup = lookup
        self.meter = meter or Meter()
        self.replica_stats = replica_stats or SingleReplica(self.meter)
        self._device: str | None = None
        self._long = Truncator(
            lambda texts: lookup.spell(texts, True), lookup.embed, spec.max_tokens
        )
        self.apply(settings)

    def apply(self, settings: IngressSettings) -> None:
        """Takes new settings; requests in progress keep the old ones.

        Raises:
            ConfigurationError: the token ids that they ask for can't be read here.
        """
        named = settings.token_ids
        self._foreign = None if named == "model" else TiktokenDecoder(named)
        self.settings = settings
        self._health = HealthProbe(
            lambda: self._lookup.embed(_PROBE),
            max_age_s=settings.health_max_age_s,
            timeout_s=settings.health_timeout_s,
        )

    async def embed(self, job: EmbedJob) -> EmbedResult:
        """Embeds a job's texts; equal texts are computed once.

        Raises:
            InvalidRequest: a text, the number of texts, `dimensions` or `input_type` is not valid.
            ModelNotFound: another model is asked for.
            Overloaded: the job doesn't fit into what waits already.
            DeadlineExceeded: no answer within `request_timeout_s`.
            InferenceError, Unavailable: see `errors`.
        """
        job = self._read(job)
        self._validate(job)
        places: dict[Input, int] = {}
        order = [places.setdefault(text, len(places)) for text in job.texts]
        group = self._group(job, tuple(places))
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                if job.truncation in ("end", "error") and job.max_tokens is None:
                    found = await self._lookup.embed(group)
                else:
                    found = await self._long.embed(group, job.truncation, job.max_tokens)
        except TimeoutError:
            raise self._late() from None
        if found.computed_count:
            self._health.record_success()
        if job.truncation == "error":
            self._none_cut(found.truncated[order], job.max_tokens)
        vectors = truncate_dimensions(found.values, job.dimensions)
        if job.normalize and not self.spec.unit_length:  # dividing once more would change bits
            vectors = to_unit_length(vectors)
        tokens, truncated, tiers, raw = found.tokens, found.truncated, found.tiers, found.values
        if len(places) < len(order):
            vectors, tokens, raw = vectors[order], tokens[order], raw[order]
            truncated, tiers = truncated[order], tiers[order]
        characters = sum(len(text) for text in job.texts if isinstance(text, str))
        return EmbedResult(
            self.spec.name, vectors, tokens, truncated, tiers, found.timings, raw, characters
        )

    async def run(self, job: Job) -> Any:
        """What a job of any kind asks for.

        Returns:
            An `EmbedResult`; a list of them for `BatchJob`; of `TokenVectors` for a
            `TokenVectorsJob`, of `Tokenization` for a `TokenizeJob`, of texts for a `DecodeJob`.

        Raises:
            EmbedServeError: as `embed`; also where the model's engine can't do it.
        """
        if isinstance(job, EmbedJob):
            return await self.embed(job)
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                match job:
                    case BatchJob():
                        return await self._several(job.jobs)
                    case TokenVectorsJob():
                        return await self._token_vectors(job.job)
                    case TokenizeJob():
                        return await self._spell(job)
                    case DecodeJob():
                        return await self._decode(job)
        except TimeoutError:
            raise self._late() from None

    async def _several(self, jobs: Sequence[EmbedJob]) -> BatchResult:
        texts = [text for job in jobs for text in job.texts]
        validate_inputs(texts, self.settings)
        lane = self._lane(len(texts))
        results = await asyncio.gather(
            *(self.embed(replace(job, lane=job.lane or lane)) for job in jobs)
        )
        return BatchResult(results)

    async def _token_vectors(self, job: EmbedJob) -> TokenVectorsResult:
        job = self._read(job)
        self._validate(job)
        group = self._group(job, job.texts)
        truncated: Sequence[bool] = ()
        if job.truncation == "start":
            fitted = await self._long.plan(group, job.truncation)
            group = replace(group, texts=tuple(one.parts[0] for one in fitted))
            truncated = [one.truncated for one in fitted]
        found = await self._lookup.embed_tokens(group)
        if job.truncation == "error":
            self._none_cut(np.array([one.truncated for one in found]))
        if not truncated:
            return TokenVectorsResult(found)
        return TokenVectorsResult(
            one._replace(truncated=cut) for one, cut in zip(found, truncated, strict=True)
        )

    async def _spell(self, job: TokenizeJob) -> TokenizerResult[Tokenization]:
        self._check_model(job.model)
        validate_inputs(job.texts, self.settings)
        prompt = "" if job.input_type is None else self.spec.prompt(job.input_type)
        texts = tuple(prompt + text for text in job.texts)
        return TokenizerResult(await self._lookup.spell(texts, job.special))

    async def _decode(self, job: DecodeJob) -> TokenizerResult[str]:
        self._check_model(job.model)
        validate_inputs(job.rows, self.settings)
        return TokenizerResult(await self._lookup.decode(job.rows, job.skip_special))

    def _read(self, job: EmbedJob) -> EmbedJob:
        """The job with texts in place of token ids that aren't the model's."""
        if self._foreign is None:
            return job
        return replace(job, texts=tuple(map(self._foreign.text, job.texts)))

    def _group(self, job: EmbedJob, texts: tuple[Input, ...]) -> TextGroup:
        return TextGroup(
            texts,
            self.spec.prompt(job.input_type),
            use_cache=job.use_cache,
            lane=job.lane or self._lane(len(texts)),
            timeout_s=self.settings.request_timeout_s,
        )

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"No answer within {self.settings.request_timeout_s:g} s. Send fewer texts in one "
            "request, or try again when there is less load."
        )

    async def health(self) -> HealthReport:
        """Whether a live replica has computed a real vector lately; tries for one if unsure."""
        return await self._health.check()

    async def cache_state(self) -> CacheState:
        """How the shared tier of the cache is; the service goes on without it."""
        try:
            async with asyncio.timeout(_INFO_TIMEOUT_S):
                return await self._lookup.cache_state()
        except (TimeoutError, EmbedServeError):
            return CacheState("unknown", "CacheLookup doesn't answer.")

    async def info(self) -> dict[str, Any]:
        """What is served, and what runs it; the engine's part is null when no replica answers."""
        engine = await self._ask_engine()
        return {
            "model": self.spec.name,
            "version": __version__,
            "aliases": list(self.spec.aliases),
            "dim": self.spec.dim,
            "max_tokens": self.spec.max_tokens,
            "input_types": sorted(self.spec.prompts),
            "space": self.spec.space_id,
            "weights_sha256": self.spec.weights_sha256,
            "engine": engine and engine.engine,
            "device": engine and engine.device,
            "precision": engine and engine.precision,
            "threads": engine and engine.threads,
            "parity": asdict(engine.parity) if engine and engine.parity else None,
            "refused": engine and list(engine.refused),
            "versions": {
                "embedserve": __version__,
                "ray": version("ray"),
                **(engine.versions if engine else {}),
            },
        }

    async def device(self) -> str | None:
        """Where the model runs; None until a replica has told."""
        if self._device is None:
            engine = await self._ask_engine()
            self._device = None if engine is None else engine.device
        return self._device

    async def _ask_engine(self) -> EngineInfo | None:
        try:
            async with asyncio.timeout(_INFO_TIMEOUT_S):
                return await self._lookup.describe()
        except (TimeoutError, EmbedServeError):
            return None

    def _none_cut(self, truncated: Bool, limit: int | None = None) -> None:
        places: list[int] = np.flatnonzero(truncated).tolist()
        if places:
            most = (
                f"the {self.spec.max_tokens} tokens that the model takes"
                if limit is None
                else f"{limit} tokens"
            )
            raise TextTooLong(
                f"Text {places[0]} is longer than {most} ({len(places)} of {len(truncated)} texts "
                "are). Shorten it, or let it be cut.",
                "texts",
            )

    def _lane(self, texts: int) -> Lane:
        return "interactive" if texts <= self.settings.interactive_max_texts else "bulk"

    def _check_model(self, name: str | None) -> None:
        if not self.spec.accepts(name):
            raise ModelNotFound(
                f"The model {short_repr(name)} isn't served here. Served: {self.spec.name!r}.",
                "model",
            )

    def _validate(self, job: EmbedJob) -> None:
        self._check_model(job.model)
        if job.dimensions is not None and not 1 <= job.dimensions <= self.spec.dim:
            raise InvalidRequest(
                f"`dimensions` must be between 1 and {self.spec.dim}, the model's own; "
                f"it was {job.dimensions}.",
                "dimensions",
            )
        if job.max_tokens is not None and not 1 <= job.max_tokens <= self.spec.max_tokens:
            raise InvalidRequest(
                f"A text can be cut to between 1 and {self.spec.max_tokens} tokens, the most that "
                f"the model takes; {job.max_tokens} was asked for.",
                "max_tokens",
            )
        validate_inputs(job.texts, self.settings)


def truncate_dimensions(vectors: Float32, dimensions: int | None) -> Float32:
    """The first `dimensions` components of vectors of shape (n, dim), at unit length again.

    Cutting is what Matryoshka-trained models are made for (Kusupati et al., 2022,
    "Matryoshka Representation Learning"); with others it costs quality.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    return to_unit_length(vectors[:, :dimensions])


def to_unit_length(vectors: Float32) -> Float32:
    """Vectors of shape (n, dim), each divided by its length; one that is all zero stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms == 0, 1, norms), dtype=np.float32)
