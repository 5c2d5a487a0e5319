"""The wire format of a document backend's embedder: `/embed/text`, `/embed/query`, `/embed/batch`.

What is computed on one's own machines costs nothing, so `cost` is always 0.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidJSON, InvalidRequest
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedJob, EmbedResult, Input, Tier
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import (
    Endpoint,
    ErrorResponse,
    ParsedRequest,
    ViewResponse,
    ViewRoute,
    refusal,
)
from serve_app.web.schema.fields import (
    Body,
    IntField,
    ModelField,
    TextField,
    TextsField,
    input_type,
)
from serve_app.web.schema.json_schema import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    VECTOR,
    Schema,
    array,
    enum,
    object_,
)
from serve_app.web.schema.vector_encoding import as_floats

_TEXT = TextField("text", "What is embedded.", True)
_QUERY = TextField("query", "What is embedded.", True)
_TEXTS = TextsField(
    "texts", "Texts; empty ones are left out.", True, allow_single=False, allow_empty_items=True
)
_MODEL = ModelField("model", "The served model, by any of its names.")
_BATCH_SIZE = IntField("batch_size", "Taken, and not used: batches are packed by tokens here.")


def parse_one(body: Body, spec: ModelSpec, *, field: TextField, purpose: str) -> ParsedRequest:
    """Reads `{text, model?, use_cache?}`, or the same with `query`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    text = field(body)
    if text is None:
        raise InvalidRequest(f"`{field.name}` is missing. Send a string.", field.name)
    if not text:
        raise EmptyInput(f"`{field.name}` is empty. Send at least one character.", field.name)
    return ParsedRequest(_job(body, (text,), input_type(purpose, spec)), _render_one)


def parse_batch(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads `{texts, model?, batch_size?, use_cache?}`; empty texts are left out.

    Raises:
        InvalidRequest: it isn't of the dialect's shape, or holds no text.
    """
    _BATCH_SIZE(body)
    kept = tuple(text for text in _TEXTS(body) if text != "")
    if not kept:
        raise EmptyInput("`texts` holds no text. Send at least one.", "texts")
    return ParsedRequest(_job(body, kept, input_type("document", spec)), _render_batch)


def _job(body: Body, texts: tuple[Input, ...], purpose: str | None) -> EmbedJob:
    return EmbedJob(
        texts,
        model=_MODEL(body),
        input_type=purpose,
        use_cache=USE_CACHE(body) is not False,
        truncation="chunk" if CHUNK(body) else "end",
    )


def _render_one(result: EmbedResult) -> bytes:
    (vector,) = as_floats(result)
    return _dumps(
        {
            "embedding": vector,
            "dimension": result.vectors.shape[1],
            "model": result.model,
            "cached": bool(result.tiers[0] != Tier.COMPUTED),
            "cost": 0.0,
        }
    )


_ONE = object_(
    {
        "embedding": VECTOR,
        "dimension": INTEGER,
        "model": STRING,
        "cached": BOOLEAN,
        "cost": NUMBER,
    }
)


def _render_batch(result: EmbedResult) -> bytes:
    n, dimension = result.vectors.shape
    return _dumps(
        {
            "embeddings": as_floats(result),
            "dimension": dimension,
            "model": result.model,
            "total_embeddings": n,
            "cached_count": n - result.tiers.tolist().count(Tier.COMPUTED),
            "total_cost": 0.0,
        }
    )


_BATCH = object_(
    {
        "embeddings": array(VECTOR),
        "dimension": INTEGER,
        "model": STRING,
        "total_embeddings": INTEGER,
        "cached_count": INTEGER,
        "total_cost": NUMBER,
    }
)


def _dumps(reply: Mapping[str, Any]) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


@refusal(object_({"detail": STRING}))
def render_error(error: EmbedServeError) -> ErrorResponse:
    """The error's body."""
    status = 422 if type(error) in (InvalidRequest, InvalidJSON) else error.status
    return ErrorResponse(status, orjson.dumps({"detail": str(error)}))


async def _models(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    spec = service.spec
    return ViewResponse(orjson.dumps({"models": [spec.name, *spec.aliases], "default": spec.name}))


async def _health(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    report, cache = await asyncio.gather(service.health(), service.cache_state())
    body = {
        "status": "healthy" if report.healthy else "unhealthy",
        "service": "embedserve",
        "default_model": service.spec.name,
        "caching_enabled": cache.state != "off",
        "models_loaded": [service.spec.name],
    }
    return ViewResponse(orjson.dumps(body), 200 if report.healthy else 503)


async def _metrics(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    totals = await service.replica_stats.totals()
    computed = totals.texts - totals.cached_texts
    metrics = {
        "total_requests": int(totals.requests),
        "total_embeddings_generated": int(computed),
        "cache_hits": int(totals.cached_texts),
        "cache_misses": int(computed),
        "cache_hit_rate": totals.cached_texts / totals.texts if totals.texts else 0.0,
        "total_tokens": int(totals.tokens),
        "total_cost_usd": 0.0,
        "errors": int(totals.failed),
    }
    return ViewResponse(orjson.dumps({"metrics": metrics}))


_METRICS: Schema = object_(
    {
        "metrics": object_(
            {
                "total_requests": INTEGER,
                "total_embeddings_generated": INTEGER,
                "cache_hits": INTEGER,
                "cache_misses": INTEGER,
                "cache_hit_rate": NUMBER,
                "total_tokens": INTEGER,
                "total_cost_usd": NUMBER,
                "errors": INTEGER,
            }
        )
    }
)


async def _reset(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    await service.replica_stats.reset()
    return ViewResponse(orjson.dumps({"status": "success", "message": "Metrics begin at zero."}))


ENDPOINTS = tuple(
    Endpoint(
        path, "document backend", description, fields[0].name, fields, parse, reply, render_error
    )
    for path, description, fields, parse, reply in (
        (
            "/embed/text",
            "A document's vector.",
            (_TEXT, _MODEL, USE_CACHE, CHUNK),
            partial(parse_one, field=_TEXT, purpose="document"),
            _ONE,
        ),
        (
            "/embed/query",
            "A query's vector.",
            (_QUERY, _MODEL, USE_CACHE, CHUNK),
            partial(parse_one, field=_QUERY, purpose="query"),
            _ONE,
        ),
        (
            "/embed/batch",
            "Documents' vectors.",
            (_TEXTS, _MODEL, _BATCH_SIZE, USE_CACHE, CHUNK),
            parse_batch,
            _BATCH,
        ),
    )
)
VIEWS = tuple(
    ViewRoute(
        path, "document backend", description, show, reply, render_error, method, public, statuses
    )
    for path, description, show, reply, method, public, statuses in (
        (
            "/embed/models",
            "The model, under each of its names.",
            _models,
            object_({"models": array(STRING), "default": STRING}),
            "GET",
            False,
            {},
        ),
        (
            "/embed/metrics",
            "What all replicas have answered.",
            _metrics,
            _METRICS,
            "GET",
            False,
            {},
        ),
        (
            "/embed/metrics/reset",
            "Has `/embed/metrics` and `/embedding/stats` begin at zero.",
            _reset,
            object_({"status": STRING, "message": STRING}),
            "POST",
            False,
            {},
        ),
        (
            "/embed/health",
            "Whether it can embed now.",
            _health,
            object_(
                {
                    "status": enum(["healthy", "unhealthy"]),
                    "service": STRING,
                    "default_model": STRING,
                    "caching_enabled": BOOLEAN,
                    "models_loaded": array(STRING),
                }
            ),
            "GET",
            True,
            {503: "It can't."},
        ),
    )
)
