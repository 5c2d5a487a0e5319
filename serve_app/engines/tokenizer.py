"""The tokenizer of a trained model: texts -> token ids -> padded arrays.

Wraps the `tokenizers` library. The wrapper adds what an engine needs next to it: the check of token
ids that a client sends, padding to the model's inputs, and files for a prepared model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serve_app.engines.base import TokenIds
from serve_app.errors import InvalidRequest, ModelSourceError
from serve_app.inputs import Image, Input, QueryText, TextPair
from serve_app.tasks import ModelKind
from serve_app.types import Float32, Tokenization

_TOKENIZER, _PADDING = "tokenizer.json", "padding.json"
#: How many ids of a row an error message shows.
_MAX_IDS_SHOWN = 6
#: The types of inputs that each kind of model takes, besides images.
INPUT_TYPES: Mapping[ModelKind, tuple[type, ...]] = {
    "dense": (str, tuple),
    "cross-encoder": (str, tuple, TextPair),
    "sparse": (str, tuple),
    "multi-vector": (str, tuple, QueryText),
}
#: Names of the types of inputs, for error messages.
_INPUT_NAMES = {
    str: "texts",
    tuple: "token ids",
    TextPair: "pairs of texts",
    QueryText: "queries apart from documents",
    Image: "images",
}
_TOKEN_IDS_HELP = (
    "Token ids must be the model's own, with its special tokens. If another tokenizer made these, "
    "send the text itself; with LangChain's OpenAIEmbeddings set "
    "`check_embedding_ctx_length=False`; or set `token_ids: cl100k_base` in the Ingress' "
    "`user_config`."
)


@dataclass(frozen=True, slots=True)
class Padding:
    """How a model takes texts of different lengths in one array."""

    pad_id: int
    left: bool  #: whether padding comes before the text
    inputs: tuple[str, ...]  #: names of the input arrays, in the model's order


class TextTokenizer:
    """Encodes texts, truncated to the model's limit, and pads batches.

    Each engine has its own instance, because truncation is mutable state of a tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        padding: Padding,
        accepts: tuple[type, ...] = (str, tuple),
    ) -> None:
        """Wraps a tokenizer that truncates to the model's limit, and turns its padding off.

        Args:
            tokenizer: the tokenizer.
            padding: how the model takes texts of different lengths.
            accepts: the types of inputs that the model takes.
        """
        tokenizer.no_padding()  # padding would pass for special tokens at the end of each text
        self._tokenizer = tokenizer
        self._accepts = accepts
        self._max_tokens = int((tokenizer.truncation or {})["max_length"])
        self.padding = padding
        self._prefix, self._suffix = _special_tokens_around(tokenizer)

    @classmethod
    def from_transformers(
        cls, tokenizer: Any, max_tokens: int, accepts: tuple[type, ...] = (str, tuple)
    ) -> Self:
        """Copies a tokenizer of the transformers library; the copy truncates to `max_tokens`.

        Raises:
            ModelSourceError: it isn't a fast tokenizer.
        """
        if not tokenizer.is_fast:
            raise ModelSourceError("The model has no fast tokenizer (`tokenizer.json`).")
        copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        copy.enable_truncation(max_tokens)
        supported = ("input_ids", "attention_mask", "token_type_ids")
        return cls(
            copy,
            Padding(
                pad_id=tokenizer.pad_token_id,
                left=tokenizer.padding_side == "left",
                inputs=tuple(name for name in supported if name in tokenizer.model_input_names),
            ),
            accepts,
        )

    @classmethod
    def from_static(cls, tokenizer: Tokenizer, max_tokens: int) -> Self:
        """Copies the tokenizer of a static model, which adds no special tokens."""
        settings = orjson.loads(tokenizer.to_str())
        copy = Tokenizer.from_str(orjson.dumps(settings | {"post_processor": None}).decode())
        copy.enable_truncation(max_tokens)
        return cls(copy, Padding(pad_id=0, left=False, inputs=("input_ids",)))

    @classmethod
    def load(cls, folder: Path, accepts: tuple[type, ...] = (str, tuple)) -> Self:
        """Reads a tokenizer that `save` wrote."""
        padding = orjson.loads((folder / _PADDING).read_bytes())
        padding["inputs"] = tuple(padding["inputs"])
        return cls(Tokenizer.from_file(str(folder / _TOKENIZER)), Padding(**padding), accepts)

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of the `tokenizers` library."""
        return self._tokenizer

    def save(self, folder: Path) -> None:
        """Writes the tokenizer with its truncation and padding into a folder."""
        self._tokenizer.save(str(folder / _TOKENIZER))
        (folder / _PADDING).write_bytes(orjson.dumps(asdict(self.padding)))

    def encode(self, inputs: Sequence[Input]) -> list[TokenIds]:
        """Returns each input as token ids with special tokens, truncated to the model's limit.

        Inputs that are token ids already are checked and truncated. Of a pair the longer text is
        truncated first.

        Raises:
            InvalidRequest: token ids are not the model's own, or the model doesn't take inputs of
                this type. No input was encoded.
        """
        if {*map(type, inputs)} != {str}:
            return self._encode_mixed(inputs)
        return [
            TokenIds(encoding.ids, bool(encoding.overflowing))
            for encoding in self._tokenizer.encode_batch_fast(list(inputs))
        ]

    def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Tokenization]:
        """Returns the tokens of each text, not truncated."""
        encodings = self._untruncated.encode_batch(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [
            Tokenization(e.ids, e.tokens, list(map(bool, e.special_tokens_mask)), e.offsets)
            for e in encodings
        ]

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Returns the text of each row of token ids.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
        """
        for i, row in enumerate(rows):
            if not self._in_vocabulary(row):
                raise InvalidRequest(f"Row {i}: {self._vocabulary_error(row)}", "ids")
        decoded: list[str] = self._tokenizer.decode_batch(
            list(map(list, rows)), skip_special_tokens=skip_special_tokens
        )
        return decoded

    def _encode_mixed(self, inputs: Sequence[Input]) -> list[TokenIds]:
        for value in inputs:
            if not isinstance(value, self._accepts):
                names = " or ".join(_INPUT_NAMES[accepted] for accepted in self._accepts)
                raise InvalidRequest(
                    f"The model doesn't take {_INPUT_NAMES[type(value)]}. It takes {names}.",
                    "texts",
                )
        checked = iter([self._check_ids(ids) for ids in inputs if isinstance(ids, tuple)])
        texts = [
            (value.query, value.document) if isinstance(value, TextPair) else value
            for value in inputs
            if not isinstance(value, tuple)
        ]
        encoded = (
            TokenIds(
                encoding.ids,
                bool(encoding.overflowing),
                encoding.type_ids if isinstance(text, tuple) else None,
            )
            for text, encoding in zip(texts, self._tokenizer.encode_batch_fast(texts), strict=True)
        )
        return [next(checked if isinstance(value, tuple) else encoded) for value in inputs]

    def _check_ids(self, ids: tuple[int, ...]) -> TokenIds:
        """Returns token ids that a client sent, truncated to the model's limit.

        The special tokens around a text are the only sign that ids are the model's. Most ids of
        other tokenizers are inside the vocabulary as well and would get another text's vector.

        Raises:
            InvalidRequest: they are not the model's own.
        """
        prefix, suffix = self._prefix, self._suffix
        if not ids:
            raise InvalidRequest(f"A list of token ids is empty. {_TOKEN_IDS_HELP}", "texts")
        if not self._in_vocabulary(ids):
            raise InvalidRequest(f"{self._vocabulary_error(ids)} {_TOKEN_IDS_HELP}", "texts")
        framed = ids[: len(prefix)] == prefix and ids[len(ids) - len(suffix) :] == suffix
        if not framed or len(ids) < len(prefix) + len(suffix):
            expected = [
                f"{verb} with {', '.join(map(self._describe_token, special))}"
                for verb, special in (("begin", prefix), ("end", suffix))
                if special
            ]
            raise InvalidRequest(
                f"The token ids {_format_ids(ids)} don't {' and '.join(expected)}, as this model's "
                f"do. {_TOKEN_IDS_HELP}",
                "texts",
            )
        if len(ids) <= self._max_tokens:
            return TokenIds(list(ids), truncated=False)
        return TokenIds([*ids[: self._max_tokens - len(suffix)], *suffix], truncated=True)

    def _in_vocabulary(self, ids: Sequence[int]) -> bool:
        return not ids or (min(ids) >= 0 and max(ids) < self._vocab_size)

    def _vocabulary_error(self, ids: Sequence[int]) -> str:
        return (
            f"Not all of the token ids {_format_ids(ids)} are in the model's vocabulary, "
            f"0 to {self._vocab_size - 1}."
        )

    def _describe_token(self, token_id: int) -> str:
        return f"{token_id} ({self._tokenizer.id_to_token(token_id)})"

    @cached_property
    def _vocab_size(self) -> int:
        """One more than the largest id. Smaller ids may be unused."""
        return int(max(self._tokenizer.get_vocab().values())) + 1

    @cached_property
    def _untruncated(self) -> Tokenizer:
        """A copy without truncation. Threads that race for it may create it twice, harmlessly."""
        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.no_truncation()
        return copy

    def pad(
        self, batch: Sequence[TokenIds], *, pad_to_multiple_of: int = 1
    ) -> dict[str, NDArray[np.int64]]:
        """Returns the model's inputs for a batch, in the model's order.

        Returns:
            Arrays of shape (len(batch), length), int64. `length` is that of the longest text,
            rounded up to a multiple of `pad_to_multiple_of` but not beyond the model's limit.
        """
        longest = max(len(tokens.ids) for tokens in batch)
        rounded = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
        length = max(longest, min(rounded, self._max_tokens))
        ids = np.full((len(batch), length), self.padding.pad_id, dtype=np.int64)
        mask, type_ids = np.zeros_like(ids), np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            columns = self._columns(len(tokens.ids), length)
            ids[row, columns] = tokens.ids
            mask[row, columns] = 1 if tokens.attended is None else tokens.attended
            if tokens.type_ids is not None:
                type_ids[row, columns] = tokens.type_ids
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": type_ids}
        return {name: arrays[name] for name in self.padding.inputs}

    @staticmethod
    def concatenate(batch: Sequence[TokenIds]) -> dict[str, NDArray[np.int64]]:
        """Returns a batch without padding, as static models take it.

        Returns:
            `input_ids`, the ids of all texts in a row, and `offsets`, shape (len(batch),): where
            each text begins. int64.
        """
        lengths = [len(tokens.ids) for tokens in batch]
        ids = chain.from_iterable(tokens.ids for tokens in batch)
        return {
            "input_ids": np.fromiter(ids, np.int64, sum(lengths)),
            "offsets": np.cumsum([0, *lengths[:-1]], dtype=np.int64),
        }

    def unpad(self, values: Float32, batch: Sequence[TokenIds]) -> list[Float32]:
        """Removes padding and left-out tokens from an output, shape (len(batch), length, width).

        Returns:
            For each text an array of shape (tokens, width): a copy, so that it doesn't keep the
            whole batch in memory.
        """
        length = values.shape[1]
        return [
            row[self._columns(len(tokens.ids), length)][
                slice(None) if tokens.kept is None else tokens.kept
            ].copy()
            for row, tokens in zip(values, batch, strict=True)
        ]

    def _columns(self, tokens: int, length: int) -> slice:
        """Returns the columns of a padded row that hold its text."""
        return slice(length - tokens, length) if self.padding.left else slice(0, tokens)


def _special_tokens_around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the special tokens that a tokenizer puts before and after each text."""
    encoding = tokenizer.encode("a")
    mask = encoding.special_tokens_mask
    if 0 not in mask:  # no token for the letter, so prefix and suffix can't be told apart
        return (), ()
    first, end = mask.index(0), len(mask) - mask[::-1].index(0)
    return tuple(encoding.ids[:first]), tuple(encoding.ids[end:])


def _format_ids(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:_MAX_IDS_SHOWN]))
    return f"[{shown}, …]" if len(ids) > _MAX_IDS_SHOWN else f"[{shown}]"
