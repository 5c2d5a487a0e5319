"""Truncation and chunking of texts over the token limit, where the engine's own doesn't suffice.

texts → tokenize → plan the parts of each text → embed all parts → mean of each text's parts
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.inputs import Input
from serve_app.types import Float32, TextGroup, Tier, Tokenization, Truncation, VectorRow, Vectors

#: Tokenizes texts, special tokens included.
Tokenize = Callable[[tuple[str, ...]], Awaitable[Sequence[Tokenization]]]
#: Embeds the texts of a group.
Embed = Callable[[TextGroup], Awaitable[Vectors]]


class Chunks(NamedTuple):
    """The inputs that are embedded for one text."""

    parts: tuple[Input, ...]  #: the text itself if it is within the limit, otherwise token ids
    weights: tuple[int, ...]  #: tokens of each part, without prompt and special tokens
    truncated: bool  #: whether the parts leave out tokens of the text


class Truncator:
    """Splits texts over the token limit as a job demands, and combines the vectors of the parts."""

    def __init__(self, tokenize: Tokenize, embed: Embed, max_tokens: int) -> None:
        """Creates a truncator.

        Args:
            tokenize: tokenizes texts.
            embed: embeds the parts.
            max_tokens: the model's token limit, special tokens included.
        """
        self._tokenize = tokenize
        self._embed = embed
        self._max_tokens = max_tokens

    async def embed(
        self, group: TextGroup, truncation: Truncation, max_tokens: int | None = None
    ) -> Vectors:
        """Returns the vectors of a group's texts.

        With `chunk`, the vector of a text over the limit is the mean of its chunks' vectors,
        weighted by their tokens and normalized. Token ids are passed on; the engine truncates their
        end.

        Args:
            group: the texts.
            truncation: the treatment of texts over the limit.
            max_tokens: token limit, at most the model's; None: the model's.

        Raises:
            InvalidRequest: prompt and special tokens alone reach the limit.
            EmbedServeError: see `tokenize` and `embed`.
        """
        plan = await self.plan(group, truncation, max_tokens)
        rows: dict[Input, int] = {}  # each distinct part → its row in the call
        for chunks in plan:
            for part in chunks.parts:
                rows.setdefault(part, len(rows))
        vectors = await self._embed(replace(group, texts=tuple(rows)))
        computed = vectors.rows()
        return Vectors.from_rows(
            [_mean([computed[rows[part]] for part in chunks.parts], chunks) for chunks in plan],
            vectors.timings,
        )

    async def plan(
        self, group: TextGroup, truncation: Truncation, max_tokens: int | None = None
    ) -> list[Chunks]:
        """Returns the chunks of each of a group's texts; see `embed`."""
        limit = min(max_tokens or self._max_tokens, self._max_tokens)
        texts = tuple(group.prompt + text for text in group.texts if isinstance(text, str))
        tokenizations = iter(await self._tokenize(texts) if texts else ())
        return [
            _split(text, next(tokenizations), len(group.prompt), truncation, limit)
            if isinstance(text, str)
            else Chunks((text,), (1,), False)
            for text in group.texts
        ]


def _split(
    text: str, tokenization: Tokenization, prompt_chars: int, truncation: Truncation, limit: int
) -> Chunks:
    ids = tokenization.ids
    if len(ids) <= limit:
        return Chunks((text,), (len(ids),), False)
    # A token that spans the end of the prompt and the start of the text counts as the text's.
    text_tokens = [
        i
        for i, (is_special, (_, end)) in enumerate(
            zip(tokenization.special_tokens_mask, tokenization.offsets, strict=True)
        )
        if not is_special and end > prompt_chars
    ]
    first, last = (text_tokens[0], text_tokens[-1] + 1) if text_tokens else (0, len(ids))
    head, inner, tail = ids[:first], ids[first:last], ids[last:]
    size = limit - len(head) - len(tail)
    if size < 1:
        raise InvalidRequest(
            f"{limit} tokens leave no room for a text: prompt and special tokens alone are "
            f"{len(head) + len(tail)}.",
            "max_tokens",
        )
    if truncation == "chunk":
        pieces = [inner[i : i + size] for i in range(0, len(inner), size)]
    else:
        pieces = [inner[-size:] if truncation == "start" else inner[:size]]
    return Chunks(
        tuple((*head, *piece, *tail) for piece in pieces),
        tuple(map(len, pieces)),
        truncation != "chunk",
    )


def _mean(rows: Sequence[VectorRow], chunks: Chunks) -> VectorRow:
    """Returns the row of a text, from the rows of its parts."""
    if len(rows) == 1:
        return rows[0]._replace(truncated=rows[0].truncated or chunks.truncated)
    mean: Float32 = np.average([row.vector for row in rows], axis=0, weights=chunks.weights)
    computed = any(row.tier == Tier.COMPUTED for row in rows)
    return VectorRow(
        (mean / (np.linalg.norm(mean) or 1.0)).astype(np.float32),
        sum(row.token_count for row in rows),
        chunks.truncated,
        Tier.COMPUTED if computed else max(row.tier for row in rows),
    )
