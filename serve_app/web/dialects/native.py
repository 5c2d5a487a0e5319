"""The wire format of a document backend's embedder: `/embed/text`, `/embed/query`, `/embed/batch`.

What is computed on one's own machines costs nothing, so `cost` is always 0.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidRequest
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult, Tier
from serve_app.web.endpoint import Call, Endpoint, Refusal
from serve_app.web.fields import encode, input_type, optional


def parse_one(body: Mapping[str, Any], spec: ModelSpec, *, field: str, purpose: str) -> Call:
    """Reads `{text, model?, use_cache?}`, or the same with `query`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    text = optional(body, field, str, "a string")
    if not text:
        raise EmptyInput(f"`{field}` is empty. Send at least one character.", field)
    return Call(_job(body, (text,), input_type(purpose, spec)), _render_one)


def parse_batch(body: Mapping[str, Any], spec: ModelSpec) -> Call:
    """Reads `{texts, model?, batch_size?, use_cache?}`; empty texts are left out.

    Raises:
        InvalidRequest: it isn't of the dialect's shape, or holds no text.
    """
    given = optional(body, "texts", list, "a list of strings")
    optional(body, "batch_size", int, "an integer")  # batches are packed by tokens here
    kept = tuple(text for text in given or () if text != "")
    if not kept:
        raise EmptyInput("`texts` holds no text. Send at least one.", "texts")
    return Call(_job(body, kept, input_type("document", spec)), _render_batch)


def _job(body: Mapping[str, Any], texts: tuple[str, ...], purpose: str | None) -> EmbedJob:
    return EmbedJob(
        texts,
        model=optional(body, "model", str, "a string"),
        input_type=purpose,
        use_cache=optional(body, "use_cache", bool, "true or false") is not False,
    )


def _render_one(result: EmbedResult) -> bytes:
    (vector,) = encode(result.vectors, "float", as_base64=False)
    return _dumps(
        {
            "embedding": vector,
            "dimension": result.vectors.shape[1],
            "model": result.model,
            "cached": bool(result.tiers[0] != Tier.COMPUTED),
            "cost": 0.0,
        }
    )


def _render_batch(result: EmbedResult) -> bytes:
    n, dimension = result.vectors.shape
    return _dumps(
        {
            "embeddings": encode(result.vectors, "float", as_base64=False),
            "dimension": dimension,
            "model": result.model,
            "total_embeddings": n,
            "cached_count": n - result.tiers.tolist().count(Tier.COMPUTED),
            "total_cost": 0.0,
        }
    )


def _dumps(reply: Mapping[str, Any]) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def render_models(spec: ModelSpec) -> bytes:
    """The body of `GET /embed/models`."""
    return orjson.dumps({"models": [spec.name, *spec.aliases], "default": spec.name})


def render_health(spec: ModelSpec, healthy: bool, caching: bool) -> bytes:
    """The body of `GET /embed/health`."""
    return orjson.dumps(
        {
            "status": "healthy" if healthy else "unhealthy",
            "service": "embedserve",
            "default_model": spec.name,
            "caching_enabled": caching,
            "models_loaded": [spec.name],
        }
    )


def refuse(error: EmbedServeError) -> Refusal:
    """The error's body."""
    status = 422 if type(error) is InvalidRequest else error.status
    return Refusal(status, orjson.dumps({"detail": str(error)}))


ENDPOINTS = (
    Endpoint("/embed/text", "text", partial(parse_one, field="text", purpose="document"), refuse),
    Endpoint("/embed/query", "query", partial(parse_one, field="query", purpose="query"), refuse),
    Endpoint("/embed/batch", "texts", parse_batch, refuse),
)
