"""Texts to token ids, and token ids to the padded arrays that a model takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serve_app.engine.base import TokenIds
from serve_app.errors import ModelSourceError

_TOKENIZER, _PADDING = "tokenizer.json", "padding.json"


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

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as token ids, special tokens included, cut at the model's limit."""
        return [
            TokenIds(encoding.ids, bool(encoding.overflowing))
            for encoding in self._tokenizer.encode_batch_fast(list(texts))
        ]

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
            n = len(tokens.ids)
            place = slice(longest - n, longest) if self.padding.left else slice(0, n)
            ids[row, place] = tokens.ids
            mask[row, place] = 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: arrays[name] for name in self.padding.inputs}
