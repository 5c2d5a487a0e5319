"""Fake engine and fake backend: fast, deterministic, and able to fail on demand."""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from serve_app.cache.coalescer import Deliver, GroupCoalescer, Send
from serve_app.cache.codec import Codec, task_codecs
from serve_app.engines.base import ModelInput, Rows, TokenIds
from serve_app.errors import EmbedServeError, InvalidRequest
from serve_app.inputs import Image, Input, QueryText, TextPair
from serve_app.models import ModelSpec
from serve_app.tasks import Task
from serve_app.types import (
    SPARSE_DTYPE,
    CacheState,
    EncodedVectors,
    EngineInfo,
    Float32,
    Outputs,
    RaggedVectors,
    Row,
    TextGroup,
    Tier,
    Tokenization,
    Vectors,
)

DIM = 8
#: Id of the only special token, the end of a text.
_END = 0

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


#: A model that supports every task of texts, which no real one does: for tests of all routes.
TEXT_TASKS = replace(
    SPEC,
    tasks=("embed", "embed_tokens", "embed_sparse", "rerank", "classify"),
    labels=("relevant",),
)


def fake_vector(text: str) -> Float32:
    """Returns a unit vector of shape (DIM,), a function of the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def fake_logits(input_: Input, labels: int) -> list[float]:
    """Returns the logits of a text or a pair, of which the probabilities are 0, 0.5 or 1.

    A pair has 200 if the document contains the query, 0 if they share a character, else -200. A
    text has 200 for the label at the position of its length, and 0 for the others.
    """
    if not isinstance(input_, TextPair):
        return [200.0 * (len(as_text(input_)) % labels == i) for i in range(labels)]
    query, document = input_.texts
    contained, overlap = query in document, set(query) & set(document)
    return [200.0 if contained else 0.0 if overlap else -200.0] * labels


def fake_sparse(text: str) -> Row:
    """Returns the weights of the characters of a text: half of their numbers."""
    counts = sorted(Counter(text).items())
    return np.array([(ord(c), n / 2) for c, n in counts], dtype=SPARSE_DTYPE)


def as_text(input_: Input) -> str:
    """Returns a text unchanged, token ids as one character each, and a pair as one text."""
    if isinstance(input_, str):
        return input_
    if isinstance(input_, TextPair):
        return input_.query + input_.document
    if isinstance(input_, QueryText):
        return f"?{input_.text}"
    if isinstance(input_, Image):
        return f"an image of {len(input_)} bytes"
    return "".join(chr(i % 0xD800) for i in input_)  # surrogates begin at 0xD800


def _check_ids(rows: Iterable[Input]) -> None:
    """Rejects ids outside every vocabulary, as engines do."""
    for row in rows:
        if isinstance(row, tuple) and not all(0 <= i < 2**31 for i in row):
            raise InvalidRequest("Not all token ids are in the vocabulary.", "texts")


class FakeTokenizer:
    """One token for each character, whose id is its code point; -1 is in no vocabulary."""

    def encode(self, texts: Sequence[Input]) -> list[TokenIds]:
        if (-1,) in texts:
            raise InvalidRequest("no token", "texts")
        limit, read = SPEC.max_tokens, map(as_text, texts)
        return [TokenIds([ord(c) for c in text[:limit]], len(text) > limit) for text in read]

    def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Tokenization]:
        special = [_END] if add_special_tokens else []
        return [
            Tokenization(
                [*map(ord, text), *special],
                [*text, *("</s>" for _ in special)],
                [*(False for _ in text), *(True for _ in special)],
                [*((i, i + 1) for i in range(len(text))), *((0, 0) for _ in special)],
            )
            for text in texts
        ]

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        if any(i < 0 for row in rows for i in row):
            raise InvalidRequest("no token", "ids")
        return [as_text(tuple(i for i in row if i or not skip_special_tokens)) for row in rows]


class FakeEngine:
    """An engine with one token for each character, whose vectors are those of `fake_vector`.

    It records each batch. A batch fails if one of its texts contains "boom"; the vector of a text
    that contains "nan" is NaN; a batch of more padded tokens than `memory_tokens` raises
    MemoryError. After `hold()` the next batch blocks until `release()`.
    """

    streams = 1
    tasks: frozenset[Task] = frozenset(("embed", "embed_tokens"))
    info = EngineInfo("fake", "cpu", "fp32", 1, SPEC.space_id, {"fake": "1"})

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self.batches: list[list[str]] = []
        self.memory_tokens = 1 << 30
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        texts = self._read(cast("Sequence[TokenIds]", batch))
        if task == "embed_tokens":
            arrays = [np.stack([fake_vector(character) for character in text]) for text in texts]
            for text, array in zip(texts, arrays, strict=True):
                array[-1] = np.nan if "nan" in text else array[-1]
            return arrays
        vectors = np.stack([fake_vector(text) for text in texts])
        vectors[["nan" in text for text in texts]] = np.nan
        return vectors

    def _read(self, batch: Sequence[TokenIds]) -> list[str]:
        texts = ["".join(map(chr, tokens.ids)) for tokens in batch]
        self.batches.append(texts)
        assert self._open.wait(10), "The test held the engine and never released it."
        if len(texts) * max(map(len, texts)) > self.memory_tokens:
            raise MemoryError
        if any("boom" in text for text in texts):
            raise RuntimeError("boom")
        return texts


def as_vectors(outputs: Outputs) -> Vectors:
    """Returns outputs whose rows have one length."""
    assert isinstance(outputs, Vectors)
    return outputs


Embed = Callable[[TextGroup], Awaitable[Outputs | EncodedVectors]]


def fake_send(embed: Embed, codec: Codec | None = None) -> Send:
    """Returns a next tier that computes each group with `embed`."""
    codecs = task_codecs(SPEC) if codec is None else {"embed": codec}

    async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        async def embed_group(index: int, group: TextGroup) -> None:
            try:
                result = await embed(group)
                if not isinstance(result, EncodedVectors):
                    result = codecs[group.task].encode(result)
                deliver(index, result)
            except EmbedServeError as error:
                deliver(index, error)

        await asyncio.gather(*(embed_group(i, group) for i, group in enumerate(groups)))

    return send


def coalesce(embed: Embed, codec: Codec | None = None) -> GroupCoalescer:
    """Returns a coalescer in front of `fake_send`."""
    return GroupCoalescer(fake_send(embed, codec), max_in_flight_calls=64)


class FakeBackend:
    """A backend without a cache that embeds with `fake_vector` and records each group.

    Scores are those of `fake_logits`, sparse vectors those of `fake_sparse`.

    Attributes:
        groups: the groups in the order of the calls.
        error: raised by every call except `cache_state`.
        delay_s: delay of every call except `describe` and `cache_state`.
        tiers: the tier of each vector; empty: all are computed.
        cache: returned by `cache_state`, or raised.
    """

    def __init__(self, labels: int = 1) -> None:
        self.labels = labels
        self.groups: list[TextGroup] = []
        self.error: EmbedServeError | None = None
        self.delay_s = 0.0
        self.tiers: list[Tier] = []
        self.cache: CacheState | EmbedServeError = CacheState("up", kind="embedded")

    async def _delay_or_fail(self) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error

    async def run(self, group: TextGroup) -> Outputs:
        self.groups.append(group)
        _check_ids(group.texts)
        await self._delay_or_fail()
        texts = [as_text(input_)[: SPEC.max_tokens] for input_ in group.texts]
        arrays = (
            np.array([len(text) for text in texts], dtype=np.int32),
            np.array([len(input_) > SPEC.max_tokens for input_ in group.texts]),
            np.array(self.tiers or [Tier.COMPUTED] * len(group.texts), dtype=np.uint8),
        )
        if group.task == "embed_tokens":
            prompted = [as_text(input_)[: SPEC.max_tokens] for input_ in group.prompted_inputs]
            rows = [np.stack([fake_vector(c) for c in text]) for text in prompted]
            return RaggedVectors(rows, *arrays)
        if group.task == "embed_sparse":
            return RaggedVectors([fake_sparse(group.prompt + text) for text in texts], *arrays)
        if group.task in ("rerank", "classify"):
            logits = [fake_logits(input_, self.labels) for input_ in group.texts]
            return Vectors(np.array(logits, dtype=np.float32), *arrays)
        vectors = [
            fake_vector(group.prompt + text if isinstance(input_, str) else text)
            for input_, text in zip(group.texts, texts, strict=True)
        ]
        return Vectors(np.stack(vectors), *arrays)

    async def describe(self) -> EngineInfo:
        if self.error is not None:
            raise self.error
        return FakeEngine.info

    async def tokenize(
        self, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization]:
        await self._delay_or_fail()
        special = add_special_tokens
        framed = [f"[{text}]" if special else text for text in texts]
        return [
            Tokenization(
                list(map(ord, text)),
                list(text),
                [special and i in (0, len(text) - 1) for i in range(len(text))],
                [(max(i - special, 0), i + 1 - special) for i in range(len(text))],
            )
            for text in framed
        ]

    async def decode(
        self, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str]:
        _check_ids(rows)
        await self._delay_or_fail()
        texts = [as_text(row) for row in rows]
        return [text.strip("[]") if skip_special_tokens else text for text in texts]

    async def cache_state(self) -> CacheState:
        if isinstance(self.cache, EmbedServeError):
            raise self.cache
        return self.cache
