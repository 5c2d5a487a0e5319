"""The format of a document backend's embedder: `/embed/text`, `/embed/query`, `/embed/batch`."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NotRequired, TypedDict

import orjson

from serve_app.config import RequestSettings
from serve_app.cost import as_usd
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
    EnumField,
    Field,
    IntField,
    ModelField,
    SchemaContext,
    TextField,
    TextsField,
)
from serve_app.web.schema.input_type import resolve_input_type
from serve_app.web.schema.json_schema import INTEGER, Schema
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
    is_split=True,
)
_MODEL = ModelField("model", "Name or alias of the served model.")
_DETAILS = EnumField(
    "details",
    "`true`: models as objects; metrics with `total_saved_usd` and `models_loaded`.",
    choices=("true", "false"),
)


@dataclass(frozen=True, slots=True)
class BatchSizeField(IntField):
    """The number of texts that are computed at a time. The service checks the upper bound."""

    def _value_schema(self, context: SchemaContext) -> Schema:
        return INTEGER | {"minimum": 1, "maximum": context.settings.max_texts_per_request}


_BATCH_SIZE = BatchSizeField(
    "batch_size",
    "Number of texts that are computed at a time, at most `max_batch_size`, which is the default.",
    minimum=1,
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
    texts = tuple(text for text in _TEXTS(body) if text != "")
    if not texts:
        raise EmptyInput("`texts` holds no text. Send at least one.", "texts")
    job = _job(body, texts, resolve_input_type("document", spec))
    job = replace(job, is_split=True, batch_size=_BATCH_SIZE(body))
    return ParsedRequest(job, _render_batch)


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
        "cost": _cost_usd(result),
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
        "total_cost": _cost_usd(result),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _cost_usd(result: EmbedResult) -> float:
    return 0.0 if result.cost is None else as_usd(result.cost.nano_usd)


class ErrorReply(TypedDict):
    """The body of an error."""

    detail: str


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as `{"detail": message}`: 422 for a malformed body, 400 for empty texts."""
    malformed = isinstance(error, InvalidRequest) and not isinstance(error, EmptyInput)
    body: ErrorReply = {"detail": str(error)}
    return ErrorResponse(422 if malformed else error.status, orjson.dumps(body))


class ModelEntry(TypedDict):
    """A model, its limits and its price."""

    name: str
    provider: str
    dimension: int
    max_batch_size: int
    max_input_length: int
    cost_per_1k_tokens: float


class ModelsReply(TypedDict):
    """The reply of `/embed/models`: names and aliases, or objects."""

    models: list[str] | list[ModelEntry]
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
    total_saved_usd: NotRequired[float]
    models_loaded: NotRequired[list[str]]


class MetricsReply(TypedDict):
    """The reply of `/embed/metrics`."""

    metrics: Metrics


class ResetReply(TypedDict):
    """The reply of `/embed/metrics/reset`."""

    status: str
    message: str


async def _models(catalog: Catalog, params: Mapping[str, str]) -> ViewResponse:
    default = catalog.resolve(None, "embed").spec.name
    reply: ModelsReply = {
        "models": [name for spec, name in catalog.names if "embed" in spec.tasks],
        "default": default,
    }
    if _DETAILS(params) == "true":
        models = [_model_entry(spec, catalog.settings) for spec in _embedding_models(catalog)]
        reply = {"models": models, "default": default}
    return ViewResponse(orjson.dumps(reply))


def _model_entry(spec: ModelSpec, settings: RequestSettings) -> ModelEntry:
    return {
        "name": spec.name,
        "provider": spec.provider or "local",
        "dimension": spec.dim,
        "max_batch_size": settings.max_texts_per_request,
        "max_input_length": spec.max_tokens,
        "cost_per_1k_tokens": as_usd(spec.nano_usd_per_1k_tokens),
    }


def _embedding_models(catalog: Catalog) -> list[ModelSpec]:
    specs = (service.spec for service in catalog.services)
    return [spec for spec in specs if "embed" in spec.tasks]


async def _health(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    default = catalog.resolve(None, "embed")
    report, cache = await asyncio.gather(catalog.health(), default.cache_state())
    reply: HealthReply = {
        "status": "healthy" if report.healthy else "unhealthy",
        "service": "embedserve",
        "default_model": default.spec.name,
        "caching_enabled": cache.state != "off",
        "models_loaded": [spec.name for spec in _embedding_models(catalog)],
    }
    return ViewResponse(orjson.dumps(reply), 200 if report.healthy else 503)


async def _metrics(catalog: Catalog, params: Mapping[str, str]) -> ViewResponse:
    details = _DETAILS(params) == "true"
    totals = await catalog.replica_stats.totals()
    computed = int(totals.texts - totals.cached_texts)
    metrics: Metrics = {
        "total_requests": int(totals.requests),
        "total_embeddings_generated": computed,
        "cache_hits": int(totals.cached_texts),
        "cache_misses": computed,
        "cache_hit_rate": totals.cached_texts / totals.texts if totals.texts else 0.0,
        "total_tokens": int(totals.tokens),
        "total_cost_usd": as_usd(totals.nano_usd),
        "errors": int(totals.failed),
    }
    if details:
        metrics["total_saved_usd"] = as_usd(totals.saved_nano_usd)
        metrics["models_loaded"] = [spec.name for spec in _embedding_models(catalog)]
    reply: MetricsReply = {"metrics": metrics}
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
            summary="List the names and aliases of the models, or describe them.",
            respond=_models,
            query=(_DETAILS,),
            reply_schema=schema_of(ModelsReply),
        ),
        ViewRoute(
            path="/embed/metrics",
            summary="Totals of all replicas since their start or the last reset.",
            respond=_metrics,
            query=(_DETAILS,),
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
