"""Texts to token ids, and token ids to the padded arrays that a model takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serve_app.engines.base import TokenIds
from serve_app.errors import InvalidRequest, ModelSourceError
from serve_app.types import Float32, Input, Tokenization

_TOKENIZER, _PADDING = "tokenizer.json", "padding.json"
#: Token ids that an error quotes of a row.
_QUOTED = 6
_MENDING = (
    "Token ids must be the model's own, with its special tokens. If another tokenizer made these, "
    "send the text itself; with LangChain's OpenAIEmbeddings set "
    "`check_embedding_ctx_length=False`; or set `token_ids: cl100k_base` in the Ingress' "
    "`user_config`."
)


@dataclass(frozen=True, slots=True)
class Padding:
    """How a model wants rows of unlike length in one array."""

    pad_id: int
    left: bool  #: whether the filling stands before the text
    inputs: tuple[str, ...]  #: names of the arrays, in the model's order


class TextTokenizer:
    """A tokenizer of its own for one engine: padding and truncation are mutable state of it."""

    def __init__(self, tokenizer: Tokenizer, padding: Padding) -> None:
        """Takes a tokenizer that cuts at the model's limit and doesn't pad."""
        self._tokenizer = tokenizer
        self._max_tokens = int((tokenizer.truncation or {})["max_length"])
        self.padding = padding
        self._head, self._tail = _frame(tokenizer)

    @classmethod
    def of(cls, tokenizer: Any, max_tokens: int) -> Self:
        """A copy of a transformers tokenizer that cuts at `max_tokens`.

        Raises:
            ModelSourceError: it isn't a fast one.
        """
        if not tokenizer.is_fast:
            raise ModelSourceError("The model has no fast tokenizer (`tokenizer.json`).")
        own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        own.no_padding()
        own.enable_truncation(max_tokens)
        known = ("input_ids", "attention_mask", "token_type_ids")
        return cls(
            own,
            Padding(
                pad_id=tokenizer.pad_token_id,
                left=tokenizer.padding_side == "left",
                inputs=tuple(name for name in known if name in tokenizer.model_input_names),
            ),
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` put into a folder."""
        padding = orjson.loads((folder / _PADDING).read_bytes())
        padding["inputs"] = tuple(padding["inputs"])
        return cls(Tokenizer.from_file(str(folder / _TOKENIZER)), Padding(**padding))

    def save(self, folder: Path) -> None:
        """Writes it into a folder, truncation included."""
        self._tokenizer.save(str(folder / _TOKENIZER))
        (folder / _PADDING).write_bytes(orjson.dumps(asdict(self.padding)))

    def tokenize(self, texts: Sequence[Input]) -> list[TokenIds]:
        """The texts as token ids, special tokens included, cut at the model's limit.

        Raises:
            InvalidRequest: token ids among them are not the model's own.
        """
        if tuple in map(type, texts):
            return self._tokenize_mixed(texts)
        return [
            TokenIds(encoding.ids, bool(encoding.overflowing))
            for encoding in self._tokenizer.encode_batch_fast(list(texts))
        ]

    def spell(self, texts: Sequence[str], *, special: bool) -> list[Tokenization]:
        """How texts are spelled, not cut; `special`: with special tokens around them."""
        encodings = self._uncut.encode_batch(list(texts), add_special_tokens=special)
        return [
            Tokenization(e.ids, e.tokens, list(map(bool, e.special_tokens_mask)), e.offsets)
            for e in encodings
        ]

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """The texts that rows of token ids stand for.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
        """
        for i, row in enumerate(rows):
            if not self._knows(row):
                raise InvalidRequest(f"Row {i}: {self._unknown(row)}", "ids")
        decoded: list[str] = self._tokenizer.decode_batch(
            list(map(list, rows)), skip_special_tokens=skip_special
        )
        return decoded

    def _tokenize_mixed(self, texts: Sequence[Input]) -> list[TokenIds]:
        given = iter([self._take(text) for text in texts if not isinstance(text, str)])
        read = iter(self.tokenize([text for text in texts if isinstance(text, str)]))
        return [next(read if isinstance(text, str) else given) for text in texts]

    def _take(self, ids: tuple[int, ...]) -> TokenIds:
        """Token ids of the model's own, as they are given but cut at its limit.

        Only the frame of special tokens tells those of other tokenizers, whose numbers are mostly
        inside the vocabulary and would get a vector of some other text.

        Raises:
            InvalidRequest: they are not the model's own.
        """
        head, tail = self._head, self._tail
        if not ids:
            raise InvalidRequest(f"A list of token ids is empty. {_MENDING}", "texts")
        if not self._knows(ids):
            raise InvalidRequest(f"{self._unknown(ids)} {_MENDING}", "texts")
        framed = ids[: len(head)] == head and ids[len(ids) - len(tail) :] == tail
        if not framed or len(ids) < len(head) + len(tail):
            places = [
                f"{place} with {', '.join(map(self._named, special))}"
                for place, special in (("begin", head), ("end", tail))
                if special
            ]
            raise InvalidRequest(
                f"The token ids {_quote(ids)} don't {' and '.join(places)}, as this model's do. "
                f"{_MENDING}",
                "texts",
            )
        if len(ids) <= self._max_tokens:
            return TokenIds(list(ids), truncated=False)
        return TokenIds([*ids[: self._max_tokens - len(tail)], *tail], truncated=True)

    def _knows(self, ids: Sequence[int]) -> bool:
        return not ids or (min(ids) >= 0 and max(ids) < self._vocabulary)

    def _unknown(self, ids: Sequence[int]) -> str:
        return (
            f"Not all of the token ids {_quote(ids)} are in the model's vocabulary, "
            f"0 to {self._vocabulary - 1}."
        )

    def _named(self, special: int) -> str:
        return f"{special} ({self._tokenizer.id_to_token(special)})"

    @cached_property
    def _vocabulary(self) -> int:
        """One more than its greatest id; there may be holes below."""
        return int(max(self._tokenizer.get_vocab().values())) + 1

    @cached_property
    def _uncut(self) -> Tokenizer:
        """A copy that cuts nothing. Threads that ask for it first, together, may make two."""
        own = Tokenizer.from_str(self._tokenizer.to_str())
        own.no_truncation()
        return own

    def pad(self, batch: Sequence[TokenIds], *, multiple: int = 1) -> dict[str, NDArray[np.int64]]:
        """The model's inputs, each of shape (len(batch), longest), int64, in its order.

        `longest` is that of the batch, or the next multiple of `multiple`; the limit of the model
        is not passed.
        """
        longest = max(len(tokens.ids) for tokens in batch)
        longest = max(longest, min(-(-longest // multiple) * multiple, self._max_tokens))
        ids = np.full((len(batch), longest), self.padding.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            place = self._place(len(tokens.ids), longest)
            ids[row, place] = tokens.ids
            mask[row, place] = 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: arrays[name] for name in self.padding.inputs}

    def unpad(self, values: Float32, batch: Sequence[TokenIds]) -> list[Float32]:
        """Of each text in a padded batch, shape (len(batch), longest, width), what is its own.

        Copies, so that none of them holds the whole batch.
        """
        longest = values.shape[1]
        return [
            row[self._place(len(tokens.ids), longest)].copy()
            for row, tokens in zip(values, batch, strict=True)
        ]

    def _place(self, n: int, longest: int) -> slice:
        return slice(longest - n, longest) if self.padding.left else slice(0, n)


def _frame(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer puts before and after every text; mostly one each."""
    word = tokenizer.encode("a")
    mask = word.special_tokens_mask
    if 0 not in mask:  # it reads nothing in the letter: there is no telling
        return (), ()
    first, behind = mask.index(0), len(mask) - mask[::-1].index(0)
    return tuple(word.ids[:first]), tuple(word.ids[behind:])


def _quote(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:_QUOTED]))
    return f"[{shown}, …]" if len(ids) > _QUOTED else f"[{shown}]"
