"""vLLM's format of `POST /score`: the scores of pairs of texts.

vLLM's fields of `/v1/embeddings` are read by the OpenAI dialect, those of `/v1/rerank` by `rerank`,
and those of `/classify` by Infinity's.
"""

import time
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, TypedDict
from uuid import uuid4

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidRequest
from serve_app.inputs import TextPair
from serve_app.jobs import ScoreJob
from serve_app.models import ModelSpec
from serve_app.results import ScoreResult
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import vllm_options
from serve_app.web.dialects.extensions import USE_CACHE
from serve_app.web.dialects.rerank_requests import MODEL, require_reranker
from serve_app.web.dialects.usage import Usage, usage
from serve_app.web.endpoint import Endpoint, ParsedRequest
from serve_app.web.schema.fields import Body, TextsField
from serve_app.web.schema.typed_dict import schema_of

_FIRST = TextsField("text_1", "A text, or as many as `text_2`.", exclusive_with="queries")
_SECOND = TextsField("text_2", "A text, or a list of texts.", exclusive_with="documents")
_QUERIES = TextsField("queries", "Same as `text_1`.")
_DOCUMENTS = TextsField("documents", "Same as `text_2`.")
_FIELDS = (_FIRST, _SECOND, _QUERIES, _DOCUMENTS, MODEL, *vllm_options.FIELDS, USE_CACHE)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /score`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type, or the numbers of texts differ.
        UnsupportedOperation: the model doesn't score pairs of texts.
    """
    require_reranker(spec)
    vllm_options.check(body, spec)
    first, second = _texts(body, _FIRST, _QUERIES), _texts(body, _SECOND, _DOCUMENTS)
    if len(first) == 1:
        first *= len(second)
    if len(first) != len(second):
        raise InvalidRequest(
            f"`{_FIRST.name}` must hold one text, or as many as `{_SECOND.name}`; it holds "
            f"{len(first)}, and `{_SECOND.name}` {len(second)}.",
            _FIRST.name,
        )
    job = ScoreJob(
        tuple(map(TextPair, first, second)),
        lane=vllm_options.lane(body),
        use_cache=USE_CACHE(body) is not False,
    )
    raw = vllm_options.USE_ACTIVATION(body) is False
    return ParsedRequest(job, partial(_render, raw=raw), has_vectors=False)


def _texts(body: Body, field: TextsField, synonym: TextsField) -> tuple[Any, ...]:
    """Returns the texts of one of two fields with the same meaning."""
    if body.get(field.name) is not None and body.get(synonym.name) is not None:
        raise InvalidRequest(
            f"Send one of `{field.name}` and `{synonym.name}`, not both.", field.name
        )
    texts = (field if body.get(synonym.name) is None else synonym)(body)
    if not texts:
        raise EmptyInput(f"`{field.name}` is empty. Send at least one text.", field.name)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"`{field.name}` must be a string or a list of strings.", field.name)
    return texts


class Score(TypedDict):
    """The score of a pair, and its position in the request."""

    index: int
    object: Literal["score"]
    score: float


class ScoreReply(TypedDict):
    """The reply of `POST /score`."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


def _render(result: ScoreResult, *, raw: bool) -> bytes:
    scores = (result.logits if raw else result.probabilities)[:, 0]
    reply: ScoreReply = {
        "id": f"score-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": result.model,
        "data": [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)],
        "usage": usage(result),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class ErrorDetail(TypedDict):
    """The fields of an error; `code` is the status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorReply(TypedDict):
    """The body of an error."""

    error: ErrorDetail


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as vLLM does: its type is the name of the status."""
    name = HTTPStatus(error.status).phrase.title().replace(" ", "").replace("-", "")
    body: ErrorReply = {
        "error": {
            "message": str(error),
            "type": name if name.endswith("Error") else f"{name}Error",
            "param": error.param,
            "code": int(error.status),
        }
    }
    return ErrorResponse(error.status, orjson.dumps(body))


DIALECT = Dialect(
    name="vLLM",
    order=65,
    render_error=render_error,
    error_schema=schema_of(ErrorReply),
    endpoints=tuple(
        Endpoint(
            path=path,
            summary="Score pairs of texts.",
            deciding_key="text_1",
            fields=_FIELDS,
            parse=parse,
            reply_schema=schema_of(ScoreReply),
            task="rerank",
        )
        for path in ("/score", "/v1/score")
    ),
)
