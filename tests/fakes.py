"""Stand-ins at the seams, for speed and for faults."""

import asyncio
import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from serve_app.engine.base import TokenIds
from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.types import CacheState, EngineInfo, Float32, Input, TextGroup, Tier, Vectors

DIM = 8

SPEC = ModelSpec(
    name="org/fake",
    aliases=("fake",),
    dim=DIM,
    max_tokens=16,
    prompts={"query": "query: ", "document": ""},
    default_prompt=None,
    weights_sha256="0" * 64,
    space_id="f00d-fp32",
    created_s=1_700_000_000,
)


def fake_vector(text: str) -> Float32:
    """A unit vector of shape (DIM,) that depends on the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def as_text(given: Input) -> str:
    """A text, or what token ids stand for here: one character each."""
    return given if isinstance(given, str) else "".join(map(chr, given))


class FakeEngine:
    """One token for each character; vectors as `fake_vector`. Records every batch it is given.

    A text that holds "boom" makes its batch fail, one that holds "nan" comes back as NaN, and more
    padded tokens than `memory_tokens` don't fit. `hold()` makes it wait inside the next batch until
    `release()`.
    """

    dim = DIM
    streams = 1
    info = EngineInfo("fake", "cpu", "fp32", 1, SPEC.space_id, {"fake": "1"})

    streams = 1

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.memory_tokens = 1 << 30
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        limit = SPEC.max_tokens
        return [TokenIds([ord(c) for c in text[:limit]], len(text) > limit) for text in texts]

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        texts = ["".join(map(chr, tokens.ids)) for tokens in batch]
        self.batches.append(texts)
        assert self._open.wait(10), "The test held the engine and never released it."
        if len(texts) * max(map(len, texts)) > self.memory_tokens:
            raise MemoryError
        if any("boom" in text for text in texts):
            raise RuntimeError("boom")
        vectors = np.stack([fake_vector(text) for text in texts])
        vectors[["nan" in text for text in texts]] = np.nan
        return vectors


class FakeLookup:
    """The tier behind the service: computes everything, and counts what it was asked."""

    def __init__(self) -> None:
        self.groups: list[TextGroup] = []
        self.error: EmbedServeError | None = None
        self.delay_s = 0.0
        self.tiers: list[Tier] = []
        self.cache: CacheState | EmbedServeError = CacheState("up", kind="embedded")

    async def fetch(self, group: TextGroup) -> Vectors:
        self.groups.append(group)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        cut = [as_text(text)[: SPEC.max_tokens] for text in group.texts]
        return Vectors(
            values=np.stack([fake_vector(group.prompt + text) for text in cut]),
            tokens=np.array([len(text) for text in cut], dtype=np.int32),
            truncated=np.array([len(text) > SPEC.max_tokens for text in group.texts]),
            tiers=np.array(self.tiers or [Tier.COMPUTED] * len(group.texts), dtype=np.uint8),
        )

    async def describe(self) -> EngineInfo:
        if self.error is not None:
            raise self.error
        return FakeEngine.info

    async def cache_state(self) -> CacheState:
        if isinstance(self.cache, EmbedServeError):
            raise self.cache
        return self.cache
