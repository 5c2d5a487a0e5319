"""The format of a document backend's embedder: `/embed/text`, `/embed/query`, `/embed/batch`.

The service charges nothing, so costs are always 0.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, TypedDict

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidRequest
from serve_app.inputs import Input
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.service.catalog import Catalog
from serve_app.types import Tier
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Endpoint, ParsedRequest, ViewResponse, ViewRoute
from serve_app.web.schema.fields import (
    Body,
    Field,
    IntField,
    ModelField,
    TextField,
    TextsField,
)
from serve_app.web.schema.input_type import resolve_input_type
from serve_app.web.schema.typed_dict import Vector, schema_of
from serve_app.web.schema.vector_encoding import float_rows

_TEXT = TextField("text", "The document to embed.", required=True)
_QUERY = TextField("query", "The query to embed.", required=True)
_TEXTS = TextsField(
    "texts",
    "The documents to embed; empty ones are skipped.",
    required=True,
    allow_single=False,
    allow_empty_items=True,
)
_MODEL = ModelField("model", "Name or alias of the served model.")
_BATCH_SIZE = IntField(
    "batch_size", "Without an effect: the service forms its own batches.", minimum=1
)


def parse_one(body: Body, spec: ModelSpec, *, field: TextField, input_type: str) -> ParsedRequest:
    """Parses `{text, model?, use_cache?}`, or the same with `query`.

    Raises:
        InvalidRequest: a field is missing, empty or has a wrong type.
    """
    text = field(body)
    if text is None:
        raise InvalidRequest(f"`{field.name}` is missing. Send a string.", field.name)
    if not text:
        raise EmptyInput(f"`{field.name}` is empty. Send at least one character.", field.name)
    return ParsedRequest(_job(body, (text,), resolve_input_type(input_type, spec)), _render_one)


def parse_batch(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses `{texts, model?, batch_size?, use_cache?}`; skips empty texts.

    Raises:
        InvalidRequest: a field is missing or has a wrong type, or every text is empty.
    """
    _BATCH_SIZE(body)
    texts = tuple(text for text in _TEXTS(body) if text != "")
    if not texts:
        raise EmptyInput("`texts` holds no text. Send at least one.", "texts")
    return ParsedRequest(_job(body, texts, resolve_input_type("document", spec)), _render_batch)


def _job(body: Body, texts: tuple[Input, ...], input_type: str | None) -> EmbedJob:
    return EmbedJob(
        texts,
        input_type=input_type,
        use_cache=USE_CACHE(body) is not False,
        truncation="chunk" if CHUNK(body) else "end",
    )


class EmbeddingReply(TypedDict):
    """The reply of `/embed/text` and `/embed/query`."""

    embedding: Vector
    dimension: int
    model: str
    cached: bool
    cost: float


class BatchReply(TypedDict):
    """The reply of `/embed/batch`."""

    embeddings: list[Vector]
    dimension: int
    model: str
    total_embeddings: int
    cached_count: int
    total_cost: float


def _render_one(result: EmbedResult) -> bytes:
    (vector,) = float_rows(result)
    reply: EmbeddingReply = {
        "embedding": vector,
        "dimension": result.vectors.shape[1],
        "model": result.model,
        "cached": bool(result.tiers[0] != Tier.COMPUTED),
        "cost": 0.0,
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _render_batch(result: EmbedResult) -> bytes:
    n, dimension = result.vectors.shape
    reply: BatchReply = {
        "embeddings": [*float_rows(result)],
        "dimension": dimension,
        "model": result.model,
        "total_embeddings": n,
        "cached_count": n - result.tiers.tolist().count(Tier.COMPUTED),
        "total_cost": 0.0,
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class ErrorReply(TypedDict):
    """The body of an error."""

    detail: str


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as `{"detail": message}`: 422 for a malformed body, 400 for empty texts."""
    malformed = isinstance(error, InvalidRequest) and not isinstance(error, EmptyInput)
    body: ErrorReply = {"detail": str(error)}
    return ErrorResponse(422 if malformed else error.status, orjson.dumps(body))


class ModelsReply(TypedDict):
    """The reply of `/embed/models`."""

    models: list[str]
    default: str


class HealthReply(TypedDict):
    """The reply of `/embed/health`."""

    status: Literal["healthy", "unhealthy"]
    service: str
    default_model: str
    caching_enabled: bool
    models_loaded: list[str]


class Metrics(TypedDict):
    """Totals of all replicas since their start or the last reset."""

    total_requests: int
    total_embeddings_generated: int
    cache_hits: int
    cache_misses: int
    cache_hit_rate: float
    total_tokens: int
    total_cost_usd: float
    errors: int


class MetricsReply(TypedDict):
    """The reply of `/embed/metrics`."""

    metrics: Metrics


class ResetReply(TypedDict):
    """The reply of `/embed/metrics/reset`."""

    status: str
    message: str


async def _models(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    reply: ModelsReply = {
        "models": [name for spec, name in catalog.names if "embed" in spec.tasks],
        "default": catalog.resolve(None, "embed").spec.name,
    }
    return ViewResponse(orjson.dumps(reply))


async def _health(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    default = catalog.resolve(None, "embed")
    report, cache = await asyncio.gather(catalog.health(), default.cache_state())
    reply: HealthReply = {
        "status": "healthy" if report.healthy else "unhealthy",
        "service": "embedserve",
        "default_model": default.spec.name,
        "caching_enabled": cache.state != "off",
        "models_loaded": [
            service.spec.name for service in catalog.services if "embed" in service.spec.tasks
        ],
    }
    return ViewResponse(orjson.dumps(reply), 200 if report.healthy else 503)


async def _metrics(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    totals = await catalog.replica_stats.totals()
    computed = int(totals.texts - totals.cached_texts)
    reply: MetricsReply = {
        "metrics": {
            "total_requests": int(totals.requests),
            "total_embeddings_generated": computed,
            "cache_hits": int(totals.cached_texts),
            "cache_misses": computed,
            "cache_hit_rate": totals.cached_texts / totals.texts if totals.texts else 0.0,
            "total_tokens": int(totals.tokens),
            "total_cost_usd": 0.0,
            "errors": int(totals.failed),
        }
    }
    return ViewResponse(orjson.dumps(reply))


async def _reset(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    await catalog.replica_stats.reset()
    reply: ResetReply = {"status": "success", "message": "Metrics begin at zero."}
    return ViewResponse(orjson.dumps(reply))


def _endpoint(
    path: str,
    summary: str,
    fields: tuple[Field, ...],
    parse: Callable[[Body, ModelSpec], ParsedRequest],
    reply: type,
) -> Endpoint:
    return Endpoint(
        path=path,
        summary=summary,
        deciding_key=fields[0].name,
        fields=fields,
        parse=parse,
        reply_schema=schema_of(reply),
    )


DIALECT = Dialect(
    name="document backend",
    order=60,
    render_error=render_error,
    error_schema=schema_of(ErrorReply),
    endpoints=(
        _endpoint(
            "/embed/text",
            "Embed a document.",
            (_TEXT, _MODEL, USE_CACHE, CHUNK),
            partial(parse_one, field=_TEXT, input_type="document"),
            EmbeddingReply,
        ),
        _endpoint(
            "/embed/query",
            "Embed a query.",
            (_QUERY, _MODEL, USE_CACHE, CHUNK),
            partial(parse_one, field=_QUERY, input_type="query"),
            EmbeddingReply,
        ),
        _endpoint(
            "/embed/batch",
            "Embed documents.",
            (_TEXTS, _MODEL, _BATCH_SIZE, USE_CACHE, CHUNK),
            parse_batch,
            BatchReply,
        ),
    ),
    views=(
        ViewRoute(
            path="/embed/models",
            summary="List the model's name and aliases.",
            respond=_models,
            reply_schema=schema_of(ModelsReply),
        ),
        ViewRoute(
            path="/embed/metrics",
            summary="Totals of all replicas since their start or the last reset.",
            respond=_metrics,
            reply_schema=schema_of(MetricsReply),
        ),
        ViewRoute(
            path="/embed/metrics/reset",
            summary="Reset the totals of `/embed/metrics` and `/embedding/stats` to zero.",
            respond=_reset,
            reply_schema=schema_of(ResetReply),
            method="POST",
        ),
        ViewRoute(
            path="/embed/health",
            summary="Health: whether the service can embed.",
            respond=_health,
            reply_schema=schema_of(HealthReply),
            public=True,
            statuses={503: "The service can't embed."},
        ),
    ),
)
