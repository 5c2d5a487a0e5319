"""What goes over the wire, and what is made of what comes back. No I/O happens here.

One request is understood by this service and by every other that speaks OpenAI's dialect: it
prefers vectors as raw bytes, asks for base64 where JSON is all there is, and takes decimals too.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from embedserve_client.errors import HTTPError, Overloaded, ParseError, ServerError
from embedserve_client.space import Space
from embedserve_client.vectors import About, Float32, Vectors

#: How vectors travel: as their bytes and nothing else, or as base64 in JSON.
Encoding = Literal["raw", "base64"]
#: Who waits: a person for `interactive` texts, nobody for each single `bulk` one.
Lane = Literal["interactive", "bulk"]
#: What becomes of a text that is longer than the model takes: its end or its start is left out, it
#: is an error, or its parts are embedded and their weighted mean stands for it.
Overflow = Literal["end", "start", "error", "chunk"]

_RAW = "application/octet-stream"
_ACCEPT = {"raw": f"{_RAW}, application/json;q=0.5", "base64": "application/json"}
_TRUNCATE = {"start": "START", "error": "NONE"}


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, without its address."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, read whole; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Options:
    """How texts are to be embedded, beside the texts."""

    model: str | None = None
    input_type: str | None = None
    dimensions: int | None = None
    lane: Lane | None = None  #: None: by the number of texts
    overflow: Overflow = "end"
    use_cache: bool = True


def embed_request(texts: Sequence[str], options: Options, encoding: Encoding) -> Request:
    """Asks for the vectors of texts."""
    body: dict[str, Any] = {"input": list(texts), "encoding_format": "base64"}
    for name in ("model", "input_type", "dimensions"):
        if (value := getattr(options, name)) is not None:
            body[name] = value
    if options.overflow in _TRUNCATE:
        body["truncate"] = _TRUNCATE[options.overflow]
    if options.overflow == "chunk":
        body["chunk"] = True
    if not options.use_cache:
        body["use_cache"] = False
    headers = {"content-type": "application/json", "accept": _ACCEPT[encoding]}
    if options.lane is not None:
        headers["x-priority"] = options.lane
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
    return Request("POST", "/v1/embeddings", headers, content)


def refusal(reply: Reply) -> HTTPError | None:
    """The error that a reply stands for; None: it is a good one."""
    if 200 <= reply.status < 300:
        return None
    kind = ServerError if reply.status >= 500 else HTTPError
    message, about = _told(reply)
    if reply.status == 429:
        overloaded = Overloaded(message, 429, **about)
        overloaded.retry_after_s = _seconds(reply.headers.get("retry-after"))
        return overloaded
    return kind(message, reply.status, **about)


def _told(reply: Reply) -> tuple[str, dict[str, Any]]:
    """The message in an error's body, whatever the dialect, and what else it tells."""
    about: dict[str, Any] = {"request_id": reply.headers.get("x-request-id")}
    try:
        body = json.loads(reply.content)
    except ValueError:
        text = reply.content[:500].decode("utf-8", "replace").strip()
        return text or "The service gave no reason", about
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        about["server_code"], about["param"] = error.get("code"), error.get("param")
        error = error.get("message") or error.get("detail") or error
    return str(error)[:2000], about


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None


def read_vectors(reply: Reply, n: int) -> Vectors:
    """The n vectors in a good reply, shape (n, dim).

    Raises:
        ParseError: they aren't there, aren't n, are of unlike width, or not finite.
    """
    if reply.headers.get("content-type", "").startswith(_RAW):
        values, model, tokens = _raw(reply, n)
    else:
        values, model, tokens = _json(reply, n)
    if not np.isfinite(values).all():
        raise ParseError("The service sent a vector that isn't finite.")
    about = About(
        space_of(reply), model, "service", tokens, places(reply.headers.get("x-truncated-inputs"))
    )
    return Vectors(values, about)


def space_of(reply: Reply) -> Space | None:
    """The space that a reply names.

    Raises:
        ParseError: what it names isn't one.
    """
    named = reply.headers.get("x-embedding-space")
    try:
        return None if named is None else Space.parse(named)
    except ValueError as error:
        raise ParseError(str(error)) from None


def places(header: str | None) -> tuple[int, ...]:
    """Reads `0,4-7`.

    Raises:
        ParseError: it isn't of that form.
    """
    found: list[int] = []
    try:
        for one in header.split(",") if header else ():
            first, _, last = one.partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ParseError(f"The service names places as {header!r}; they can't be read.") from None
    return tuple(found)


def _raw(reply: Reply, n: int) -> tuple[Float32, str, int]:
    try:
        rows, dim = map(int, reply.headers["x-embedding-shape"].split(","))
        values = np.frombuffer(reply.content, dtype="<f4").reshape(rows, dim)
    except (KeyError, ValueError):
        raise ParseError(
            f"{len(reply.content)} bytes came that aren't vectors of the shape "
            f"{reply.headers.get('x-embedding-shape')}."
        ) from None
    if rows != n:
        raise ParseError(f"{rows} vectors came for {n} texts.")
    tokens = reply.headers.get("x-embedding-tokens", "0")
    return values, reply.headers.get("x-embedding-model", ""), int(tokens)


def _json(reply: Reply, n: int) -> tuple[Float32, str, int]:
    try:
        body = json.loads(reply.content)
        rows: list[Any] = [None] * len(body["data"])
        for item in body["data"]:
            rows[item["index"]] = _row(item["embedding"])
        if len(rows) != n:
            raise ParseError(f"{len(rows)} vectors came for {n} texts.")
        values = np.stack(rows)
        tokens = int((body.get("usage") or {}).get("prompt_tokens") or 0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, binascii.Error) as error:
        raise ParseError(f"The answer holds no {n} vectors: {error!r}.") from None
    if values.ndim != 2:
        raise ParseError("The answer holds something else than vectors.")
    return values, str(body.get("model", "")), tokens


def _row(embedding: Any) -> Float32:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return np.array(embedding, dtype=np.float32)


def read_object(reply: Reply) -> dict[str, Any]:
    """The JSON object in a reply.

    Raises:
        ParseError: there is none.
    """
    try:
        body = json.loads(reply.content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ParseError("The service's answer isn't a JSON object. Is the address right?")
    return body
