"""The embedding service, between the dialects and the cache.

job → validate → deduplicate → backend → restore the order → reduce dimensions → result

It depends on neither HTTP nor Ray: a `Backend` stands for the tiers below.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from serve_app import __version__
from serve_app.config import RequestSettings
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    InvalidRequest,
    TextTooLong,
)
from serve_app.inputs import Input
from serve_app.jobs import BatchJob, DecodeJob, EmbedJob, Job, TokenizeJob, TokenVectorsJob
from serve_app.metrics import Meter
from serve_app.models import ModelSpec
from serve_app.results import BatchResult, EmbedResult, TokenizerResult, TokenVectorsResult
from serve_app.service.backend import Backend
from serve_app.service.dimensions import normalize, truncate_dimensions
from serve_app.service.health import HealthProbe, HealthReport
from serve_app.service.openai_token_ids import TiktokenDecoder
from serve_app.service.replica_stats import ReplicaStats, SingleReplica
from serve_app.service.truncation import Truncator
from serve_app.service.validation import (
    replace_invalid_characters,
    validate_inputs,
    validate_reply_tokens,
)
from serve_app.types import Bool, CacheState, EngineInfo, Lane, TextGroup, Tokenization

_PROBE_GROUP = TextGroup(("health probe",), use_cache=False)
_STATUS_TIMEOUT_S = 2.0


class EmbedService:
    """Computes the results of jobs, for one model."""

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        settings: RequestSettings,
        meter: Meter | None = None,
        replica_stats: ReplicaStats | None = None,
    ) -> None:
        """Creates a service.

        Args:
            spec: the model.
            backend: the tiers below.
            settings: limits and timeouts; `apply` replaces them.
            meter: collects the metrics of this process.
            replica_stats: statistics over all replicas of the service; None: this process only.

        Raises:
            ConfigurationError: see `apply`.
        """
        self.spec = spec
        self._backend = backend
        self.meter = meter or Meter()
        self.replica_stats = replica_stats or SingleReplica(self.meter)
        self._device: str | None = None
        self._truncator = Truncator(
            lambda texts: backend.tokenize(texts, True), backend.embed, spec.max_tokens
        )
        self.apply(settings)

    def apply(self, settings: RequestSettings) -> None:
        """Applies new settings. Requests in progress keep the previous ones.

        Raises:
            ConfigurationError: the encoding of `token_ids` is not available.
        """
        encoding = settings.token_ids
        self._token_id_decoder = None if encoding == "model" else TiktokenDecoder(encoding)
        self.settings = settings
        self._health = HealthProbe(
            lambda: self._backend.embed(_PROBE_GROUP),
            max_age_s=settings.health_max_age_s,
            timeout_s=settings.health_timeout_s,
        )

    async def embed(self, job: EmbedJob, timeout_s: float = math.inf) -> EmbedResult:
        """Embeds the texts of a job. Equal texts are computed once.

        Args:
            job: the texts and how to embed them.
            timeout_s: time limit of the caller, if it is lower than `request_timeout_s`.

        Raises:
            InvalidRequest: a text, the number of texts, `dimensions`, `max_tokens` or `input_type`
                is not valid.
            ModelNotFound: the job names a model that isn't served.
            Overloaded: the queue has no room for the job.
            DeadlineExceeded: the vectors didn't arrive within the time limit.
            InferenceError, Unavailable: see `errors`.
        """
        job = self._prepare_texts(job)
        self._validate_job(job)
        rows: dict[Input, int] = {}  # each distinct text → its row in the group
        order = [rows.setdefault(text, len(rows)) for text in job.texts]
        timeout_s = min(timeout_s, self.settings.request_timeout_s)
        group = self._text_group(job, tuple(rows), timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                if job.truncation in ("end", "error") and job.max_tokens is None:
                    result = await self._backend.embed(group)
                else:
                    result = await self._truncator.embed(group, job.truncation, job.max_tokens)
        except TimeoutError:
            raise _deadline_exceeded(timeout_s) from None
        if result.computed_count:
            self._health.record_success()
        if job.truncation == "error":
            self._reject_truncated(result.truncated[order], job.max_tokens)
        vectors = truncate_dimensions(result.values, job.dimensions)
        if job.normalize and not self.spec.unit_length:  # a second division would change bits
            vectors = normalize(vectors)
        tokens, truncated, tiers, raw = (
            result.token_counts,
            result.truncated,
            result.tiers,
            result.values,
        )
        if len(rows) < len(order):
            vectors, tokens, raw = vectors[order], tokens[order], raw[order]
            truncated, tiers = truncated[order], tiers[order]
        characters = sum(len(text) for text in job.texts if isinstance(text, str))
        return EmbedResult(
            self.spec.name, vectors, tokens, truncated, tiers, result.timings, raw, characters
        )

    async def run(self, job: Job, timeout_s: float = math.inf) -> Any:
        """Runs a job of any type.

        Args:
            job: the job.
            timeout_s: see `embed`.

        Returns:
            `EmbedJob`: an `EmbedResult`. `BatchJob`: a `BatchResult`. `TokenVectorsJob`: a
            `TokenVectorsResult`. `TokenizeJob`: a `TokenizerResult` of `Tokenization`.
            `DecodeJob`: a `TokenizerResult` of texts.

        Raises:
            EmbedServeError: see `embed`.
            UnsupportedOperation: the model's engine doesn't support the job.
        """
        if isinstance(job, EmbedJob):
            return await self.embed(job, timeout_s)
        timeout_s = min(timeout_s, self.settings.request_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                match job:
                    case BatchJob():
                        return await self._embed_batch(job.jobs, timeout_s)
                    case TokenVectorsJob():
                        return await self._embed_tokens(job.job, timeout_s)
                    case TokenizeJob():
                        return await self._tokenize(job)
                    case DecodeJob():
                        return await self._decode(job)
        except TimeoutError:
            raise _deadline_exceeded(timeout_s) from None

    async def _embed_batch(self, jobs: Sequence[EmbedJob], timeout_s: float) -> BatchResult:
        texts = tuple(text for job in jobs for text in job.texts)
        validate_inputs(self._replace_invalid(texts), self.settings)
        lane = self._default_lane(len(texts))
        results = await asyncio.gather(
            *(self.embed(replace(job, lane=job.lane or lane), timeout_s) for job in jobs)
        )
        return BatchResult(results)

    async def _embed_tokens(self, job: EmbedJob, timeout_s: float) -> TokenVectorsResult:
        job = self._prepare_texts(job)
        self._validate_job(job)
        group = self._text_group(job, job.texts, timeout_s)
        truncated: Sequence[bool] = ()
        if job.truncation == "start":
            plan = await self._truncator.plan(group, job.truncation)
            group = replace(group, texts=tuple(chunks.parts[0] for chunks in plan))
            truncated = [chunks.truncated for chunks in plan]
        result = TokenVectorsResult(await self._backend.embed_tokens(group))
        if job.truncation == "error":
            self._reject_truncated(result.truncated)
        if not truncated:
            return result
        return TokenVectorsResult(
            text._replace(truncated=cut) for text, cut in zip(result, truncated, strict=True)
        )

    async def _tokenize(self, job: TokenizeJob) -> TokenizerResult[Tokenization]:
        self.spec.check_name(job.model)
        inputs = self._replace_invalid(job.texts)
        validate_inputs(inputs, self.settings)
        prompt = "" if job.input_type is None else self.spec.prompt(job.input_type)
        texts = tuple(prompt + text for text in inputs)
        rows = await self._backend.tokenize(texts, job.add_special_tokens)
        validate_reply_tokens(sum(len(row.ids) for row in rows), self.settings)
        return TokenizerResult(rows)

    async def _decode(self, job: DecodeJob) -> TokenizerResult[str]:
        self.spec.check_name(job.model)
        validate_inputs(job.token_ids, self.settings)
        validate_reply_tokens(sum(map(len, job.token_ids)), self.settings)
        return TokenizerResult(await self._backend.decode(job.token_ids, job.skip_special_tokens))

    def _prepare_texts(self, job: EmbedJob) -> EmbedJob:
        """Returns the job with texts in place of token ids of an OpenAI encoding.

        With `invalid_text: replace`, U+FFFD replaces invalid characters.
        """
        texts = job.texts
        if self._token_id_decoder is not None:
            texts = tuple(map(self._token_id_decoder.decode, texts))
        texts = self._replace_invalid(texts)
        return job if texts is job.texts else replace(job, texts=texts)

    def _replace_invalid(self, texts: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.settings.invalid_text == "error":
            return texts
        return tuple(map(replace_invalid_characters, texts))

    def _text_group(self, job: EmbedJob, texts: tuple[Input, ...], timeout_s: float) -> TextGroup:
        return TextGroup(
            texts,
            self.spec.prompt(job.input_type),
            use_cache=job.use_cache,
            lane=job.lane or self._default_lane(len(texts)),
            deadline_s=time.monotonic() + timeout_s,
        )

    async def health(self) -> HealthReport:
        """Returns whether a replica can embed, and probes one if no recent work proves it."""
        return await self._health.check()

    async def cache_state(self) -> CacheState:
        """Returns the state of the L2 cache. Never raises: the service works without it."""
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                return await self._backend.cache_state()
        except (TimeoutError, EmbedServeError):
            return CacheState("unknown", "CacheLookup doesn't answer.")

    async def info(self) -> dict[str, Any]:
        """Returns the body of `/info`. The engine's fields are None when no replica responds."""
        engine = await self._describe_engine()
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
            "refused": engine and list(engine.rejected),
            "versions": {
                "embedserve": __version__,
                "ray": version("ray"),
                **(engine.versions if engine else {}),
            },
        }

    async def device(self) -> str | None:
        """Returns the device that runs the model; None until a replica responds."""
        if self._device is None:
            engine = await self._describe_engine()
            self._device = None if engine is None else engine.device
        return self._device

    async def _describe_engine(self) -> EngineInfo | None:
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                return await self._backend.describe()
        except (TimeoutError, EmbedServeError):
            return None

    def _reject_truncated(self, truncated: Bool, limit: int | None = None) -> None:
        indices: list[int] = np.flatnonzero(truncated).tolist()
        if indices:
            maximum = (
                f"the {self.spec.max_tokens} tokens that the model takes"
                if limit is None
                else f"{limit} tokens"
            )
            raise TextTooLong(
                f"Text {indices[0]} is longer than {maximum} ({len(indices)} of {len(truncated)} "
                "texts are). Shorten it, or let it be cut.",
                "texts",
            )

    def _default_lane(self, text_count: int) -> Lane:
        return "interactive" if text_count <= self.settings.interactive_max_texts else "bulk"

    def _validate_job(self, job: EmbedJob) -> None:
        self.spec.check_name(job.model)
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


def _deadline_exceeded(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"No answer within {timeout_s:g} s. Send fewer texts in one request, or try again when "
        "there is less load."
    )
