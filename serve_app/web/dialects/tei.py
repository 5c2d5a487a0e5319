"""The format of text-embeddings-inference (TEI): routes, errors and headers.

`tei_requests`, `tei_scores` and `tei_vertex` hold the bodies of its requests and replies. Of TEI's
status routes, `/info` is in `sidecar` and `/metrics` in `status`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, TypedDict

import orjson

from serve_app.errors import (
    ClientError,
    EmbedServeError,
    EmptyInput,
    InferenceError,
    InvalidJSON,
    Overloaded,
    Unauthorized,
    Unavailable,
    UnsupportedOperation,
)
from serve_app.models import ModelSpec
from serve_app.results import ComputedResult
from serve_app.service.embed import EmbedService
from serve_app.tasks import Task
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import tei_requests, tei_scores, tei_vertex
from serve_app.web.dialects.classify_requests import LabelScore
from serve_app.web.dialects.extensions import MODEL
from serve_app.web.dialects.status import health_route
from serve_app.web.endpoint import Endpoint, ParsedRequest
from serve_app.web.schema.fields import Body, Field
from serve_app.web.schema.json_schema import INTEGER, STRING, Schema
from serve_app.web.schema.typed_dict import Vector, schema_of

#: TEI's `error_type` and status by class, the first match; None keeps our status, 422 for 400.
_ERROR_TYPES: tuple[tuple[type[EmbedServeError], str, int | None], ...] = (
    (EmptyInput, "Empty", 400),
    (InvalidJSON, "Validation", 400),
    (UnsupportedOperation, "Backend", 424),
    (Overloaded, "Overloaded", 429),
    (Unavailable, "Unhealthy", 503),
    (InferenceError, "Backend", 424),
    (ClientError, "Validation", None),
    (EmbedServeError, "Unhealthy", None),
)
_MESSAGE_PREFIXES = {
    400: "Input validation error: ",
    422: "Input validation error: ",
    424: "Backend error: ",
}


class ErrorReply(TypedDict):
    """The body of an error."""

    error: str
    error_type: str


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as TEI does; a 401 has no body."""
    if isinstance(error, Unauthorized):
        return ErrorResponse(error.status, b"")
    error_type, status = next(
        (name, status) for class_, name, status in _ERROR_TYPES if isinstance(error, class_)
    )
    if status is None:
        status = 422 if error.status == 400 else error.status
    body: ErrorReply = {
        "error": _MESSAGE_PREFIXES.get(status, "") + str(error),
        "error_type": error_type,
    }
    return ErrorResponse(status, orjson.dumps(body))


def headers(result: ComputedResult, total_s: float) -> Mapping[str, str]:
    """Returns TEI's response headers: times in whole milliseconds, and computed tokens."""
    timings = result.timings
    times = {
        "x-total-time": total_s,
        "x-tokenization-time": timings.tokenize_s,
        "x-queue-time": timings.queue_s,
        "x-inference-time": timings.infer_s,
        "x-compute-time": timings.tokenize_s + timings.infer_s,
    }
    return {
        **{name: str(round(1e3 * seconds)) for name, seconds in times.items()},
        "x-compute-type": "cpu",
        "x-compute-characters": str(result.characters),
        "x-compute-tokens": str(result.total_tokens - result.cached_tokens),
    }


class EmbeddingModelType(TypedDict):
    """How token vectors become the vector of a text."""

    pooling: str | None


_IDS_BY_LABEL: Schema = {"type": "object", "additionalProperties": INTEGER}
_LABELS_BY_ID: Schema = {"type": "object", "additionalProperties": STRING}


class ClassifierModelType(TypedDict):
    """The labels of a classifier or a reranker."""

    id2label: Annotated[Mapping[str, str], _LABELS_BY_ID]
    label2id: Annotated[Mapping[str, int], _IDS_BY_LABEL]


class ModelType(TypedDict, total=False):
    """The kind of the model; it has one of these members."""

    embedding: EmbeddingModelType
    classifier: ClassifierModelType
    reranker: ClassifierModelType


class InfoReply(TypedDict):
    """The fields of TEI's `GET /info`."""

    model_id: str
    model_sha: str | None
    model_dtype: str | None
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_client_batch_size: int
    max_batch_tokens: int | None
    max_batch_requests: int | None
    auto_truncate: bool
    tokenization_workers: int
    sha: str | None
    docker_label: str | None


def _model_type(spec: ModelSpec) -> ModelType:
    if spec.kind != "cross-encoder":
        pooling = "splade" if spec.kind == "sparse" else spec.pooling
        return {"embedding": {"pooling": pooling}}
    labels: ClassifierModelType = {
        "id2label": {str(i): label for i, label in enumerate(spec.labels)},
        "label2id": {label: i for i, label in enumerate(spec.labels)},
    }
    return {"reranker": labels} if "rerank" in spec.tasks else {"classifier": labels}


def info(service: EmbedService, precision: str | None) -> InfoReply:
    """Returns the fields of TEI's `GET /info`; `precision` is None while no replica answers."""
    spec, settings = service.spec, service.settings
    return {
        "model_id": spec.name,
        "model_sha": spec.weights_sha256,
        "model_dtype": precision,
        "served_model_name": spec.name,
        "model_type": _model_type(spec),
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_input_length": spec.max_tokens,
        "max_client_batch_size": settings.max_texts_per_request,
        "max_batch_tokens": None,  # each replica learns its own
        "max_batch_requests": None,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "sha": None,
        "docker_label": None,
    }


def _endpoint(
    path: str,
    summary: str,
    fields: tuple[Field, ...],
    parse: Callable[[Body, ModelSpec], ParsedRequest],
    reply: Any,
    task: Task | None = "embed",
) -> Endpoint:
    return Endpoint(
        path=path,
        summary=summary,
        deciding_key=fields[0].name,
        fields=(*fields, MODEL),
        parse=parse,
        reply_schema=schema_of(reply),
        headers=headers,
        task=task,
    )


_EMBED = _endpoint(
    "/embed",
    "Embed texts.",
    tei_requests.EMBED_FIELDS,
    tei_requests.parse_embed,
    list[Vector],
)
_EMBED_SPARSE = _endpoint(
    "/embed_sparse",
    "Embed texts sparsely: weights of tokens of the vocabulary.",
    tei_requests.SPARSE_FIELDS,
    tei_requests.parse_embed_sparse,
    list[list[tei_requests.TokenWeight]],
    task="embed_sparse",
)
_PREDICT = _endpoint(
    "/predict",
    "Classify texts or pairs of texts.",
    tei_scores.PREDICT_FIELDS,
    tei_scores.parse_predict,
    list[LabelScore] | list[list[LabelScore]],
    task="classify",
)
_RERANK = _endpoint(
    "/rerank",
    "Rerank texts by their relevance to a query.",
    tei_scores.RERANK_FIELDS,
    tei_scores.parse_rerank,
    list[tei_scores.Rank],
    task="rerank",
)
_ROOT = _endpoint(
    "/",
    "Compute what the model is made for: the request is one of `/embed`, `/similarity`, "
    "`/embed_sparse`, `/predict` or `/rerank`.",
    tei_requests.ROOT_FIELDS,
    tei_requests.parse_root,
    list[Vector] | list[float],
)
_VERTEX = tei_vertex.endpoint_of(_EMBED)
_VERTEX_VARIANTS = (
    tei_vertex.endpoint_of(_EMBED_SPARSE),
    tei_vertex.endpoint_of(_PREDICT),
    tei_vertex.endpoint_of(_PREDICT, task="rerank", other=_RERANK),
)


def _by_main_task(endpoint: Endpoint, path: str, variants: Iterable[Endpoint]) -> Endpoint:
    """Returns an endpoint at a path, with others in its place for models with their main tasks."""
    by_task = {variant.task: replace(variant, path=path) for variant in variants}
    return replace(endpoint, path=path, variants=by_task)


DIALECT = Dialect(
    name="TEI",
    order=20,
    render_error=render_error,
    error_schema=schema_of(ErrorReply),
    endpoints=(
        _EMBED,
        *(
            _by_main_task(_ROOT, path, (_EMBED_SPARSE, _PREDICT, _RERANK))
            for path in ("/", "/invocations")
        ),
        _endpoint(
            "/embed_all",
            "Embed each token of texts.",
            tei_requests.EMBED_ALL_FIELDS,
            tei_requests.parse_embed_all,
            list[list[Vector]],
            task="embed_tokens",
        ),
        _endpoint(
            "/similarity",
            "Compute the cosine similarity of texts to a source sentence.",
            tei_requests.SIMILARITY_FIELDS,
            tei_requests.parse_similarity,
            list[float],
        ),
        _endpoint(
            "/tokenize",
            "Tokenize texts with the model's tokenizer.",
            tei_requests.TOKENIZE_FIELDS,
            tei_requests.parse_tokenize,
            list[list[tei_requests.Token]],
            task=None,
        ),
        _endpoint(
            "/decode",
            "Decode token ids to texts.",
            tei_requests.DECODE_FIELDS,
            tei_requests.parse_decode,
            list[str],
            task=None,
        ),
        _by_main_task(_VERTEX, "/vertex", _VERTEX_VARIANTS),
        _EMBED_SPARSE,
        _PREDICT,
        _RERANK,
    ),
    views=(health_route("/"), health_route("/ping")),
)
