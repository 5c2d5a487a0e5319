"""What a model computes from: texts, token ids, pairs of texts, images."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class QueryText:
    """A text that a model with two encoders, such as ColBERT, encodes as a query."""

    text: str

    def __len__(self) -> int:
        return len(self.text)

    def with_prompt(self, prompt: str) -> Self:
        """Returns the text with the prompt prepended."""
        return type(self)(prompt + self.text) if prompt else self

    def key_parts(self) -> list[bytes]:
        """Returns what identifies the input in a cache key."""
        return [b"query", self.text.encode()]


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that a cross-encoder reads together: a query and a document."""

    query: str
    document: str

    def __len__(self) -> int:
        return len(self.query) + len(self.document)

    @property
    def texts(self) -> tuple[str, str]:
        """Both texts."""
        return self.query, self.document

    def with_prompt(self, prompt: str) -> Self:
        """Returns the pair with the prompt prepended to the query."""
        return type(self)(prompt + self.query, self.document) if prompt else self

    def key_parts(self) -> list[bytes]:
        """Returns what identifies the input in a cache key."""
        return [b"pair", self.query.encode(), self.document.encode()]


@dataclass(frozen=True, slots=True)
class Image:
    """An image file that has been checked: its format is supported and its size within limits."""

    data: bytes

    def __len__(self) -> int:
        return len(self.data)

    def with_prompt(self, prompt: str) -> Self:
        """Returns the image itself: prompts are for texts."""
        return self

    def key_parts(self) -> list[bytes]:
        """Returns what identifies the input in a cache key."""
        return [b"image", self.data]


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """The URL of an image, which the service fetches before it computes anything."""

    url: str
    field: str  #: the field of the request that holds it, for errors


#: An input of a model: a text, token ids of the model's vocabulary (special tokens included), or
#: one of the classes above.
Input = str | tuple[int, ...] | QueryText | TextPair | Image

#: An input of a request.
RequestInput = Input | ImageUrl

_CHARS_PER_TOKEN = 4


def with_prompt(value: Input, prompt: str) -> Input:
    """Returns an input with the prompt prepended to its text; token ids and images have none."""
    if not prompt or isinstance(value, tuple):
        return value
    return prompt + value if isinstance(value, str) else value.with_prompt(prompt)


def estimated_tokens(value: RequestInput) -> int:
    """Returns the number of tokens without a tokenizer, from an average length.

    0 for images, whose cost only the model knows.
    """
    if isinstance(value, str | QueryText | TextPair):
        return len(value) // _CHARS_PER_TOKEN + 1
    return len(value) if isinstance(value, tuple) else 0
