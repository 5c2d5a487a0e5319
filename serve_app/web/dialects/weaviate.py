"""The inference container of Weaviate's module text2vec-transformers.

`POST /vectors` embeds one text; `GET /meta` describes the model; Weaviate waits for
`GET /.well-known/ready` before it starts.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal, TypedDict

import orjson

from serve_app.errors import EmptyInput, InvalidRequest
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.service.catalog import Catalog
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import sidecar
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.dialects.status import UNHEALTHY_STATUSES
from serve_app.web.endpoint import Endpoint, ParsedRequest, ViewResponse, ViewRoute
from serve_app.web.schema.fields import (
    Body,
    DimensionsField,
    EnumField,
    Field,
    ObjectField,
    SchemaContext,
    TextField,
)
from serve_app.web.schema.input_type import InputTypeField, resolve_input_type
from serve_app.web.schema.json_schema import Schema, enum
from serve_app.web.schema.typed_dict import Vector, schema_of
from serve_app.web.schema.vector_encoding import float_rows

_TEXT = TextField("text", "The text to embed.", required=True)


class _PoolingStrategyField(Field):
    """The pooling strategy: the model's own, or the one that Weaviate sends by default."""

    __slots__ = ()

    def __call__(self, body: Body, spec: ModelSpec) -> None:
        """Checks that no other pooling than the model's is requested."""
        EnumField(self.name, self.description, choices=_pooling_strategies(spec))(body)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return enum(_pooling_strategies(context.spec))


def _pooling_strategies(spec: ModelSpec) -> tuple[str, ...]:
    return ("masked_mean", "cls") if spec.pooling == "cls" else ("masked_mean",)


_POOLING_STRATEGY = _PoolingStrategyField(
    "pooling_strategy",
    "`masked_mean`, which Weaviate sends by default, is ignored: the model's own pooling applies. "
    "`cls` is an error unless it is the model's.",
)
_DIMENSIONS = DimensionsField(
    "dimensions", "Number of leading components to return, normalized to unit length."
)
_TASK_TYPE = InputTypeField("task_type", "Purpose of the text; selects the model's prompt.")
_CONFIG = ObjectField(
    "config", "Options of the request.", fields=(_POOLING_STRATEGY, _TASK_TYPE, _DIMENSIONS)
)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /vectors`.

    Raises:
        InvalidRequest: a field is missing, empty or has a wrong type, or the model has no prompt
            for the task type, or another pooling.
    """
    text = _TEXT(body)
    if text is None:
        raise InvalidRequest("`text` is missing. Send a string.", "text")
    if not text:
        raise EmptyInput("`text` is empty. Send at least one character.", "text")
    config = _CONFIG(body) or {}
    _POOLING_STRATEGY(config, spec)
    chunk = CHUNK(body)
    job = EmbedJob(
        (text,),
        # Without a task type, the container embeds a document.
        input_type=_TASK_TYPE(config, spec) or resolve_input_type("document", spec),
        dimensions=_DIMENSIONS(config),
        truncation="chunk" if chunk else "end",
        use_cache=USE_CACHE(body) is not False,
    )
    return ParsedRequest(job, partial(_render, text=text))


class VectorReply(TypedDict):
    """The reply of `POST /vectors`."""

    text: str
    vector: Vector
    dim: int


def _render(result: EmbedResult, *, text: str) -> bytes:
    (vector,) = float_rows(result)
    reply: VectorReply = {"text": text, "vector": vector, "dim": len(vector)}
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class MetaReply(TypedDict):
    """The reply of `GET /meta`: fields of the model's `config.json` that apply to the service."""

    _name_or_path: str
    hidden_size: int
    max_position_embeddings: int


async def _meta(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    spec = catalog.resolve(None, "embed").spec
    reply: MetaReply = {
        "_name_or_path": spec.name,
        "hidden_size": spec.dim,
        "max_position_embeddings": spec.max_tokens,
    }
    return ViewResponse(orjson.dumps(reply))


class StatusReply(TypedDict):
    """The reply of both health checks. Weaviate reads the HTTP status only."""

    status: Literal["live", "ready", "not ready"]


async def _live(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    reply: StatusReply = {"status": "live"}
    return ViewResponse(orjson.dumps(reply))


async def _ready(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    healthy = (await catalog.health()).healthy
    reply: StatusReply = {"status": "ready" if healthy else "not ready"}
    return ViewResponse(orjson.dumps(reply), 200 if healthy else 503)


DIALECT = Dialect(
    name="Weaviate",
    order=100,
    json_type_optional=True,
    render_error=sidecar.render_error,
    error_schema=sidecar.ERROR_SCHEMA,
    endpoints=(
        Endpoint(
            path="/vectors",
            summary="Embed a text.",
            deciding_key="text",
            fields=(_TEXT, _CONFIG, CHUNK, USE_CACHE),
            parse=parse,
            reply_schema=schema_of(VectorReply),
        ),
    ),
    views=(
        ViewRoute(
            path="/meta",
            summary="Describe the model.",
            respond=_meta,
            reply_schema=schema_of(MetaReply),
        ),
        ViewRoute(
            path="/.well-known/live",
            summary="Liveness: whether the service answers requests.",
            respond=_live,
            reply_schema=schema_of(StatusReply),
            public=True,
        ),
        ViewRoute(
            path="/.well-known/ready",
            summary="Readiness: whether a live replica has computed a vector recently.",
            respond=_ready,
            reply_schema=schema_of(StatusReply),
            public=True,
            statuses=UNHEALTHY_STATUSES,
        ),
    ),
)
