"""Texts that are longer than the model takes, where their end isn't what is to be left out."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.types import (
    Float32,
    Input,
    TextGroup,
    Tier,
    Tokenization,
    Truncation,
    VectorRow,
    Vectors,
)

#: How the tokenizer spells texts, special tokens included.
Spell = Callable[[tuple[str, ...]], Awaitable[Sequence[Tokenization]]]


class Chunks(NamedTuple):
    """What is embedded for one text."""

    parts: tuple[Input, ...]  #: the text itself, where it is short enough, or token ids
    weights: tuple[int, ...]  #: of each part, its tokens without prompt and special tokens
    truncated: bool  #: whether something of the text is in none of them


class Truncator:
    """Cuts texts where a job wants them cut, and puts vectors of parts together."""

    def __init__(
        self,
        spell: Spell,
        embed: Callable[[TextGroup], Awaitable[Vectors]],
        max_tokens: int,
    ) -> None:
        """Stands before the next tier.

        Args:
            spell: asks the tokenizer.
            fetch: the next tier.
            max_tokens: what the model takes, special tokens included.
        """
        self._spell = spell
        self._embed = embed
        self._max_tokens = max_tokens

    async def embed(
        self, group: TextGroup, truncation: Truncation, max_tokens: int | None = None
    ) -> Vectors:
        """Vectors of a group's texts.

        With `chunk` that of a long text is the mean of its parts', weighted by their tokens, at
        unit length. Token ids are left to the engine, which cuts their end.

        Args:
            group: the texts.
            overflow: what becomes of long ones.
            max_tokens: what counts as long; None: what the model takes.

        Raises:
            InvalidRequest: the limit leaves no room for a text.
            EmbedServeError: whatever the tokenizer or the next tier raises.
        """
        fitted = await self.plan(group, truncation, max_tokens)
        places: dict[Input, int] = {}
        for one in fitted:
            for part in one.parts:
                places.setdefault(part, len(places))
        found = await self._embed(replace(group, texts=tuple(places)))
        rows = found.rows()
        return Vectors.from_rows(
            [_joined([rows[places[part]] for part in one.parts], one) for one in fitted],
            found.timings,
        )

    async def plan(
        self, group: TextGroup, truncation: Truncation, max_tokens: int | None = None
    ) -> list[Chunks]:
        """For each of a group's texts what is to be embedded for it."""
        limit = min(max_tokens or self._max_tokens, self._max_tokens)
        texts = tuple(text for text in group.texts if isinstance(text, str))
        prompted = tuple(group.prompt + text for text in texts)
        spelled = iter(await self._spell(prompted) if prompted else ())
        return [
            _fit(text, next(spelled), len(group.prompt), truncation, limit)
            if isinstance(text, str)
            else Chunks((text,), (1,), False)
            for text in group.texts
        ]


def _fit(
    text: str, spelling: Tokenization, prompt: int, truncation: Truncation, limit: int
) -> Chunks:
    ids = spelling.ids
    if len(ids) <= limit:
        return Chunks((text,), (len(ids),), False)
    own = [
        i
        for i, (special, (_, stop)) in enumerate(
            zip(spelling.special, spelling.offsets, strict=True)
        )
        if not special and stop > prompt
    ]
    first, last = (own[0], own[-1] + 1) if own else (0, len(ids))
    head, inner, tail = ids[:first], ids[first:last], ids[last:]
    room = limit - len(head) - len(tail)
    if room < 1:
        raise InvalidRequest(
            f"{limit} tokens leave no room for a text: prompt and special tokens alone are "
            f"{len(head) + len(tail)}.",
            "max_tokens",
        )
    if truncation == "chunk":
        pieces = [inner[i : i + room] for i in range(0, len(inner), room)]
    else:
        pieces = [inner[-room:] if truncation == "start" else inner[:room]]
    return Chunks(
        tuple((*head, *piece, *tail) for piece in pieces),
        tuple(map(len, pieces)),
        truncation != "chunk",
    )


def _joined(rows: Sequence[VectorRow], fitted: Chunks) -> VectorRow:
    if len(rows) == 1:
        return rows[0]._replace(truncated=rows[0].truncated or fitted.truncated)
    mean: Float32 = np.average([row.vector for row in rows], axis=0, weights=fitted.weights)
    computed = any(row.tier == Tier.COMPUTED for row in rows)
    return VectorRow(
        (mean / (np.linalg.norm(mean) or 1.0)).astype(np.float32),
        sum(row.tokens for row in rows),
        fitted.truncated,
        Tier.COMPUTED if computed else max(row.tier for row in rows),
    )
