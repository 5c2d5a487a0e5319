"""The service proper: what happens to a job between a dialect and the cache.

Validates, drops duplicates, has the rest looked up, restores the order, cuts dimensions. Knows
neither HTTP nor Ray: `lookup` stands for whatever is behind it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from serve_app import __version__
from serve_app.config import IngressSettings
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    EmptyInput,
    InvalidRequest,
    ModelNotFound,
    TextTooLong,
)
from serve_app.health import Health, HealthReport
from serve_app.metrics import Meter
from serve_app.models import ModelSpec
from serve_app.types import (
    Bool,
    CacheState,
    EmbedJob,
    EmbedResult,
    EngineInfo,
    Float32,
    Input,
    Lane,
    TextGroup,
    Vectors,
)

_PROBE = TextGroup(("Is anybody there?",), use_cache=False)
_INFO_TIMEOUT_S = 2.0


class LookupCalls(Protocol):
    """What the service asks of the tiers behind it."""

    async def fetch(self, group: TextGroup) -> Vectors:
        """Full-size vectors of the group's texts, in order."""
        ...

    async def describe(self) -> EngineInfo:
        """What runs the model in a live replica."""
        ...

    async def cache_state(self) -> CacheState:
        """How the shared tier of the cache is."""
        ...


class EmbedService:
    """Turns jobs into results, for one model."""

    def __init__(
        self,
        spec: ModelSpec,
        lookup: LookupCalls,
        settings: IngressSettings,
        meter: Meter | None = None,
    ) -> None:
        self.spec = spec
        self._lookup = lookup
        self.meter = meter or Meter()
        self._device: str | None = None
        self.apply(settings)

    def apply(self, settings: IngressSettings) -> None:
        """Takes new settings; requests in progress keep the old ones."""
        self.settings = settings
        self._health = Health(
            lambda: self._lookup.fetch(_PROBE),
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
            EngineFailed, Unavailable: see `errors`.
        """
        self._validate(job)
        places: dict[Input, int] = {}
        order = [places.setdefault(text, len(places)) for text in job.texts]
        group = TextGroup(
            tuple(places),
            self.spec.prompt(job.input_type),
            use_cache=job.use_cache,
            lane=job.lane or self._lane(len(places)),
            timeout_s=self.settings.request_timeout_s,
        )
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                found = await self._lookup.fetch(group)
        except TimeoutError:
            raise DeadlineExceeded(
                f"No answer within {self.settings.request_timeout_s:g} s. Send fewer texts in one "
                "request, or try again when there is less load."
            ) from None
        if found.computed:
            self._health.computed()
        if not job.cut and True in found.truncated.tolist():
            raise self._too_long(job.texts, order, found.truncated)
        vectors = cut_dimensions(found.values, job.dimensions)
        if job.normalize and not self.spec.unit_length:  # dividing once more would change bits
            vectors = to_unit_length(vectors)
        tokens, truncated, tiers = found.tokens, found.truncated, found.tiers
        if len(places) < len(order):
            vectors, tokens = vectors[order], tokens[order]
            truncated, tiers = truncated[order], tiers[order]
        return EmbedResult(self.spec.name, vectors, tokens, truncated, tiers, found.timings)

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
            "model_id": self.spec.name,  # what two dialects call it
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

    def _too_long(
        self, texts: Sequence[Input], order: Sequence[int], truncated: Bool
    ) -> TextTooLong:
        places = [i for i in range(len(texts)) if truncated[order[i]]]
        return TextTooLong(
            f"Text {places[0]} is longer than the {self.spec.max_tokens} tokens that the model "
            f"takes ({len(places)} of {len(texts)} texts are). Shorten it, or let it be cut.",
            "texts",
        )

    def _lane(self, texts: int) -> Lane:
        return "interactive" if texts <= self.settings.interactive_max_texts else "bulk"

    def _validate(self, job: EmbedJob) -> None:
        if not self.spec.accepts(job.model):
            raise ModelNotFound(
                f"The model {job.model!r} isn't served here. Served: {self.spec.name!r}.", "model"
            )
        if job.dimensions is not None and not 1 <= job.dimensions <= self.spec.dim:
            raise InvalidRequest(
                f"`dimensions` must be between 1 and {self.spec.dim}, the model's own; "
                f"it was {job.dimensions}.",
                "dimensions",
            )
        validate_texts(job.texts, self.settings.max_texts_per_request)


def validate_texts(texts: Sequence[object], max_texts: int) -> None:
    """Tells whether every text can be embedded.

    Raises:
        InvalidRequest: there are none or too many, or one is not a string, is empty, or holds
            what no text holds (NUL, half a surrogate pair). The message names its place.
    """
    if not texts:
        raise EmptyInput("The list of texts is empty. Send at least one text.", "texts")
    if len(texts) > max_texts:
        raise InvalidRequest(
            f"{len(texts)} texts in one request; at most {max_texts} are taken. Split the list.",
            "texts",
        )
    for i, text in enumerate(texts):
        if text == "":
            raise EmptyInput(
                f"Text {i} is empty. Leave it out, or send at least one character.", "texts"
            )
        fault = _fault(text)
        if fault:
            raise InvalidRequest(f"Text {i} {fault}", "texts")


def _fault(text: object) -> str | None:
    if not isinstance(text, str):
        return f"is not a string but {type(text).__name__}. Send strings only."
    if "\x00" in text:
        return "holds a NUL character (U+0000). Remove it."
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at character {error.start}. Send well-formed Unicode."
    return None


def cut_dimensions(vectors: Float32, dimensions: int | None) -> Float32:
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
