"""Cohere's wire format: `POST /v2/embed`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import orjson

from serve_app.errors import EmbedServeError, InvalidRequest
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult, Lane
from serve_app.web.endpoint import Call, Endpoint, Refusal
from serve_app.web.fields import OutputType, encode, input_type, one_of, optional, output_type

_PURPOSES = ("search_document", "search_query", "classification", "clustering")


def parse(body: Mapping[str, Any], spec: ModelSpec) -> Call:
    """Reads the body of `POST /v2/embed`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape, or asks for images.
    """
    purpose = one_of(body.get("input_type"), "input_type", _PURPOSES)
    if purpose is None:
        raise InvalidRequest(f"`input_type` is missing: one of {', '.join(_PURPOSES)}.")
    kinds = optional(body, "embedding_types", list, "a list of strings") or ["float"]
    if not all(isinstance(kind, str) for kind in kinds):
        raise InvalidRequest("`embedding_types` must be a list of strings.", "embedding_types")
    outputs = {kind: output_type(kind, "embedding_types") for kind in kinds}
    truncate = one_of(body.get("truncate"), "truncate", ("NONE", "START", "END"))
    if truncate == "START":
        raise InvalidRequest("`truncate: START` isn't served yet. Take END or NONE.", "truncate")
    given = _texts(body)
    job = EmbedJob(
        given,
        model=optional(body, "model", str, "a string"),
        input_type=input_type(purpose, spec),
        dimensions=optional(body, "output_dimension", int, "an integer"),
        lane=_lane(body),
        cut=truncate != "NONE",
    )
    return Call(job, partial(_render, outputs=outputs, texts=given))


def _texts(body: Mapping[str, Any]) -> tuple[str, ...]:
    if body.get("images"):
        raise InvalidRequest("The model takes no images.", "images")
    given = optional(body, "texts", list, "a list of strings")
    if given is not None:
        return tuple(given)
    inputs = optional(body, "inputs", list, "a list of objects")
    if inputs is None:
        raise InvalidRequest("`texts` is missing. Send a list of strings.", "texts")
    return tuple(_content(item) for item in inputs)


def _content(item: Any) -> str:
    """The text of one of `inputs`: `{"content": [{"type": "text", "text": …}]}`."""
    parts = item.get("content") if isinstance(item, dict) else None
    if not isinstance(parts, list):
        raise InvalidRequest("Each of `inputs` must be an object with a list `content`.", "inputs")
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise InvalidRequest("`content` may hold texts only: the model takes no images.", "inputs")
    return "\n".join(part["text"] for part in parts)


def _lane(body: Mapping[str, Any]) -> Lane | None:
    """0, the default, is the most urgent; a client that says more can wait."""
    priority = optional(body, "priority", int, "an integer from 0 to 999") or 0
    if not 0 <= priority <= 999:
        raise InvalidRequest("`priority` must be an integer from 0 to 999.", "priority")
    return "bulk" if priority else None


def _render(
    result: EmbedResult, *, outputs: Mapping[str, OutputType], texts: Sequence[str]
) -> bytes:
    embeddings = {
        kind: encode(result.vectors, output, as_base64=kind == "base64")
        for kind, output in outputs.items()
    }
    tokens = result.total_tokens
    reply = {
        "id": str(uuid4()),
        "embeddings": embeddings,
        "texts": texts,
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": tokens},
            "cached_tokens": result.cached_tokens,
        },
        "response_type": "embeddings_by_type",
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def refuse(error: EmbedServeError) -> Refusal:
    """The error's body."""
    return Refusal(error.status, orjson.dumps({"message": str(error)}))


ENDPOINTS = (Endpoint("/v2/embed", "input_type", parse, refuse),)
