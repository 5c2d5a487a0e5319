"""What `embedserve check` tests.

A check returns a remark, or raises why it failed or was skipped.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any
from urllib.parse import quote

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from serve_app.command import reference_vectors
from serve_app.command.checked_service import (
    CheckedService,
    CheckFailed,
    CheckSkipped,
    Reply,
    new_text,
    unit,
)
from serve_app.command.dialect_calls import DIALECT_CALLS, DialectCall, JSONPath, json_value
from serve_app.engines.parity import MIN_COSINE
from serve_app.errors import UnsupportedOperation

Check = Callable[[CheckedService], str]

#: The checks without which the others make no sense.
HEALTH, INFO = "health", "info"

_STREAM_TEXTS = 1000
_STREAM_SAMPLES = 8
#: Replicas whose caches aren't shared may each miss once.
_CACHE_ATTEMPTS = 8
#: Ray exports metrics every ten seconds.
_METRICS_TIMEOUT_S = 30.0


def checks() -> Iterable[tuple[str, Check]]:
    """Yields each check with its name, in the order in which they must run."""
    yield HEALTH, _health
    yield INFO, _info
    for dialect, calls in groupby(DIALECT_CALLS, key=lambda call: call.dialect):
        yield dialect, _with_embedder(_dialect([*calls]))
    yield "usage", _with_embedder(_usage)
    yield "cache", _with_embedder(_cache)
    yield "keys", _keys
    yield f"{_STREAM_TEXTS:,} texts", _with_embedder(_stream)
    yield "reference vectors", _with_embedder(_reference)
    yield "other models", _other_models
    yield "metrics", _metrics


def _with_embedder(check: Check) -> Check:
    def skip_or_check(service: CheckedService) -> str:
        if not service.model:
            raise CheckSkipped("no model of the service embeds texts")
        return check(service)

    return skip_or_check


def _health(service: CheckedService) -> str:
    health = service.client.health()
    if health.get("status") not in ("ok", "degraded"):
        raise CheckFailed(f"{health.get('status')}: {health.get('reason')}")
    reason = f": {health['reason']}" if health.get("reason") else ""
    return f"{health['status']}{reason}"


def _info(service: CheckedService) -> str:
    service.info = info = service.client.info()
    service.models = info.get("models", [])
    reply = service.post("/v1/embeddings", {"input": service.text})
    if reply.status == 200:
        name = json_value(reply.body, ("model",))
        if name != info["model"]:  # the first model, which may not be the default for texts
            service.info = info = service.client.info(model=name)
        # The shortest name has no slash, if one hasn't.
        service.model = min([info["model"], *info["aliases"]], key=len)
    elif json_value(reply.body, ("error", "code")) != UnsupportedOperation.code:
        _expect_ok(reply, "POST /v1/embeddings")
    return f"{info['model']}, {info['dim']} dimensions, {info['engine']} at {info['precision']}"


def _dialect(calls: list[DialectCall]) -> Check:
    def check(service: CheckedService) -> str:
        for call in calls:
            reply = _call(service, call, service.text)
            expected = service.client.embed(service.text, input_type=_input_type(service, call))
            service.check_vector(_value(reply, call.vector), np.asarray(expected))
            for view in call.views:
                _expect_ok(service.get(_path(view, service)), f"GET {view}", call.error)
        return ", ".join(dict.fromkeys(call.path for call in calls))

    return check


def _input_type(service: CheckedService, call: DialectCall) -> str | None:
    """Returns the prompt that the API applies; a model may have none."""
    return call.input_type if call.input_type in service.info["input_types"] else None


def _usage(service: CheckedService) -> str:
    texts = [new_text(), f"{new_text()} It is longer than the first one."]
    counts = {
        call.dialect: [_value(_call(service, call, text), call.tokens) for text in texts]
        for call in DIALECT_CALLS
        if call.tokens is not None and call.input_type is None
    }
    if len({str(tokens) for tokens in counts.values()}) > 1:
        raise CheckFailed(f"the dialects count different tokens: {counts}")
    tokens = counts["OpenAI"]
    both = service.post("/v1/embeddings", {"input": texts}).body
    total = json_value(both, ("usage", "prompt_tokens"))
    if not min(tokens) > 0 or total != sum(tokens):
        raise CheckFailed(f"{tokens} tokens in two texts, but {total} in both together")
    return f"{total} tokens in two texts, in {len(counts)} dialects"


def _cache(service: CheckedService) -> str:
    body = {"input": new_text(), "encoding_format": "base64"}
    first = _expect_ok(service.post("/v1/embeddings", body), "POST /v1/embeddings")
    if not first.headers.get("x-cache", "").startswith("hits=0"):
        raise CheckFailed(f"a new text is a hit: {first.headers.get('x-cache')}")
    for _ in range(_CACHE_ATTEMPTS):
        again = _expect_ok(service.post("/v1/embeddings", body), "POST /v1/embeddings")
        header = again.headers.get("x-cache", "")
        if header.startswith("hits=1"):
            break
    else:
        raise CheckFailed(f"{_CACHE_ATTEMPTS} requests found nothing: {header}")
    if json_value(again.body, ("data", 0)) != json_value(first.body, ("data", 0)):
        raise CheckFailed("the cached vector has other bits than the computed one")
    tokens, cached = (
        json_value(again.body, ("usage", name)) for name in ("prompt_tokens", "cached_tokens")
    )
    if tokens != cached:
        raise CheckFailed(f"{cached} of {tokens} tokens count as cached")
    return f"the second request is a hit: {header}"


def _keys(service: CheckedService) -> str:
    body = {"input": service.text}
    if service.post("/v1/embeddings", body, key_headers={}).status == 200:
        raise CheckSkipped("the service needs no keys")
    for call in DIALECT_CALLS:
        path, body = _path(call.path, service), call.body(service.text, service.model)
        for headers in ({}, {"authorization": "Bearer not-a-key"}):
            reply = service.post(path, body, key_headers=headers)
            if reply.status != 401:
                raise CheckFailed(f"{call.path}: HTTP {reply.status} without a valid key")
            if not reply.headers.get("www-authenticate", "").startswith("Bearer"):
                raise CheckFailed(f"{call.path}: a 401 without `WWW-Authenticate: Bearer`")
            if call.unauthorized and not json_value(reply.body, call.unauthorized):
                raise CheckFailed(f"{call.path}: the 401 isn't in the form of {call.dialect}")
    return "401 without a key and with a wrong one, in the form of each dialect"


def _stream(service: CheckedService) -> str:
    texts = [new_text() for _ in range(_STREAM_TEXTS)]
    started_at = time.monotonic()
    vectors = np.asarray(service.client.embed(texts))
    seconds = time.monotonic() - started_at
    if vectors.shape != (len(texts), service.info["dim"]) or not np.isfinite(vectors).all():
        raise CheckFailed(f"vectors of shape {vectors.shape}, or components that aren't finite")
    for i in np.linspace(0, len(texts) - 1, _STREAM_SAMPLES, dtype=int):
        service.check_vector(np.asarray(service.client.embed(texts[i])), vectors[i])
    return f"{len(texts) / seconds:,.0f} texts/s, in order"


def _reference(service: CheckedService) -> str:
    reference = reference_vectors.load()
    if service.info.get("weights_sha256") != reference.weights_sha256:
        raise CheckSkipped(f"they are of {reference.model}, with other weights")
    precision = service.info["precision"]
    # Not cached, since the texts are no random ones.
    vectors = np.asarray(service.client.embed(reference.texts, use_cache=False))
    if vectors.shape != reference.vectors.shape:
        raise CheckFailed(f"vectors of shape {vectors.shape}")
    cosine = float((unit(vectors) * unit(reference.vectors)).sum(-1).min())
    if not cosine >= MIN_COSINE[precision]:
        raise CheckFailed(f"cosine {cosine:.7f} to the reference, below {MIN_COSINE[precision]}")
    return f"cosine >= {cosine:.7f} at {precision}"


def _other_models(service: CheckedService) -> str:
    others = [model for model in service.models if model["name"] != service.info["model"]]
    if not others:
        raise CheckSkipped("the service has one model")
    return ", ".join(f"{model['name']}: {_run_model(service, model)}" for model in others)


def _run_model(service: CheckedService, model: Mapping[str, Any]) -> str:
    """Runs one task of a model and returns a remark on its output."""
    name, tasks, client = model["name"], model["tasks"], service.client
    if "embed" in tasks:
        vectors = np.asarray(client.embed([new_text(), new_text()], model=name))
        if vectors.shape != (2, model["dim"]) or not np.isfinite(vectors).all():
            raise CheckFailed(f"{name}: vectors of shape {vectors.shape}, or not finite")
        return f"{model['dim']} dimensions"
    if "rerank" in tasks:
        documents = [new_text() for _ in range(3)]
        results = client.rerank(new_text(), documents, model=name)
        scores = [result.score for result in results]
        indices = sorted(result.index for result in results)
        if indices != [0, 1, 2] or scores != sorted(scores, reverse=True):
            raise CheckFailed(f"{name}: results {results}, not one per document in order")
        return f"{len(results)} scores"
    if "embed_sparse" in tasks:
        (vector,) = client.embed_sparse([new_text()], model=name)
        if not len(vector.indices) or not np.isfinite(vector.values).all():
            raise CheckFailed(f"{name}: a sparse vector without values, or not finite")
        return f"{len(vector.indices)} weights"
    health = client.health(model=name)
    if health["status"] not in ("ok", "degraded"):
        raise CheckFailed(f"{name}: {health['status']}: {health.get('reason')}")
    return f"{health['status']}"


def _metrics(service: CheckedService) -> str:
    deadline = time.monotonic() + _METRICS_TIMEOUT_S
    while True:
        text = _expect_ok(service.get("/metrics"), "GET /metrics").body
        families = {family.name for family in text_string_to_metric_families(str(text))}
        own = {name for name in families if "embedserve_" in name}
        if any(name.endswith("embedserve_requests") for name in own):
            return f"{len(own)} of the service, {len(families)} in all"
        if time.monotonic() > deadline:
            raise CheckFailed(f"no requests are counted among {len(families)} metrics")
        time.sleep(1)


def _call(service: CheckedService, call: DialectCall, text: str) -> Reply:
    reply = service.post(_path(call.path, service), call.body(text, service.model))
    return _expect_ok(reply, f"POST {call.path}", call.error)


def _path(path: str, service: CheckedService) -> str:
    return path.replace("{model}", quote(service.model, safe=""))


def _expect_ok(reply: Reply, request: str, error: JSONPath = ("error", "message")) -> Reply:
    if reply.status == 200:
        return reply
    message = json_value(reply.body, error) or str(reply.body)[:200]
    raise CheckFailed(f"{request}: HTTP {reply.status}: {message}")


def _value(reply: Reply, path: JSONPath | None) -> Any:
    value = None if path is None else json_value(reply.body, path)
    if value is None:
        raise CheckFailed(f"the reply has no {'.'.join(map(str, path or ()))}: {reply.body!s:.200}")
    return value
