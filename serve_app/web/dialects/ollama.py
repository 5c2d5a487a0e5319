"""Ollama's format: `POST /api/embed`, and the routes with which its clients find the model.

Names of models may end in `:latest`. `keep_alive` and all `options` but `num_ctx` are ignored.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, NotRequired, TypedDict

import orjson

from serve_app import __version__
from serve_app.errors import EmptyInput, InvalidRequest
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.service.catalog import Catalog
from serve_app.types import Truncation
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import sidecar
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Endpoint, ParsedRequest, ViewResponse, ViewRoute
from serve_app.web.schema.fields import (
    Body,
    BoolField,
    DimensionsField,
    IntField,
    ModelField,
    ObjectField,
    SchemaContext,
    TextField,
    TextsField,
)
from serve_app.web.schema.json_schema import Schema, any_of, enum
from serve_app.web.schema.typed_dict import Vector, schema_of
from serve_app.web.schema.vector_encoding import float_rows

_DEFAULT_TAG = ":latest"
_ARCHITECTURE = "embedserve"  #: prefix of the keys of `model_info`


class _TaggedModelField(ModelField):
    """The name of a model, with or without Ollama's default tag."""

    __slots__ = ()

    def __call__(self, body: Body) -> str | None:
        name = ModelField.__call__(self, body)
        return None if name is None else name.removesuffix(_DEFAULT_TAG)

    def _value_schema(self, context: SchemaContext) -> Schema:
        names = (context.spec.name, *context.spec.aliases)
        return any_of(enum(names), enum([name + _DEFAULT_TAG for name in names]))


_MODEL = _TaggedModelField("model", "Name or alias of the served model.")
_NAME = _TaggedModelField("name", "Former name of `model`.")
_INPUT = TextsField("input", "A text, or a list of texts.", required=True)
_PROMPT = TextField("prompt", "The text to embed.", required=True)
_TRUNCATE = BoolField("truncate", "If false, texts over the token limit are errors.")
_DIMENSIONS = DimensionsField(
    "dimensions",
    "Number of leading components to return, normalized to unit length; 0 returns all.",
    allow_zero=True,
)
_NUM_CTX = IntField(
    "num_ctx", "Number of tokens to truncate each text to, up to the model's limit.", minimum=8
)
_OPTIONS = ObjectField("options", "Options of the model.", fields=(_NUM_CTX,))


def _parse_options(body: Body, spec: ModelSpec) -> int | None:
    """Returns the number of tokens of each text; None: the model's limit."""
    num_ctx = _NUM_CTX(_OPTIONS(body) or {})
    return num_ctx if num_ctx is not None and num_ctx < spec.max_tokens else None


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /api/embed`. Vectors have unit length, as Ollama's have.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
    """
    started_ns = time.perf_counter_ns()
    truncation: Truncation = "error" if _TRUNCATE(body) is False else "end"
    job = EmbedJob(
        _INPUT(body),
        dimensions=_DIMENSIONS(body),
        normalize=True,
        truncation="chunk" if CHUNK(body) else truncation,
        max_tokens=_parse_options(body, spec),
        use_cache=USE_CACHE(body) is not False,
    )
    return ParsedRequest(job, partial(_render, name=body.get("model"), started_ns=started_ns))


def parse_prompt(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /api/embeddings`.

    Raises:
        InvalidRequest: a field is missing, empty or has a wrong type.
    """
    prompt = _PROMPT(body)
    if prompt is None:
        raise InvalidRequest("`prompt` is missing. Send a string.", "prompt")
    if not prompt:
        raise EmptyInput("`prompt` is empty. Send at least one character.", "prompt")
    job = EmbedJob(
        (prompt,),
        truncation="chunk" if CHUNK(body) else "end",
        max_tokens=_parse_options(body, spec),
        use_cache=USE_CACHE(body) is not False,
    )
    return ParsedRequest(job, _render_prompt)


class EmbedReply(TypedDict):
    """The reply of `POST /api/embed`; durations are in nanoseconds."""

    model: str
    embeddings: list[Vector]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


def _render(result: EmbedResult, *, name: str | None, started_ns: int) -> bytes:
    reply: EmbedReply = {
        "model": name or result.model,
        "embeddings": [*float_rows(result)],
        "total_duration": time.perf_counter_ns() - started_ns,
        "load_duration": 0,
        "prompt_eval_count": result.total_tokens,
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class EmbeddingsReply(TypedDict):
    """The reply of `POST /api/embeddings`."""

    embedding: Vector


def _render_prompt(result: EmbedResult) -> bytes:
    (vector,) = float_rows(result)
    reply: EmbeddingsReply = {"embedding": vector}
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class ModelDetails(TypedDict):
    """Details of a model. The service doesn't know its size and its quantization."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: NotRequired[int]
    embedding_length: NotRequired[int]


_DETAILS: ModelDetails = {
    "parent_model": "",
    "format": "",
    "family": _ARCHITECTURE,
    "families": [_ARCHITECTURE],
    "parameter_size": "",
    "quantization_level": "",
}


def _capabilities(spec: ModelSpec) -> list[str]:
    """Returns Ollama's names of what a model does; it has none for reranking."""
    return ["embedding"] if "embed" in spec.tasks else []


class ModelInfo(TypedDict):
    """A served model under one of its names."""

    name: str
    model: str
    size: int
    digest: str
    details: ModelDetails


def _model_info(spec: ModelSpec, name: str) -> ModelInfo:
    tagged = name if ":" in name else name + _DEFAULT_TAG
    return {
        "name": tagged,
        "model": tagged,
        "size": 0,
        "digest": spec.weights_sha256 or "",
        "details": _DETAILS,
    }


def _modified_at(spec: ModelSpec) -> str:
    return datetime.fromtimestamp(spec.created_s, UTC).isoformat()


class AvailableModelInfo(ModelInfo):
    """A model in the list of models."""

    modified_at: str
    capabilities: list[str]


class ModelsReply(TypedDict):
    """The reply of `GET /api/tags`."""

    models: list[AvailableModelInfo]


async def _tags(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    models: list[AvailableModelInfo] = [
        {
            **_model_info(spec, name),
            "details": {
                **_DETAILS,
                "context_length": spec.max_tokens,
                "embedding_length": spec.dim,
            },
            "modified_at": _modified_at(spec),
            "capabilities": _capabilities(spec),
        }
        for spec, name in catalog.names
    ]
    reply: ModelsReply = {"models": models}
    return ViewResponse(orjson.dumps(reply))


class RunningModelInfo(ModelInfo):
    """A loaded model, which is never unloaded."""

    expires_at: str
    size_vram: int
    context_length: int


class RunningModelsReply(TypedDict):
    """The reply of `GET /api/ps`."""

    models: list[RunningModelInfo]


async def _ps(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    models: list[RunningModelInfo] = [
        {
            **_model_info(service.spec, service.spec.name),
            "expires_at": "9999-12-31T23:59:59Z",
            "size_vram": 0,
            "context_length": service.spec.max_tokens,
        }
        for service in catalog.services
    ]
    reply: RunningModelsReply = {"models": models}
    return ViewResponse(orjson.dumps(reply))


class VersionReply(TypedDict):
    """The reply of `GET /api/version`."""

    version: str


async def _version(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    reply: VersionReply = {"version": __version__}
    return ViewResponse(orjson.dumps(reply))


class ShowReply(TypedDict):
    """The reply of `POST /api/show`."""

    modelfile: str
    parameters: str
    template: str
    details: ModelDetails
    model_info: Annotated[Mapping[str, Any], {"type": "object"}]
    capabilities: list[str]
    modified_at: str


async def _show(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    """Returns the description of the model. `model` takes precedence over `name`.

    Raises:
        ModelNotFound: one of the names is neither a model's nor an alias.
    """
    names = [name for name in (_MODEL(arguments), _NAME(arguments)) if name is not None]
    specs = [catalog.resolve(name).spec for name in names]
    spec = specs[0] if specs else catalog.default.spec
    reply: ShowReply = {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _DETAILS,
        "model_info": {
            "general.architecture": _ARCHITECTURE,
            "general.name": spec.name,
            f"{_ARCHITECTURE}.context_length": spec.max_tokens,
            f"{_ARCHITECTURE}.embedding_length": spec.dim,
        },
        "capabilities": _capabilities(spec),
        "modified_at": _modified_at(spec),
    }
    return ViewResponse(orjson.dumps(reply))


DIALECT = Dialect(
    name="Ollama",
    order=140,
    json_type_optional=True,
    render_error=sidecar.render_error,
    error_schema=sidecar.ERROR_SCHEMA,
    endpoints=(
        Endpoint(
            path="/api/embed",
            summary="Embed texts.",
            deciding_key="input",
            fields=(_INPUT, _MODEL, _TRUNCATE, _DIMENSIONS, _OPTIONS, CHUNK, USE_CACHE),
            parse=parse,
            reply_schema=schema_of(EmbedReply),
        ),
        Endpoint(
            path="/api/embeddings",
            summary="Embed a text.",
            deciding_key="prompt",
            fields=(_PROMPT, _MODEL, _OPTIONS, CHUNK, USE_CACHE),
            parse=parse_prompt,
            reply_schema=schema_of(EmbeddingsReply),
        ),
    ),
    views=(
        ViewRoute(
            path="/api/tags",
            summary="List the model under each of its names.",
            respond=_tags,
            reply_schema=schema_of(ModelsReply),
        ),
        ViewRoute(
            path="/api/ps",
            summary="Describe the loaded model.",
            respond=_ps,
            reply_schema=schema_of(RunningModelsReply),
        ),
        ViewRoute(
            path="/api/show",
            summary="Describe the model under one of its names.",
            respond=_show,
            reply_schema=schema_of(ShowReply),
            method="POST",
            fields=(_MODEL, _NAME),
        ),
        ViewRoute(
            path="/api/version",
            summary="Return the version of the service.",
            respond=_version,
            reply_schema=schema_of(VersionReply),
            public=True,
        ),
    ),
)
