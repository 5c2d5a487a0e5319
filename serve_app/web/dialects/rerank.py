"""`POST /v1/rerank` in the formats of Cohere's v1 API, Jina, vLLM, Infinity and Voyage.

The requests of most of them can't be told apart: the reply has the members that the client of any
of them reads. Voyage's client sends `truncation`, and gets Voyage's reply.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, NotRequired, TypedDict
from uuid import uuid4

import orjson

from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.results import ScoreResult
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import openai, vllm_options
from serve_app.web.dialects.cohere_meta import RerankMeta, rerank_meta
from serve_app.web.dialects.extensions import USE_CACHE
from serve_app.web.dialects.rerank_requests import (
    DOCUMENTS,
    MAX_TOKENS_PER_DOC,
    MODEL,
    QUERY,
    RAW_SCORES,
    RETURN_DOCUMENTS,
    ranking,
    require_reranker,
    score_job,
)
from serve_app.web.dialects.usage import Usage, usage
from serve_app.web.endpoint import Endpoint, ParsedRequest
from serve_app.web.schema.documents import MembersField
from serve_app.web.schema.fields import Body, BoolField, IntField
from serve_app.web.schema.json_schema import STRING, any_of
from serve_app.web.schema.token_limit import TokenLimitField
from serve_app.web.schema.typed_dict import schema_of

_TOP_N = IntField(
    "top_n", "Number of best documents to return; all by default, and with 0 (vLLM).", minimum=0
)
_TOP_K = IntField("top_k", "Same as `top_n`; selects Voyage's reply.", minimum=1)
_TRUNCATION = BoolField(
    "truncation", "If false, pairs over the token limit are errors; selects Voyage's reply."
)
_RANK_FIELDS = MembersField(
    "rank_fields",
    "Members of the documents that are their text, joined by line breaks; `text` by default "
    "(Cohere).",
)
_MAX_CHUNKS = IntField(
    "max_chunks_per_doc",
    "Accepted for compatibility and ignored: pairs are truncated at the model's token limit "
    "(Cohere).",
    minimum=1,
)
_MAX_TOKENS_PER_QUERY = TokenLimitField(
    "max_tokens_per_query", "Token limit of the query; at least the model's own limit (vLLM)."
)
_FIELDS = (
    DOCUMENTS,
    QUERY,
    MODEL,
    _TOP_N,
    _TOP_K,
    RETURN_DOCUMENTS,
    RAW_SCORES,
    _RANK_FIELDS,
    _MAX_CHUNKS,
    MAX_TOKENS_PER_DOC,
    _MAX_TOKENS_PER_QUERY,
    _TRUNCATION,
    *vllm_options.FIELDS,
    USE_CACHE,
)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v1/rerank`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
        UnsupportedOperation: the model doesn't rerank texts.
    """
    require_reranker(spec)
    _MAX_CHUNKS(body)
    MAX_TOKENS_PER_DOC.check(body, spec)
    _MAX_TOKENS_PER_QUERY.check(body, spec)
    top_n, top_k, truncate = _TOP_N(body), _TOP_K(body), _TRUNCATION(body)
    raw_scores, use_activation = RAW_SCORES(body), vllm_options.USE_ACTIVATION(body)
    texts = DOCUMENTS(body, _RANK_FIELDS(body))
    vllm_options.check(body, spec)
    job = score_job(
        body,
        texts,
        truncation="error" if truncate is False else "end",
        lane=vllm_options.lane(body),
    )
    return_documents = RETURN_DOCUMENTS(body)
    raw = bool(raw_scores) or use_activation is False
    documents: Sequence[Any] | None = None
    if top_k is not None or truncate is not None:
        documents = texts if return_documents else None
        render = partial(_render_voyage, documents=documents, top_k=top_k or top_n, raw=raw)
    else:
        if return_documents:
            # Infinity's reply, selected by a field of its own, has the texts themselves.
            documents = texts if raw_scores is not None else _objects(body[DOCUMENTS.name])
        render = partial(_render, documents=documents, top_n=top_n, raw=raw)
    return ParsedRequest(job, render, has_vectors=False)


def _objects(documents: Sequence[Any]) -> Sequence[dict[str, Any]]:
    return [item if isinstance(item, dict) else {"text": item} for item in documents]


_DOCUMENT = any_of({"type": "object"}, STRING)


class RerankResult(TypedDict):
    """The position of a document in the request, and its score."""

    index: int
    relevance_score: float
    document: NotRequired[Annotated[Any, _DOCUMENT]]


class RerankReply(TypedDict):
    """The reply of `POST /v1/rerank`."""

    id: str
    object: Literal["rerank"]
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: RerankMeta


def _results(
    result: ScoreResult, documents: Sequence[Any] | None, top_n: int | None, raw: bool
) -> list[RerankResult]:
    results: list[RerankResult] = []
    for index, score in ranking(result, top_n, raw=raw):
        results.append({"index": index, "relevance_score": score})
        if documents is not None:
            results[-1]["document"] = documents[index]
    return results


def _render(
    result: ScoreResult, *, documents: Sequence[Any] | None, top_n: int | None, raw: bool
) -> bytes:
    reply: RerankReply = {
        "id": str(uuid4()),
        "object": "rerank",
        "model": result.model,
        "results": _results(result, documents, top_n, raw),
        "usage": usage(result),
        "meta": rerank_meta(result, api_version="1"),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class VoyageReply(TypedDict):
    """Voyage's reply of `POST /v1/rerank`."""

    object: Literal["list"]
    data: list[RerankResult]
    model: str
    usage: Usage


def _render_voyage(
    result: ScoreResult, *, documents: Sequence[Any] | None, top_k: int | None, raw: bool
) -> bytes:
    reply: VoyageReply = {
        "object": "list",
        "data": _results(result, documents, top_k, raw),
        "model": result.model,
        "usage": usage(result),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class ErrorReply(openai.ErrorReply):
    """The body of an error: clients of Cohere read `message`, those of Jina and Voyage `detail`."""

    message: str


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error in OpenAI's envelope, and its message where other clients expect it."""
    reply: ErrorReply = {
        **openai.error_reply(error, {"texts": "documents"}),
        "message": str(error),
    }
    return ErrorResponse(error.status, orjson.dumps(reply))


DIALECT = Dialect(
    name="Rerank",
    order=60,
    render_error=render_error,
    error_schema=schema_of(ErrorReply),
    endpoints=(
        Endpoint(
            path="/v1/rerank",
            summary="Rerank documents by their relevance to a query.",
            deciding_key="documents",
            fields=_FIELDS,
            parse=parse,
            task="rerank",
            reply_schema=schema_of(RerankReply | VoyageReply),
        ),
    ),
)
