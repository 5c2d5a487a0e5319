"""Long texts against plain references. The tokenizer here makes a token of each few letters."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidRequest
from serve_app.service.truncation import Truncator
from serve_app.types import (
    Float32,
    Input,
    TextGroup,
    Tier,
    Timings,
    Tokenization,
    Truncation,
    Vectors,
)

HEAD, TAIL = (1, 2), (3,)
LIMIT = 10
DIM = 4


def ids_of(text: str, width: int) -> list[int]:
    """Of each `width` letters a token of its own; never a special one."""
    return [zlib.crc32(text[i : i + width].encode()) + 9 for i in range(0, len(text), width)]


def vector(given: Input) -> Float32:
    return np.random.default_rng(zlib.crc32(repr(given).encode())).normal(size=DIM).astype("f4")


class Below:
    """The tokenizer and the next tier; tells what it was asked."""

    def __init__(self, width: int = 1) -> None:
        self.width = width
        self.spelled: list[tuple[str, ...]] = []
        self.groups: list[TextGroup] = []
        self.tiers: dict[Input, Tier] = {}
        self.too_long: set[Input] = set()

    async def spell(self, texts: tuple[str, ...]) -> Sequence[Tokenization]:
        self.spelled.append(texts)
        return [self._spelling(text) for text in texts]

    def _spelling(self, text: str) -> Tokenization:
        inner, width = ids_of(text, self.width), self.width
        offsets = [(i * width, min((i + 1) * width, len(text))) for i in range(len(inner))]
        ids = [*HEAD, *inner, *TAIL]
        special = [True] * len(HEAD) + [False] * len(inner) + [True] * len(TAIL)
        frame = [(0, 0)]
        return Tokenization(
            ids, list(map(str, ids)), special, frame * len(HEAD) + offsets + frame * len(TAIL)
        )

    async def embed(self, group: TextGroup) -> Vectors:
        self.groups.append(group)
        n = [len(t) if isinstance(t, tuple) else len(self._spelling(t).ids) for t in group.texts]
        return Vectors(
            np.array([vector(text) for text in group.texts]),
            np.array(n, dtype=np.int32),
            np.array([text in self.too_long for text in group.texts]),
            np.array([self.tiers.get(t, Tier.COMPUTED) for t in group.texts], dtype=np.uint8),
            Timings(1, 2, 3, 4),
        )


def over(below: Below) -> Truncator:
    return Truncator(below.spell, below.embed, LIMIT)


def framed(inner: Sequence[int]) -> tuple[int, ...]:
    return (*HEAD, *inner, *TAIL)


ROOM = LIMIT - len(HEAD) - len(TAIL)
SHORT, LONG = "abc", "abcdefghijklmnopq"
words = st.text("abcdefgh", min_size=1, max_size=40)


@pytest.mark.parametrize("truncation", ["start", "end", "chunk", "error"])
async def test_a_short_text_goes_on_as_it_is(truncation: Truncation) -> None:
    below = Below()
    group = TextGroup((SHORT,), lane="bulk", use_cache=False, timeout_s=7)
    found = await over(below).embed(group, truncation)
    assert below.groups == [group]
    assert np.array_equal(found.values[0], vector(SHORT))
    assert found.truncated.tolist() == [False]
    assert found.timings == Timings(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [("start", LONG[-ROOM:]), ("end", LONG[:ROOM]), ("error", LONG[:ROOM])],
)
async def test_a_long_text_is_cut_inside_its_special_tokens(
    truncation: Truncation, kept: str
) -> None:
    below = Below()
    found = await over(below).embed(TextGroup((SHORT, LONG)), truncation)
    cut = framed(ids_of(kept, 1))
    assert below.groups[0].texts == (SHORT, cut)
    assert found.tokens.tolist() == [len(SHORT) + 3, LIMIT]
    assert found.truncated.tolist() == [False, True]


@pytest.mark.parametrize(("letters", "is_long"), [(ROOM, False), (ROOM + 1, True)])
async def test_long_is_what_has_one_token_more(letters: int, is_long: bool) -> None:
    (fitted,) = await over(Below()).plan(TextGroup(("x" * letters,)), "start")
    assert fitted.truncated == is_long
    assert isinstance(fitted.parts[0], tuple) == is_long


@pytest.mark.parametrize(("asked", "limit"), [(6, 6), (LIMIT, LIMIT), (LIMIT + 1, LIMIT)])
async def test_what_counts_as_long_can_be_less_than_the_model_takes(asked: int, limit: int) -> None:
    (fitted,) = await over(Below()).plan(TextGroup((LONG,)), "end", asked)
    assert len(fitted.parts[0]) == limit


@pytest.mark.parametrize("truncation", ["start", "end", "chunk"])
async def test_a_prompt_stays_before_each_part(truncation: Truncation) -> None:
    below, prompt = Below(), "q: "
    group = TextGroup((LONG,), prompt)
    (fitted,) = await over(below).plan(group, truncation)
    assert below.spelled == [(prompt + LONG,)]
    for part in fitted.parts:
        assert part[: len(HEAD) + 3] == (*HEAD, *ids_of(prompt, 1))
        assert part[-1:] == TAIL
    await over(below).embed(group, truncation)
    assert below.groups[0].prompt == prompt  # which token ids don't get once more


async def test_a_prompt_without_room_behind_it_is_told() -> None:
    with pytest.raises(InvalidRequest, match=r"^10 tokens.*alone are 10\.$") as caught:
        await over(Below()).plan(TextGroup((LONG,), "1234567"), "chunk")
    assert caught.value.param == "max_tokens"


async def test_token_ids_are_left_to_the_engine() -> None:
    below, ids = Below(), tuple(range(99))
    below.too_long = {ids}
    found = await over(below).embed(TextGroup((ids,)), "chunk")
    assert below.groups[0].texts == (ids,)
    assert below.spelled == []
    assert found.truncated.tolist() == [True]


async def test_token_ids_and_texts_keep_their_places() -> None:
    below = Below()
    found = await over(below).embed(TextGroup((LONG, (7, 8), SHORT, (9,))), "start")
    cut = framed(ids_of(LONG[-ROOM:], 1))
    assert below.groups[0].texts == (cut, (7, 8), SHORT, (9,))
    assert np.array_equal(found.values, [vector(text) for text in below.groups[0].texts])


async def test_equal_parts_are_computed_once() -> None:
    below = Below()
    half = LONG[:ROOM]
    found = await over(below).embed(TextGroup((half * 2, "z", half + "z" * ROOM)), "chunk")
    first, second = framed(ids_of(half, 1)), framed(ids_of("z" * ROOM, 1))
    assert below.groups[0].texts == (first, "z", second)
    assert found.tokens.tolist() == [2 * LIMIT, 4, 2 * LIMIT]
    unit = vector(first) / np.linalg.norm(vector(first))
    np.testing.assert_allclose(found.values[0], unit, rtol=1e-6)


@pytest.mark.parametrize(
    ("tiers", "tier"),
    [
        ((Tier.L1, Tier.L1), Tier.L1),
        ((Tier.L2, Tier.L1), Tier.L2),
        ((Tier.L1, Tier.COMPUTED), Tier.COMPUTED),
        ((Tier.COMPUTED, Tier.L2), Tier.COMPUTED),
    ],
)
async def test_a_mean_is_as_cached_as_the_farthest_of_its_parts(
    tiers: tuple[Tier, Tier], tier: Tier
) -> None:
    below = Below()
    (fitted,) = await over(below).plan(TextGroup((LONG[: ROOM + 3],)), "chunk")
    below.tiers = dict(zip(fitted.parts, tiers, strict=True))
    found = await over(below).embed(TextGroup((LONG[: ROOM + 3],)), "chunk")
    assert found.tiers.tolist() == [tier]


async def test_parts_that_cancel_out_give_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = iter([1, -1])
    monkeypatch.setattr(f"{__name__}.vector", lambda text: np.full(DIM, next(signs), "f4"))
    found = await over(Below()).embed(TextGroup((LONG[: 2 * ROOM],)), "chunk")
    assert found.values.tolist() == [[0.0] * DIM]


def mean_of_parts(text: str, prompt: str, width: int) -> Float32:
    """What `chunk` is meant to give, in plain words."""
    tokens = ids_of(prompt + text, width)
    if len(tokens) + len(HEAD) + len(TAIL) <= LIMIT:
        return vector(text)
    whole = len(prompt) // width  # a token that has letters of both is the text's
    before, own = tokens[:whole], tokens[whole:]
    room = LIMIT - len(HEAD) - len(TAIL) - whole
    total = np.zeros(DIM)
    for i in range(0, len(own), room):
        piece = own[i : i + room]
        total += len(piece) * vector(framed([*before, *piece])).astype("f8")
    if len(own) <= room:
        return vector(framed([*before, *own]))
    return (total / np.linalg.norm(total)).astype("f4")


@given(st.lists(words, min_size=1, max_size=5), st.text("xyz", max_size=5), st.integers(1, 3))
async def test_chunk_is_the_weighted_mean_at_unit_length(
    texts: list[str], prompt: str, width: int
) -> None:
    distinct = tuple(dict.fromkeys(texts))
    found = await over(Below(width)).embed(TextGroup(distinct, prompt), "chunk")
    wanted = np.array([mean_of_parts(text, prompt, width) for text in distinct])
    np.testing.assert_allclose(found.values, wanted, atol=1e-6)
    assert found.values.dtype == np.float32
    assert not found.truncated.any()


@given(words, st.text("xyz", max_size=5), st.integers(1, 3), st.integers(LIMIT - 1, LIMIT + 2))
async def test_parts_hold_all_of_a_text_once_and_fit(
    text: str, prompt: str, width: int, asked: int
) -> None:
    (fitted,) = await over(Below(width)).plan(TextGroup((text,), prompt), "chunk", asked)
    if fitted.parts == (text,):
        return
    before = len(HEAD) + len(prompt) // width
    inner = [token for part in fitted.parts for token in part[before : -len(TAIL)]]
    assert inner == ids_of(prompt + text, width)[len(prompt) // width :]
    assert sum(fitted.weights) == len(inner)
    assert all(len(part) <= min(asked, LIMIT) for part in fitted.parts)


@given(words, st.text("xyz", max_size=5), st.integers(1, 3))
async def test_cutting_the_start_keeps_the_end(text: str, prompt: str, width: int) -> None:
    (fitted,) = await over(Below(width)).plan(TextGroup((text,), prompt), "start")
    tokens = ids_of(prompt + text, width)
    if len(tokens) + len(HEAD) + len(TAIL) <= LIMIT:
        assert fitted.parts == (text,)
        return
    (part,) = fitted.parts
    assert len(part) == LIMIT
    whole = len(prompt) // width
    kept = LIMIT - len(HEAD) - len(TAIL) - whole
    assert part == framed([*tokens[:whole], *tokens[-kept:]])


async def test_the_group_keeps_what_else_it_says() -> None:
    below = Below()
    group = TextGroup((LONG,), "p", use_cache=False, lane="bulk", timeout_s=3)
    await over(below).embed(group, "start")
    assert below.groups == [replace(group, texts=below.groups[0].texts)]
