"""Truncated and chunked texts equal plain references. The tokenizer splits every few letters."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidRequest
from serve_app.inputs import Input
from serve_app.service.truncation import Truncator
from serve_app.types import Float32, TextGroup, Tier, Timings, Tokenization, Truncation, Vectors

HEAD, TAIL = (1, 2), (3,)
LIMIT = 10
DIM = 4


def ids_of(text: str, width: int) -> list[int]:
    """Returns one token per `width` letters; none of them is special."""
    return [zlib.crc32(text[i : i + width].encode()) + 9 for i in range(0, len(text), width)]


def vector(value: Input) -> Float32:
    return np.random.default_rng(zlib.crc32(repr(value).encode())).normal(size=DIM).astype("f4")


class FakeBackend:
    """The tokenizer and the engine; records its calls."""

    def __init__(self, width: int = 1) -> None:
        self.width = width
        self.tokenized: list[tuple[str, ...]] = []
        self.groups: list[TextGroup] = []
        self.tiers: dict[Input, Tier] = {}
        self.too_long: set[Input] = set()

    async def tokenize(self, texts: tuple[str, ...]) -> Sequence[Tokenization]:
        self.tokenized.append(texts)
        return [self._tokenization(text) for text in texts]

    def _tokenization(self, text: str) -> Tokenization:
        inner, width = ids_of(text, self.width), self.width
        offsets = [(i * width, min((i + 1) * width, len(text))) for i in range(len(inner))]
        ids = [*HEAD, *inner, *TAIL]
        special = [True] * len(HEAD) + [False] * len(inner) + [True] * len(TAIL)
        frame = [(0, 0)]
        return Tokenization(
            ids, list(map(str, ids)), special, frame * len(HEAD) + offsets + frame * len(TAIL)
        )

    async def run(self, group: TextGroup) -> Vectors:
        self.groups.append(group)
        n = [
            len(t) if isinstance(t, tuple) else len(self._tokenization(str(t)).ids)
            for t in group.texts
        ]
        return Vectors(
            np.array([vector(text) for text in group.texts]),
            np.array(n, dtype=np.int32),
            np.array([text in self.too_long for text in group.texts]),
            np.array([self.tiers.get(t, Tier.COMPUTED) for t in group.texts], dtype=np.uint8),
            Timings(1, 2, 3, 4),
        )


def truncator(backend: FakeBackend) -> Truncator:
    return Truncator(backend.tokenize, backend.run, LIMIT)


def with_special_tokens(inner: Sequence[int]) -> tuple[int, ...]:
    return (*HEAD, *inner, *TAIL)


SIZE = LIMIT - len(HEAD) - len(TAIL)
SHORT, LONG = "abc", "abcdefghijklmnopq"
letters = st.text("abcdefgh", min_size=1, max_size=40)


@pytest.mark.parametrize("truncation", ["start", "end", "chunk", "error"])
async def test_a_text_within_the_limit_is_unchanged(truncation: Truncation) -> None:
    backend = FakeBackend()
    group = TextGroup((SHORT,), lane="bulk", use_cache=False, deadline_s=7)
    result = await truncator(backend).embed(group, truncation)
    assert backend.groups == [group]
    assert np.array_equal(result.values[0], vector(SHORT))
    assert result.truncated.tolist() == [False]
    assert result.timings == Timings(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("truncation", "remaining"),
    [("start", LONG[-SIZE:]), ("end", LONG[:SIZE]), ("error", LONG[:SIZE])],
)
async def test_a_truncated_text_keeps_its_special_tokens(
    truncation: Truncation, remaining: str
) -> None:
    backend = FakeBackend()
    result = await truncator(backend).embed(TextGroup((SHORT, LONG)), truncation)
    cut = with_special_tokens(ids_of(remaining, 1))
    assert backend.groups[0].texts == (SHORT, cut)
    assert result.token_counts.tolist() == [len(SHORT) + 3, LIMIT]
    assert result.truncated.tolist() == [False, True]


@pytest.mark.parametrize(("letters", "is_long"), [(SIZE, False), (SIZE + 1, True)])
async def test_the_limit_is_inclusive(letters: int, is_long: bool) -> None:
    (chunks,) = await truncator(FakeBackend()).plan(TextGroup(("x" * letters,)), "start")
    assert chunks.truncated == is_long
    assert isinstance(chunks.parts[0], tuple) == is_long


@pytest.mark.parametrize(("max_tokens", "limit"), [(6, 6), (LIMIT, LIMIT), (LIMIT + 1, LIMIT)])
async def test_a_job_may_lower_the_limit_but_not_raise_it(max_tokens: int, limit: int) -> None:
    (chunks,) = await truncator(FakeBackend()).plan(TextGroup((LONG,)), "end", max_tokens)
    assert len(chunks.parts[0]) == limit


@pytest.mark.parametrize("truncation", ["start", "end", "chunk"])
async def test_each_part_starts_with_the_prompt(truncation: Truncation) -> None:
    backend, prompt = FakeBackend(), "q: "
    group = TextGroup((LONG,), prompt)
    (chunks,) = await truncator(backend).plan(group, truncation)
    assert backend.tokenized == [(prompt + LONG,)]
    for part in chunks.parts:
        assert isinstance(part, tuple)
        assert part[: len(HEAD) + 3] == (*HEAD, *ids_of(prompt, 1))
        assert part[-1:] == TAIL
    await truncator(backend).embed(group, truncation)
    assert backend.groups[0].prompt == prompt  # the engine doesn't prepend it to token ids


async def test_a_prompt_that_fills_the_limit_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match=r"^10 tokens.*alone are 10\.$") as caught:
        await truncator(FakeBackend()).plan(TextGroup((LONG,), "1234567"), "chunk")
    assert caught.value.param == "max_tokens"


async def test_token_ids_are_passed_on() -> None:
    backend, ids = FakeBackend(), tuple(range(99))
    backend.too_long = {ids}
    result = await truncator(backend).embed(TextGroup((ids,)), "chunk")
    assert backend.groups[0].texts == (ids,)
    assert backend.tokenized == []
    assert result.truncated.tolist() == [True]


async def test_token_ids_and_texts_keep_their_order() -> None:
    backend = FakeBackend()
    result = await truncator(backend).embed(TextGroup((LONG, (7, 8), SHORT, (9,))), "start")
    cut = with_special_tokens(ids_of(LONG[-SIZE:], 1))
    assert backend.groups[0].texts == (cut, (7, 8), SHORT, (9,))
    assert np.array_equal(result.values, [vector(text) for text in backend.groups[0].texts])


async def test_equal_parts_are_computed_once() -> None:
    backend = FakeBackend()
    half = LONG[:SIZE]
    result = await truncator(backend).embed(TextGroup((half * 2, "z", half + "z" * SIZE)), "chunk")
    first, second = with_special_tokens(ids_of(half, 1)), with_special_tokens(ids_of("z" * SIZE, 1))
    assert backend.groups[0].texts == (first, "z", second)
    assert result.token_counts.tolist() == [2 * LIMIT, 4, 2 * LIMIT]
    unit = vector(first) / np.linalg.norm(vector(first))
    np.testing.assert_allclose(result.values[0], unit, rtol=1e-6)


@pytest.mark.parametrize(
    ("tiers", "tier"),
    [
        ((Tier.L1, Tier.L1), Tier.L1),
        ((Tier.L2, Tier.L1), Tier.L2),
        ((Tier.L1, Tier.COMPUTED), Tier.COMPUTED),
        ((Tier.COMPUTED, Tier.L2), Tier.COMPUTED),
    ],
)
async def test_a_mean_has_the_slowest_tier_of_its_parts(
    tiers: tuple[Tier, Tier], tier: Tier
) -> None:
    backend = FakeBackend()
    (chunks,) = await truncator(backend).plan(TextGroup((LONG[: SIZE + 3],)), "chunk")
    backend.tiers = dict(zip(chunks.parts, tiers, strict=True))
    result = await truncator(backend).embed(TextGroup((LONG[: SIZE + 3],)), "chunk")
    assert result.tiers.tolist() == [tier]


async def test_parts_with_a_zero_mean_give_a_zero_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = iter([1, -1])
    monkeypatch.setattr(f"{__name__}.vector", lambda text: np.full(DIM, next(signs), "f4"))
    result = await truncator(FakeBackend()).embed(TextGroup((LONG[: 2 * SIZE],)), "chunk")
    assert result.values.tolist() == [[0.0] * DIM]


def mean_of_parts(text: str, prompt: str, width: int) -> Float32:
    """The specification of `chunk`."""
    tokens = ids_of(prompt + text, width)
    if len(tokens) + len(HEAD) + len(TAIL) <= LIMIT:
        return vector(text)
    prompt_tokens = len(prompt) // width  # a token that spans both is the text's
    before, text_tokens = tokens[:prompt_tokens], tokens[prompt_tokens:]
    size = LIMIT - len(HEAD) - len(TAIL) - prompt_tokens
    total = np.zeros(DIM)
    for i in range(0, len(text_tokens), size):
        piece = text_tokens[i : i + size]
        total += len(piece) * vector(with_special_tokens([*before, *piece])).astype("f8")
    if len(text_tokens) <= size:
        return vector(with_special_tokens([*before, *text_tokens]))
    return (total / np.linalg.norm(total)).astype("f4")


@given(st.lists(letters, min_size=1, max_size=5), st.text("xyz", max_size=5), st.integers(1, 3))
async def test_chunk_is_the_weighted_mean_at_unit_length(
    texts: list[str], prompt: str, width: int
) -> None:
    distinct = tuple(dict.fromkeys(texts))
    result = await truncator(FakeBackend(width)).embed(TextGroup(distinct, prompt), "chunk")
    expected = np.array([mean_of_parts(text, prompt, width) for text in distinct])
    np.testing.assert_allclose(result.values, expected, atol=1e-6)
    assert result.values.dtype == np.float32
    assert not result.truncated.any()


@given(letters, st.text("xyz", max_size=5), st.integers(1, 3), st.integers(LIMIT - 1, LIMIT + 2))
async def test_chunks_contain_each_token_once_within_the_limit(
    text: str, prompt: str, width: int, max_tokens: int
) -> None:
    (chunks,) = await truncator(FakeBackend(width)).plan(
        TextGroup((text,), prompt), "chunk", max_tokens
    )
    if chunks.parts == (text,):
        return
    before = len(HEAD) + len(prompt) // width
    parts = [part for part in chunks.parts if isinstance(part, tuple)]
    inner = [token for part in parts for token in part[before : -len(TAIL)]]
    assert inner == ids_of(prompt + text, width)[len(prompt) // width :]
    assert sum(chunks.weights) == len(inner)
    assert all(len(part) <= min(max_tokens, LIMIT) for part in chunks.parts)


@given(letters, st.text("xyz", max_size=5), st.integers(1, 3))
async def test_truncation_at_the_start_keeps_the_end(text: str, prompt: str, width: int) -> None:
    (chunks,) = await truncator(FakeBackend(width)).plan(TextGroup((text,), prompt), "start")
    tokens = ids_of(prompt + text, width)
    if len(tokens) + len(HEAD) + len(TAIL) <= LIMIT:
        assert chunks.parts == (text,)
        return
    (part,) = chunks.parts
    assert len(part) == LIMIT
    prompt_tokens = len(prompt) // width
    remaining = LIMIT - len(HEAD) - len(TAIL) - prompt_tokens
    assert part == with_special_tokens([*tokens[:prompt_tokens], *tokens[-remaining:]])


async def test_the_group_keeps_its_other_options() -> None:
    backend = FakeBackend()
    group = TextGroup((LONG,), "p", use_cache=False, lane="bulk", deadline_s=3)
    await truncator(backend).embed(group, "start")
    assert backend.groups == [replace(group, texts=backend.groups[0].texts)]
