"""Checks what a provider returns: as many vectors as texts, in their order, of finite numbers."""

import binascii
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from serve_app.providers.base import EmbeddedTexts
from serve_app.types import Float32


class MalformedReply(Exception):
    """A reply isn't what was asked for. The message says how, as the end of a sentence."""


class Reply(NamedTuple):
    """A reply before it is checked."""

    embeddings: object  #: a list, each base64 of little-endian float32 or a list of numbers
    total_tokens: object


def parse_openai_reply(body: bytes, count: int) -> Reply:
    """Returns the embeddings of a reply in OpenAI's format, ordered by their indices.

    Raises:
        MalformedReply: it isn't JSON, or the indices aren't those of `count` texts.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise MalformedReply("no JSON") from None
    return order_openai_reply(content, count)


def order_openai_reply(content: Any, count: int) -> Reply:
    """Returns the embeddings of decoded JSON in OpenAI's format, ordered by their indices.

    Raises:
        MalformedReply: the indices aren't those of `count` texts.
    """
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise MalformedReply("no list of embeddings")
    by_index = {
        item["index"]: item.get("embedding") for item in data if type(item.get("index")) is int
    }
    if len(data) != count or by_index.keys() != {*range(count)}:
        raise MalformedReply(f"{len(data)} embeddings, not one for each of {count} texts")
    usage = content.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return Reply([by_index[index] for index in range(count)], tokens)


def check_reply(reply: Reply, count: int, dim: int) -> EmbeddedTexts:
    """Returns the vectors of a reply, shape (count, dim).

    Raises:
        MalformedReply: another number of vectors, another width, or no finite numbers.
    """
    if not isinstance(reply.embeddings, Sequence) or isinstance(reply.embeddings, str):
        raise MalformedReply("no list of embeddings")
    if len(reply.embeddings) != count:
        raise MalformedReply(f"{len(reply.embeddings)} embeddings for {count} texts")
    vectors = np.empty((count, dim), dtype=np.float32)
    for row, embedding in zip(vectors, reply.embeddings, strict=True):
        vector = _vector(embedding)
        if len(vector) != dim:
            raise MalformedReply(
                f"vectors of length {len(vector)}, not {dim}; `provider.dimensions` sets the length"
            )
        row[:] = vector
    if not np.isfinite(vectors).all():
        raise MalformedReply("numbers that aren't finite")
    return EmbeddedTexts(vectors, _tokens(reply.total_tokens))


def _vector(embedding: object) -> Float32:
    if isinstance(embedding, str):
        try:
            return np.frombuffer(binascii.a2b_base64(embedding, strict_mode=True), dtype="<f4")
        except ValueError:  # also of characters beyond ASCII, and of other lengths than 4 bytes
            raise MalformedReply("an embedding that isn't base64 of float32") from None
    if isinstance(embedding, list):
        numbers = np.array(embedding, dtype=object if _is_nested(embedding) else None)
        if numbers.ndim == 1 and numbers.dtype.kind in "iuf":
            with np.errstate(over="ignore"):  # infinite numbers are found later
                return numbers.astype(np.float32)
    raise MalformedReply("an embedding that isn't a list of numbers")


def _is_nested(embedding: list[object]) -> bool:
    """Returns whether a list holds lists, which numpy may refuse to put into an array."""
    return any(isinstance(value, list) for value in embedding)


def _tokens(value: object) -> int | None:
    """Returns a number of tokens; None if it isn't one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None
