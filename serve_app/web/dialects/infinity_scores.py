"""Bodies of Infinity's `POST /rerank` and `POST /classify`: fields, parse and render functions.

Requests for `/classify` that Infinity wouldn't take, or with fields of vLLM, get vLLM's reply.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NotRequired, TypedDict
from uuid import uuid4

import orjson

from serve_app.jobs import ScoreJob
from serve_app.models import ModelSpec
from serve_app.results import ScoreResult
from serve_app.web.dialects import vllm_options
from serve_app.web.dialects.classify_requests import LabelScore, label_scores, require_classifier
from serve_app.web.dialects.extensions import USE_CACHE
from serve_app.web.dialects.rerank_requests import (
    DOCUMENTS,
    QUERY,
    RAW_SCORES,
    RETURN_DOCUMENTS,
    TOP_N,
    ranking,
    require_reranker,
    score_job,
)
from serve_app.web.dialects.usage import Usage, usage
from serve_app.web.endpoint import ParsedRequest
from serve_app.web.schema.fields import Body, ModelField, TextsField

MODEL = ModelField("model", "The served model.", wildcard_names=("default/not-specified",))
_INPUT = TextsField(
    "input", "The texts to classify. A single string selects vLLM's reply.", required=True
)
RERANK_FIELDS = (DOCUMENTS, QUERY, RETURN_DOCUMENTS, RAW_SCORES, MODEL, TOP_N, USE_CACHE)
CLASSIFY_FIELDS = (_INPUT, MODEL, RAW_SCORES, *vllm_options.FIELDS, USE_CACHE)


def parse_rerank(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /rerank`.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
        UnsupportedOperation: the model doesn't rerank texts.
    """
    require_reranker(spec)
    documents = DOCUMENTS(body)
    return_documents = RETURN_DOCUMENTS(body)
    render = partial(
        _render_ranking,
        documents=documents if return_documents else None,
        top_n=TOP_N(body),
        raw=RAW_SCORES(body) is True,
    )
    return ParsedRequest(score_job(body, documents), render, has_vectors=False)


def parse_classify(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /classify`.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
        UnsupportedOperation: the model doesn't classify texts.
    """
    require_classifier(spec)
    vllm_options.check(body, spec)
    use_activation = vllm_options.USE_ACTIVATION(body)
    raw = RAW_SCORES(body) is True or use_activation is False
    job = ScoreJob(
        _INPUT(body),
        task="classify",
        lane=vllm_options.lane(body),
        use_cache=USE_CACHE(body) is not False,
    )
    is_vllm = isinstance(body[_INPUT.name], str) or any(
        body.get(field.name) is not None for field in vllm_options.FIELDS
    )
    render = _render_vllm_labels if is_vllm else _render_labels
    return ParsedRequest(job, partial(render, raw=raw), has_vectors=False)


class RerankResult(TypedDict):
    """The position of a document in the request, and its score."""

    index: int
    relevance_score: float
    document: NotRequired[str]


class RerankReply(TypedDict):
    """The reply of `POST /rerank`."""

    object: Literal["rerank"]
    results: list[RerankResult]
    model: str
    usage: Usage
    id: str
    created: int


class ClassifyReply(TypedDict):
    """The reply of `POST /classify`: the labels of each text, by descending score."""

    object: Literal["classify"]
    data: list[list[LabelScore]]
    model: str
    usage: Usage
    id: str
    created: int


class LabelProbabilities(TypedDict):
    """The best label of a text, and the scores of all labels in the model's order."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class VllmClassifyReply(TypedDict):
    """vLLM's reply of `POST /classify`."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[LabelProbabilities]
    usage: Usage


def _dumps(reply: Any) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _render_ranking(
    result: ScoreResult, *, documents: Sequence[str] | None, top_n: int | None, raw: bool
) -> bytes:
    results: list[RerankResult] = []
    for index, score in ranking(result, top_n, raw=raw):
        results.append({"index": index, "relevance_score": score})
        if documents is not None:
            results[-1]["document"] = documents[index]
    reply: RerankReply = {
        "object": "rerank",
        "results": results,
        "model": result.model,
        "usage": usage(result),
        "id": f"infinity-{uuid4()}",
        "created": int(time.time()),
    }
    return _dumps(reply)


def _render_labels(result: ScoreResult, *, raw: bool) -> bytes:
    reply: ClassifyReply = {
        "object": "classify",
        "data": label_scores(result, raw=raw),
        "model": result.model,
        "usage": usage(result),
        "id": f"infinity-{uuid4()}",
        "created": int(time.time()),
    }
    return _dumps(reply)


def _render_vllm_labels(result: ScoreResult, *, raw: bool) -> bytes:
    scores = result.logits if raw else result.probabilities
    reply: VllmClassifyReply = {
        "id": f"classify-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": result.model,
        "data": [
            {
                "index": i,
                "label": result.labels[int(row.argmax())],
                "probs": row,
                "num_classes": len(row),
            }
            for i, row in enumerate(scores)
        ],
        "usage": usage(result),
    }
    return _dumps(reply)
