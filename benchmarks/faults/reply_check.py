"""Compares replies with the vectors that the service returned before any fault."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import orjson

from serve_app.types import Float32

from .apis import Api, is_proxy_error
from .ledger import Kind

#: At bf16 a vector that is computed in another batch differs by up to 2e-3 in each component.
_MIN_COSINE = 0.999
_OK = 200
#: Statuses that refuse a request rather than fail it; whether each needs `Retry-After`.
_REFUSALS = {429: True, 503: True, 504: False}
_SPACE = "x-embedding-space"
_RETRY_AFTER = "retry-after"


class Reply(NamedTuple):
    """A complete response; the names of headers are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until the client may try again, if the reply refuses the request and says so."""
        value = self.headers.get(_RETRY_AFTER, "")
        return float(value) if self.status in _REFUSALS and value.isdecimal() else None


class ReplyCheck:
    """Decides whether a reply is right, for requests of texts that have known vectors."""

    def __init__(self, vectors: Float32, space: str) -> None:
        """Creates a check.

        Args:
            vectors: of shape (texts, dim): the vector of each text, of length 1.
            space: the space of these vectors.
        """
        self._vectors = {space: vectors}

    def accept(self, vectors: Float32, space: str) -> None:
        """Adds the vectors of another space, which may come instead if the reply names it."""
        self._vectors[space] = vectors

    def judge(
        self, api: Api, texts: Sequence[int], reply: Reply, unknown: int = 0
    ) -> tuple[Kind, str]:
        """Returns how a request ended and, unless it is right, what is wrong.

        Args:
            api: the API of the request.
            texts: the indexes of its texts.
            reply: the reply.
            unknown: number of further texts whose vectors are not known.
        """
        if reply.status == _OK:
            return self._judge_vectors(api, texts, reply, unknown)
        if reply.status not in _REFUSALS:
            return Kind.FAILED, f"status {reply.status}"
        if _REFUSALS[reply.status] and reply.retry_after_s is None:
            return Kind.FAILED, f"status {reply.status} without Retry-After"
        if not _has_error(api, reply.body):
            return Kind.FAILED, f"status {reply.status} without an error of the API"
        return Kind.REFUSED, f"status {reply.status}"

    def _judge_vectors(
        self, api: Api, texts: Sequence[int], reply: Reply, unknown: int
    ) -> tuple[Kind, str]:
        try:
            vectors = np.array(api.vectors(orjson.loads(reply.body)), np.float32)
        except (ValueError, KeyError, TypeError):
            return Kind.FAILED, "status 200 with a body that isn't one of the API"
        space = reply.headers.get(_SPACE)
        if space not in self._vectors:
            return Kind.WRONG, f"the space {space} in the header"
        expected = self._vectors[space][[*texts]]
        shape = (len(texts) + unknown, expected.shape[1])
        if vectors.shape != shape:
            return Kind.WRONG, f"vectors of shape {vectors.shape}, not {shape}"
        # NaN compares as false, so that it is wrong.
        cosines = np.einsum("ij,ij->i", vectors[: len(texts)], expected)
        if not np.all(cosines >= _MIN_COSINE):
            return Kind.WRONG, "other vectors"
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2):
            return Kind.WRONG, "vectors of another length"
        return Kind.RIGHT, ""


def _has_error(api: Api, body: bytes) -> bool:
    try:
        reply = orjson.loads(body)
    except ValueError:
        return False
    for check in (api.has_error, is_proxy_error):
        try:
            if check(reply):
                return True
        except (KeyError, TypeError):
            continue
    return False
