"""The wire format: texts → HTTP request, HTTP response → vectors. No I/O.

Requests use OpenAI's embeddings format, so other OpenAI-compatible servers understand them. The
client prefers vectors as raw bytes, requests base64 inside JSON, and accepts decimal numbers too.
"""

import base64
import binascii
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlencode

import numpy as np
import orjson

from embedserve_client.errors import (
    HTTPError,
    ParseError,
    RateLimitError,
    ServerError,
    SpaceConflictError,
)
from embedserve_client.space import Space
from embedserve_client.vectors import Float32, VectorInfo, Vectors

#: The encoding of vectors in a response: raw little-endian float32, or base64 inside JSON.
EncodingFormat = Literal["raw", "base64"]
#: The priority of a request: latency-sensitive or throughput-oriented.
Lane = Literal["interactive", "bulk"]
#: How a text beyond the model's token limit is handled: cut its end or start, fail, or embed it in
#: chunks and return their weighted mean.
Truncation = Literal["end", "start", "error", "chunk"]

_OCTET_STREAM = "application/octet-stream"
_ACCEPT = {"raw": f"{_OCTET_STREAM}, application/json;q=0.5", "base64": "application/json"}
#: Statuses for which RFC 6585 and RFC 9110 define `Retry-After`.
_RETRY_AFTER_STATUSES = (429, 503)
#: The service's code of the 409 for `x-embedding-space`; a 409 of anything else has another one.
SPACE_CONFLICT_CODE = "embedding_space_conflict"
_TRUNCATE = {"start": "START", "error": "NONE"}


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, relative to a base URL."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class EmbedParams:
    """The parameters of an embedding request, other than its texts."""

    model: str | None = None
    input_type: str | None = None
    dimensions: int | None = None
    lane: Lane | None = None  #: None: the service decides by the number of texts
    truncation: Truncation = "end"
    use_cache: bool = True


def embedding_request(
    inputs: list[Any],
    params: EmbedParams,
    encoding_format: EncodingFormat,
    space: Space | None = None,
) -> Request:
    """Builds the request for the vectors of inputs: texts, or objects in Jina's format.

    Args:
        inputs: the texts or objects.
        params: the other parameters.
        encoding_format: of the vectors in the response.
        space: the space that the service's vectors must be comparable with; None: any.
    """
    body = {
        "input": inputs,
        "encoding_format": "base64",
        "model": params.model,
        "input_type": params.input_type,
        "dimensions": params.dimensions,
        "truncate": _TRUNCATE.get(params.truncation),
        "chunk": True if params.truncation == "chunk" else None,
        "use_cache": None if params.use_cache else False,
    }
    return post_request("/v1/embeddings", body, params.lane, _ACCEPT[encoding_format], space)


def tokenize_request(texts: Sequence[str], model: str | None) -> Request:
    """Builds the request for the tokens of texts, in the format of text-embeddings-inference."""
    return post_request("/tokenize", {"inputs": list(texts), "model": model})


def post_request(
    path: str,
    body: Mapping[str, Any],
    lane: Lane | None = None,
    accept: str = "application/json",
    space: Space | None = None,
) -> Request:
    """Builds a request with a JSON body, from which values that are None are left out."""
    headers = {"content-type": "application/json", "accept": accept}
    if lane is not None:
        headers["x-priority"] = lane
    if space is not None:
        headers["x-embedding-space"] = str(space)
    members = {name: value for name, value in body.items() if value is not None}
    content = json.dumps(members, ensure_ascii=False, separators=(",", ":"))
    return Request("POST", path, headers, content.encode("utf-8", "surrogatepass"))


def get_request(path: str, model: str | None) -> Request:
    """Builds the request for the state of the service, or of one of its models."""
    return Request("GET", path if model is None else f"{path}?{urlencode({'model': model})}")


def status_error(response: Response) -> HTTPError | None:
    """Returns the error for the status of a response; None: the request succeeded."""
    if 200 <= response.status < 300:
        return None
    message, details = _parse_error(response)
    cls = ServerError if response.status >= 500 else HTTPError
    if response.status == 429:
        cls = RateLimitError
    elif response.status == 409 and details.get("server_code") == SPACE_CONFLICT_CODE:
        cls = SpaceConflictError
    error = cls(message, response.status, **details)
    if response.status in _RETRY_AFTER_STATUSES:
        error.retry_after_s = _parse_retry_after(response.headers.get("retry-after"))
    return error


def _parse_error(response: Response) -> tuple[str, dict[str, Any]]:
    """Returns the message of an error body in any of the common formats, and its other fields."""
    details: dict[str, Any] = {"request_id": response.headers.get("x-request-id")}
    try:
        body = json.loads(response.content)
    except ValueError:
        text = response.content[:500].decode("utf-8", "replace").strip()
        return text or "The service gave no reason", details
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        details["server_code"], details["param"] = error.get("code"), error.get("param")
        error = error.get("message") or error.get("detail") or error
    return str(error)[:2000], details


def _parse_retry_after(header: str | None) -> float | None:
    """Parses `Retry-After`, in seconds or as a date; returns seconds from now."""
    with suppress(ValueError):
        return max(0.0, float(header or ""))
    with suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(header or "").timestamp() - time.time())
    return None


def parse_vectors(response: Response, n: int) -> Vectors:
    """Parses a successful response to a request with n texts; returns shape (n, dim).

    Raises:
        ParseError: the response doesn't hold n finite vectors of equal length.
    """
    if response.headers.get("content-type", "").startswith(_OCTET_STREAM):
        values, model, tokens = _parse_raw(response, n)
    else:
        values, model, tokens = _parse_json(response, n)
    if not np.isfinite(values).all():
        raise ParseError("The service returned a vector with NaN or infinity.")
    info = VectorInfo(
        parse_space(response),
        model,
        "service",
        tokens,
        _parse_positions(response.headers.get("x-truncated-inputs")),
        _parse_cached(response),
        _parse_cost(response),
    )
    return Vectors(values, info)


def _parse_cached(response: Response) -> int | None:
    """Parses the hits of `x-cache`, such as `hits=2; misses=1; tier=l1`."""
    hits = re.match(r"hits=(\d+);", response.headers.get("x-cache", ""))
    return None if hits is None else int(hits[1])


def _parse_cost(response: Response) -> float | None:
    """Parses `x-cost-usd`, such as `0.000000020`."""
    cost = re.fullmatch(r"\d+\.\d+", response.headers.get("x-cost-usd", ""))
    return None if cost is None else float(cost[0])


def parse_space(response: Response) -> Space | None:
    """Returns the space that a response reports; None: none.

    Raises:
        ParseError: the header is malformed.
    """
    header = response.headers.get("x-embedding-space")
    try:
        return None if header is None else Space.parse(header)
    except ValueError as error:
        raise ParseError(str(error)) from None


def _parse_positions(header: str | None) -> tuple[int, ...]:
    """Parses comma-separated positions and ranges such as `0,4-7`."""
    positions: list[int] = []
    try:
        for item in header.split(",") if header else ():
            first, _, last = item.partition("-")
            positions += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ParseError(f"The header x-truncated-inputs is malformed: {header!r}.") from None
    return tuple(positions)


def _parse_raw(response: Response, n: int) -> tuple[Float32, str, int]:
    try:
        rows, dim = map(int, response.headers["x-embedding-shape"].split(","))
        values = np.frombuffer(response.content, dtype="<f4").reshape(rows, dim)
    except (KeyError, ValueError):
        raise ParseError(
            f"The response has {len(response.content)} bytes, which don't match its shape "
            f"{response.headers.get('x-embedding-shape')}."
        ) from None
    if rows != n:
        raise ParseError(f"The service returned {rows} vectors for {n} texts.")
    tokens = response.headers.get("x-embedding-tokens", "0")
    return values, response.headers.get("x-embedding-model", ""), int(tokens)


def _parse_json(response: Response, n: int) -> tuple[Float32, str, int]:
    try:
        body = json.loads(response.content)
        rows: list[Any] = [None] * len(body["data"])
        for item in body["data"]:
            rows[item["index"]] = _decode_vector(item["embedding"])
        if len(rows) != n:
            raise ParseError(f"The service returned {len(rows)} vectors for {n} texts.")
        values = np.stack(rows)
        tokens = int((body.get("usage") or {}).get("prompt_tokens") or 0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, binascii.Error) as error:
        raise ParseError(f"The response doesn't hold {n} vectors: {error!r}.") from None
    if values.ndim != 2:
        raise ParseError("The response doesn't hold vectors.")
    return values, str(body.get("model", "")), tokens


def _decode_vector(embedding: Any) -> Float32:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return np.array(embedding, dtype=np.float32)


def parse_tokens(response: Response, n: int) -> list[list[tuple[int, bool]]]:
    """Parses a response to `tokenize_request`: for each text, ids and whether they are special.

    Raises:
        ParseError: the response doesn't hold the tokens of n texts.
    """
    try:
        rows = [
            [(int(token["id"]), bool(token["special"])) for token in row]
            for row in json.loads(response.content)
        ]
        if len(rows) != n:
            raise ParseError(f"The service returned the tokens of {len(rows)} texts for {n} texts.")
    except (ValueError, KeyError, TypeError) as error:
        raise ParseError(f"The response doesn't hold the tokens of {n} texts: {error!r}.") from None
    return rows


def parse_object(response: Response) -> dict[str, Any]:
    """Parses a response whose body is a JSON object.

    Raises:
        ParseError: the body is anything else.
    """
    try:
        body = orjson.loads(response.content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ParseError("The response isn't a JSON object. Is the URL right?")
    return body
