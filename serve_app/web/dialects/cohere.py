"""Cohere's format: `POST /v2/embed`, `/v2/rerank`, `/v1/tokenize` and `/v1/detokenize`.

`cohere_embed` holds the body of `/v2/embed`. `/v1/rerank`, which other APIs have too, is in
`rerank`.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypedDict
from uuid import uuid4

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidRequest
from serve_app.jobs import DecodeJob, TokenizeJob
from serve_app.models import ModelSpec
from serve_app.results import ScoreResult
from serve_app.types import Lane, Tokenization
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import cohere_embed, rerank_requests
from serve_app.web.dialects.cohere_meta import META, Meta, RerankMeta, rerank_meta
from serve_app.web.dialects.extensions import USE_CACHE
from serve_app.web.endpoint import Endpoint, ParsedRequest
from serve_app.web.schema.fields import Body, ModelField, TextField, TokenIdsField
from serve_app.web.schema.typed_dict import schema_of

_MODEL = ModelField("model", "Name or alias of the served model.")
_TEXT = TextField("text", "The text to tokenize.", required=True)
_TOKENS = TokenIdsField("tokens", "The token ids of a text.", required=True, many=False)
_RERANK_FIELDS = (
    rerank_requests.MODEL,
    rerank_requests.QUERY,
    rerank_requests.DOCUMENTS,
    rerank_requests.TOP_N,
    rerank_requests.MAX_TOKENS_PER_DOC,
    cohere_embed.PRIORITY,
    USE_CACHE,
)


def parse_tokenize(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v1/tokenize`.

    Raises:
        InvalidRequest: a field is missing, empty or has a wrong type.
    """
    text = _TEXT(body)
    if text is None:
        raise InvalidRequest("`text` is missing. Send a string.", "text")
    if not text:
        raise EmptyInput("`text` is empty. Send at least one character.", "text")
    return ParsedRequest(TokenizeJob((text,), add_special_tokens=False), _render_tokens)


def parse_detokenize(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v1/detokenize`.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
    """
    return ParsedRequest(DecodeJob(_TOKENS(body)), _render_text)


def parse_rerank(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v2/rerank`.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
        UnsupportedOperation: the model doesn't rerank texts.
    """
    rerank_requests.require_reranker(spec)
    rerank_requests.MAX_TOKENS_PER_DOC.check(body, spec)
    documents = rerank_requests.DOCUMENTS(body)
    lane: Lane | None = "bulk" if cohere_embed.PRIORITY(body) else None
    job = rerank_requests.score_job(body, documents, lane=lane)
    render = partial(_render_ranking, top_n=rerank_requests.TOP_N(body))
    return ParsedRequest(job, render, has_vectors=False)


class TokenizeReply(TypedDict):
    """The reply of `POST /v1/tokenize`."""

    tokens: list[int]
    token_strings: list[str]
    meta: Meta


class DetokenizeReply(TypedDict):
    """The reply of `POST /v1/detokenize`."""

    text: str
    meta: Meta


class RerankResult(TypedDict):
    """The position of a document in the request, and its score."""

    index: int
    relevance_score: float


class RerankReply(TypedDict):
    """The reply of `POST /v2/rerank`."""

    id: str
    results: list[RerankResult]
    meta: RerankMeta


def _render_tokens(rows: Sequence[Tokenization]) -> bytes:
    (row,) = rows
    reply: TokenizeReply = {"tokens": row.ids, "token_strings": row.tokens, "meta": META}
    return orjson.dumps(reply)


def _render_text(texts: Sequence[str]) -> bytes:
    reply: DetokenizeReply = {"text": texts[0], "meta": META}
    return orjson.dumps(reply)


def _render_ranking(result: ScoreResult, *, top_n: int | None) -> bytes:
    reply: RerankReply = {
        "id": str(uuid4()),
        "results": [
            {"index": index, "relevance_score": score}
            for index, score in rerank_requests.ranking(result, top_n)
        ],
        "meta": rerank_meta(result, api_version="2"),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class ErrorReply(TypedDict):
    """The body of an error."""

    message: str


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as `{"message": message}`."""
    body: ErrorReply = {"message": str(error)}
    return ErrorResponse(error.status, orjson.dumps(body))


DIALECT = Dialect(
    name="Cohere",
    order=50,
    render_error=render_error,
    error_schema=schema_of(ErrorReply),
    endpoints=(
        Endpoint(
            path="/v2/embed",
            summary="Embed texts.",
            deciding_key="input_type",
            fields=cohere_embed.FIELDS,
            parse=cohere_embed.parse,
            reply_schema=schema_of(cohere_embed.EmbedReply),
            has_images=cohere_embed.has_images,
        ),
        Endpoint(
            path="/v2/rerank",
            summary="Rerank documents by their relevance to a query.",
            deciding_key="documents",
            fields=_RERANK_FIELDS,
            parse=parse_rerank,
            reply_schema=schema_of(RerankReply),
            task="rerank",
        ),
        Endpoint(
            path="/v1/tokenize",
            summary="Tokenize a text with the model's tokenizer.",
            deciding_key="text",
            fields=(_TEXT, _MODEL),
            parse=parse_tokenize,
            reply_schema=schema_of(TokenizeReply),
            task=None,
        ),
        Endpoint(
            path="/v1/detokenize",
            summary="Decode token ids to text.",
            deciding_key="tokens",
            fields=(_TOKENS, _MODEL),
            parse=parse_detokenize,
            reply_schema=schema_of(DetokenizeReply),
            task=None,
        ),
    ),
)
