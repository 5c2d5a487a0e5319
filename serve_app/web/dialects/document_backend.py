"""The wire format of a document backend's embedder: `/embed/text`, `/embed/query`, `/embed/batch`.

What is computed on one's own machines costs nothing, so `cost` is always 0.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidRequest, NotJson
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedJob, EmbedResult, Input, Tier
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Call, Endpoint, Refusal, Shown, View, refusal
from serve_app.web.schema.fields import Body, Content, Model, Texts, Whole, input_type
from serve_app.web.schema.vector_encoding import as_floats
from serve_app.web.schema.json_schema import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    VECTOR,
    Shape,
    listed,
    thing,
    words,
)

_TEXT = Content("text", "What is embedded.", True)
_QUERY = Content("query", "What is embedded.", True)
_TEXTS = Texts("texts", "Texts; empty ones are left out.", True, alone=False, holes=True)
_MODEL = Model("model", "The served model, by any of its names.")
_BATCH_SIZE = Whole("batch_size", "Taken, and not used: batches are packed by tokens here.")


def parse_one(body: Body, spec: ModelSpec, *, field: Content, purpose: str) -> Call:
    """Reads `{text, model?, use_cache?}`, or the same with `query`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    text = field(body)
    if text is None:
        raise InvalidRequest(f"`{field.name}` is missing. Send a string.", field.name)
    if not text:
        raise EmptyInput(f"`{field.name}` is empty. Send at least one character.", field.name)
    return Call(_job(body, (text,), input_type(purpose, spec)), _render_one)


def parse_batch(body: Body, spec: ModelSpec) -> Call:
    """Reads `{texts, model?, batch_size?, use_cache?}`; empty texts are left out.

    Raises:
        InvalidRequest: it isn't of the dialect's shape, or holds no text.
    """
    _BATCH_SIZE(body)
    kept = tuple(text for text in _TEXTS(body) if text != "")
    if not kept:
        raise EmptyInput("`texts` holds no text. Send at least one.", "texts")
    return Call(_job(body, kept, input_type("document", spec)), _render_batch)


def _job(body: Body, texts: tuple[Input, ...], purpose: str | None) -> EmbedJob:
    return EmbedJob(
        texts,
        model=_MODEL(body),
        input_type=purpose,
        use_cache=USE_CACHE(body) is not False,
        overflow="chunk" if CHUNK(body) else "end",
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


_ONE = thing(
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


_BATCH = thing(
    {
        "embeddings": listed(VECTOR),
        "dimension": INTEGER,
        "model": STRING,
        "total_embeddings": INTEGER,
        "cached_count": INTEGER,
        "total_cost": NUMBER,
    }
)


def _dumps(reply: Mapping[str, Any]) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


@refusal(thing({"detail": STRING}))
def refuse(error: EmbedServeError) -> Refusal:
    """The error's body."""
    status = 422 if type(error) in (InvalidRequest, NotJson) else error.status
    return Refusal(status, orjson.dumps({"detail": str(error)}))


async def _models(service: EmbedService, path: Mapping[str, str]) -> Shown:
    spec = service.spec
    return Shown(orjson.dumps({"models": [spec.name, *spec.aliases], "default": spec.name}))


async def _health(service: EmbedService, path: Mapping[str, str]) -> Shown:
    report, cache = await asyncio.gather(service.health(), service.cache_state())
    body = {
        "status": "healthy" if report.healthy else "unhealthy",
        "service": "embedserve",
        "default_model": service.spec.name,
        "caching_enabled": cache.state != "off",
        "models_loaded": [service.spec.name],
    }
    return Shown(orjson.dumps(body), 200 if report.healthy else 503)


async def _metrics(service: EmbedService, path: Mapping[str, str]) -> Shown:
    totals = await service.fleet.totals()
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
    return Shown(orjson.dumps({"metrics": metrics}))


_METRICS: Shape = thing(
    {
        "metrics": thing(
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


async def _reset(service: EmbedService, path: Mapping[str, str]) -> Shown:
    await service.fleet.begin_anew()
    return Shown(orjson.dumps({"status": "success", "message": "Metrics begin at zero."}))


ENDPOINTS = tuple(
    Endpoint(path, "document backend", about, fields[0].name, fields, parse, reply, refuse)
    for path, about, fields, parse, reply in (
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
    View(path, "document backend", about, show, reply, refuse, method, public, statuses)
    for path, about, show, reply, method, public, statuses in (
        (
            "/embed/models",
            "The model, under each of its names.",
            _models,
            thing({"models": listed(STRING), "default": STRING}),
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
            thing({"status": STRING, "message": STRING}),
            "POST",
            False,
            {},
        ),
        (
            "/embed/health",
            "Whether it can embed now.",
            _health,
            thing(
                {
                    "status": words(["healthy", "unhealthy"]),
                    "service": STRING,
                    "default_model": STRING,
                    "caching_enabled": BOOLEAN,
                    "models_loaded": listed(STRING),
                }
            ),
            "GET",
            True,
            {503: "It can't."},
        ),
    )
)
