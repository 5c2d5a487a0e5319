"""The wire format of text-embeddings-inference."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson

from serve_app.errors import (
    EmbedServeError,
    EmptyInput,
    InferenceError,
    InvalidJSON,
    ClientError,
    InvalidRequest,
    Overloaded,
    Unauthorized,
    Unavailable,
    UnsupportedOperation,
)
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import (
    BatchJob,
    DecodeJob,
    EmbedJob,
    EmbedResult,
    Input,
    Tokenization,
    TokenizeJob,
    TokenVectors,
    TokenVectorsJob,
    Truncation,
)
from serve_app.web.dialects import openai
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Endpoint, ErrorResponse, ParsedRequest, refusal
from serve_app.web.schema.fields import (
    Body,
    BoolField,
    DimensionsField,
    EnumField,
    Field,
    InputTypeField,
    ObjectField,
    SchemaContext,
    TextField,
    TextsField,
    TokenIdsField,
)
from serve_app.web.schema.json_schema import (
    BOOLEAN,
    INTEGER,
    STRING,
    VECTOR,
    Schema,
    any_of,
    array,
    object_,
)
from serve_app.web.schema.vector_encoding import float_rows

_INPUTS = TextsField(
    "inputs", "One text, or a list; or the model's token ids.", True, allow_token_ids=True
)
_TRUNCATE = BoolField("truncate", "false: a text that is too long is an error.")
_DIRECTION = EnumField(
    "truncation_direction",
    "Which end a text that is too long loses.",
    choices=("Right", "right", "Left", "left"),
)
_PROMPT = InputTypeField("prompt_name", "Which of the model's prompts is put before each text.")
_NORMALIZE = BoolField("normalize", "Vectors of unit length; true unless said otherwise.")
_DIMENSIONS = DimensionsField("dimensions", "Components to keep, at unit length again.")
_TRUNCATION = (_TRUNCATE, _DIRECTION)
_EMBED = (_INPUTS, *_TRUNCATION, _PROMPT, _NORMALIZE, _DIMENSIONS, CHUNK, USE_CACHE)
_EMBED_ALL = (_INPUTS, *_TRUNCATION, _PROMPT)
_SOURCE = TextField("source_sentence", "What the others are compared with.", True)
_SENTENCES = TextsField("sentences", "What is compared.", True, allow_single=False, reserved=1)
_PAIR = ObjectField("inputs", "What is compared.", True, fields=(_SOURCE, _SENTENCES))
_PARAMETERS = ObjectField("parameters", "As for `/embed`.", fields=(*_TRUNCATION, _PROMPT))
_INSTANCES = ObjectField(
    "instances", "Bodies as for `/embed`.", True, fields=_EMBED, many=True, texts=True
)
_TOKENIZED = TextsField("inputs", "One text, or a list.", True)
_SPECIAL = BoolField(
    "add_special_tokens", "With the tokens around a text; true unless said otherwise."
)
_IDS = TokenIdsField("ids", "Token ids of one text, or a list of such lists.", True)
_SKIP = BoolField(
    "skip_special_tokens", "Without the tokens around a text; true unless said otherwise."
)

#: What the dialect calls our errors, the first that fits, and its status; None: our own.
_ERRORS: tuple[tuple[type[EmbedServeError], str, int | None], ...] = (
    (EmptyInput, "Empty", 400),
    (InvalidJSON, "Validation", 400),
    (UnsupportedOperation, "Backend", 424),
    (Overloaded, "Overloaded", 429),
    (Unavailable, "Unhealthy", 503),
    (InferenceError, "Backend", 424),
    (ClientError, "Validation", None),
)
#: What the dialect's messages begin with, of errors that are about what is asked for.
_BEGINNINGS = {400: "Input validation error: ", 422: "Input validation error: "}
_BEGINNINGS |= {424: "Backend error: "}


def parse_embed(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /embed`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    return ParsedRequest(_embed_job(body, spec), _render_embed)


def _embed_job(body: Body, spec: ModelSpec) -> EmbedJob:
    truncation, chunk = _truncation(body), CHUNK(body)
    return EmbedJob(
        _INPUTS(body),
        input_type=_PROMPT(body, spec),
        dimensions=_DIMENSIONS(body),
        normalize=_NORMALIZE(body) is not False,
        truncation="chunk" if chunk else truncation,
        use_cache=USE_CACHE(body) is not False,
    )


def _truncation(body: Body) -> Truncation:
    direction = _DIRECTION(body)
    if _TRUNCATE(body) is False:
        return "error"
    return "start" if direction in ("Left", "left") else "end"


def parse_embed_all(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /embed_all`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    job = EmbedJob(_INPUTS(body), input_type=_PROMPT(body, spec), truncation=_truncation(body))
    return ParsedRequest(TokenVectorsJob(job), _render_embed_all)


def parse_similarity(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /similarity`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    inputs = _PAIR(body) or {}
    source = _SOURCE(inputs)
    sentences = _SENTENCES(inputs)
    if source is None:
        raise InvalidRequest("`inputs` must hold `source_sentence` and `sentences`.", "inputs")
    if not sentences:
        raise EmptyInput("`sentences` is empty. Send at least one.", "inputs")
    more = _PARAMETERS(body) or {}
    texts: tuple[Input, ...] = (source, *sentences)
    job = EmbedJob(
        texts, input_type=_PROMPT(more, spec), normalize=True, truncation=_truncation(more)
    )
    return ParsedRequest(job, _render_similarity, has_vectors=False)


class _TextsOrPair(TextsField):
    """What `/embed` takes, or what `/similarity` takes."""

    __slots__ = ()

    def _value_schema(self, scope: SchemaContext) -> Schema:
        return any_of(TextsField._value_schema(self, scope), _PAIR._value_schema(scope))


_EITHER = _TextsOrPair(
    "inputs", "As for `/embed`, or as for `/similarity`.", True, allow_token_ids=True
)


def parse_root(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads a body that is of `POST /embed`, or where `inputs` is an object of `/similarity`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    more = _PARAMETERS(body) or {}
    _truncation(more)  # must be right also where `/embed` has no use for it
    openai.check_unused(spec, purpose=_PROMPT(more, spec))
    if not isinstance(body.get("inputs"), dict):
        return parse_embed(body, spec)
    job = _embed_job({**body, "inputs": []}, spec)  # which `/similarity` has no use for
    openai.check_unused(spec, job.dimensions, job.input_type)
    return parse_similarity(body, spec)


def parse_tokenize(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /tokenize`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    texts = _TOKENIZED(body)
    job = TokenizeJob(
        texts,  # type: ignore[arg-type]  # which items are strings is the service's to see
        special=_SPECIAL(body) is not False,
        input_type=_PROMPT(body, spec),
    )
    return ParsedRequest(job, _render_tokens)


def parse_decode(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /decode`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    return ParsedRequest(DecodeJob(_IDS(body), _SKIP(body) is not False), orjson.dumps)


def parse_vertex(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /vertex`: several bodies of `/embed`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    instances = _INSTANCES(body)
    if instances is None:
        raise InvalidRequest("`instances` is missing. Send a list of objects.", "instances")
    if not instances:
        raise EmptyInput("`instances` is empty. Send at least one.", "instances")
    jobs = tuple(_embed_job(instance, spec) for instance in instances)
    return ParsedRequest(BatchJob(jobs), _render_vertex)


def refuse_task(body: Body, spec: ModelSpec, *, needs: str) -> ParsedRequest:
    """Says that the model can't do it.

    Raises:
        UnsupportedOperation: always.
    """
    raise UnsupportedOperation(needs)


def _dumps(reply: Any) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _render_embed(result: EmbedResult) -> bytes:
    return _dumps(float_rows(result))


def _render_embed_all(rows: Sequence[TokenVectors]) -> bytes:
    return _dumps([row.values for row in rows])


def _render_similarity(result: EmbedResult) -> bytes:
    source, *sentences = result.vectors
    return _dumps(np.stack(sentences) @ source)


def _render_tokens(rows: Sequence[Tokenization]) -> bytes:
    return _dumps([_tokens(row) for row in rows])


def _tokens(row: Tokenization) -> list[dict[str, Any]]:
    parts = zip(row.ids, row.pieces, row.special, row.offsets, strict=True)
    return [
        {"id": token, "text": piece, "special": special}
        | ({} if special else {"start": start, "stop": stop})
        for token, piece, special, (start, stop) in parts
    ]


def _render_vertex(results: Sequence[EmbedResult]) -> bytes:
    return _dumps({"predictions": [float_rows(result) for result in results]})


@refusal(object_({"error": STRING, "error_type": STRING}))
def render_error(error: EmbedServeError) -> ErrorResponse:
    """The error's body; there is none where the key is wrong."""
    if isinstance(error, Unauthorized):
        return ErrorResponse(error.status, b"")
    fits = ((name, status) for kind, name, status in _ERRORS if isinstance(error, kind))
    name, status = next(fits, ("Unhealthy", None))
    if status is None:
        status = 422 if error.status == 400 else error.status
    told = _BEGINNINGS.get(status, "") + str(error)
    return ErrorResponse(status, orjson.dumps({"error": told, "error_type": name}))


def headers(result: EmbedResult, total_s: float) -> Mapping[str, str]:
    """Where the time went, in milliseconds, and how much was computed."""
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


def info(service: EmbedService, precision: str | None) -> dict[str, Any]:
    """Returns the fields of TEI's `GET /info`; `precision` is None while no replica answers."""
    spec, settings = service.spec, service.settings
    return {
        "model_id": spec.name,
        "model_sha": spec.weights_sha256,
        "model_dtype": precision,
        "served_model_name": spec.name,
        "model_type": {"embedding": {"pooling": spec.pooling}},
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


_EMBEDDED = array(VECTOR)
_SPELLED = object_(
    {"id": INTEGER, "text": STRING, "special": BOOLEAN, "start": INTEGER, "stop": INTEGER},
    optional=("start", "stop"),
)


def _endpoint(
    path: str,
    description: str,
    fields: tuple[Field, ...],
    parse: Callable[[Body, ModelSpec], ParsedRequest],
    reply: Schema,
) -> Endpoint:
    return Endpoint(
        path, "TEI", description, fields[0].name, fields, parse, reply, render_error, headers
    )


def _refused(path: str, description: str, key: Field, needs: str) -> Endpoint:
    """A route of TEI's for models of another kind."""
    return _endpoint(path, description, (key,), partial(refuse_task, needs=needs), {})


ENDPOINTS = (
    _endpoint("/embed", "Vectors of texts.", _EMBED, parse_embed, _EMBEDDED),
    *(
        _endpoint(
            path,
            "Vectors of texts, or cosines of texts to one.",
            (_EITHER, *_EMBED[1:], _PARAMETERS),
            parse_root,
            any_of(_EMBEDDED, VECTOR),
        )
        for path in ("/", "/invocations")
    ),
    _endpoint(
        "/embed_all",
        "Vectors of each text's tokens.",
        _EMBED_ALL,
        parse_embed_all,
        array(_EMBEDDED),
    ),
    _endpoint(
        "/similarity", "Cosines of texts to one.", (_PAIR, _PARAMETERS), parse_similarity, VECTOR
    ),
    _endpoint(
        "/tokenize",
        "How the model's tokenizer spells texts.",
        (_TOKENIZED, _SPECIAL, _PROMPT),
        parse_tokenize,
        array(array(_SPELLED)),
    ),
    _endpoint("/decode", "Texts of token ids.", (_IDS, _SKIP), parse_decode, array(STRING)),
    _endpoint(
        "/vertex",
        "Several bodies of `/embed` in one.",
        (_INSTANCES,),
        parse_vertex,
        object_({"predictions": array(_EMBEDDED)}),
    ),
    _refused(
        "/embed_sparse",
        "For SPLADE models; refused.",
        TextsField("inputs", "Texts.", True),
        "Model is not an embedding model with SPLADE pooling",
    ),
    _refused(
        "/predict",
        "For classifiers; refused.",
        TextsField("inputs", "Texts.", True),
        "Model is not a classifier model",
    ),
    _refused(
        "/rerank",
        "For rerankers; refused.",
        TextsField("texts", "Texts.", True, allow_single=False),
        "model is not a re-ranker model",
    ),
)
