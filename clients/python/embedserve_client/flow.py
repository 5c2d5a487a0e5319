"""The sans-I/O flows of one request: inputs → service or local model → checked result.

They are generators like `retry.send_with_retries`, and both clients drive them: they yield the
request to send, the delay, or the texts to embed locally, and receive the outcome.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from embedserve_client.errors import EmbedError, LocalModelError
from embedserve_client.fallback import Fallback, is_unavailable
from embedserve_client.retry import RetryPolicy, Send, Sleep, send_with_retries
from embedserve_client.space import SpaceGuard
from embedserve_client.vectors import Vectors
from embedserve_client.wire import (
    EmbedParams,
    EncodingFormat,
    Request,
    Response,
    embedding_request,
    get_request,
    parse_vectors,
)

T = TypeVar("T")

#: Short, because the local model could answer meanwhile.
_PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class EmbedLocally:
    """Step: embed the texts with the local model."""

    texts: Sequence[str]
    params: EmbedParams


Step = Send | Sleep | EmbedLocally
Outcome = Response | EmbedError | Vectors | None
Flow = Generator[Step, Outcome, T]


@dataclass(frozen=True, slots=True)
class CallContext:
    """The state that all requests of a client share."""

    retry_policy: RetryPolicy
    encoding_format: EncodingFormat
    space_guard: SpaceGuard
    sparse_space_guard: SpaceGuard
    fallback: Fallback | None
    model: str | None  #: the client's model, which the fallback replaces
    clock: Callable[[], float] = time.monotonic


def embed(
    texts: Sequence[str], params: EmbedParams, context: CallContext, timeout_s: float
) -> Flow[Vectors]:
    """Embeds the texts of one request; returns shape (n, dim).

    Raises:
        EmbedError: the request failed, and there is no fallback for the failure.
    """
    fallback = _fallback_for(params.model, context)
    if fallback is not None and (yield from _bypass_service(fallback, params.model)):
        return (yield from _embed_locally(texts, params, context, fallback))
    pinned = context.space_guard.pinned
    request = embedding_request(list(texts), params, context.encoding_format, pinned)
    deadline = context.clock() + timeout_s
    try:
        response = yield from send_with_retries(
            request, context.retry_policy, deadline, context.clock
        )
    except EmbedError as error:
        if fallback is None or not is_unavailable(error):
            raise
        fallback.record_failure(error)
        return (yield from _embed_locally(texts, params, context, fallback))
    vectors = parse_vectors(response, len(texts))
    if fallback is not None:
        fallback.record_success()
    context.space_guard.check(vectors.space, params.model)
    return vectors


def request(
    request: Request,
    parse: Callable[[Response], T],
    context: CallContext,
    timeout_s: float,
    task: str,
) -> Flow[T]:
    """Sends a request that no local model can replace; returns its parsed response.

    Args:
        request: the request.
        parse: converts a successful response, or raises an `EmbedError`.
        context: the state of the client.
        timeout_s: the timeout, retries included.
        task: what is requested, for messages: `rerank`, `embed images`, …

    Raises:
        LocalModelError: the client has only a local model.
        EmbedError: the request failed.
    """
    fallback = context.fallback
    if fallback is not None and fallback.is_exclusive:
        raise LocalModelError(f"{fallback.model} can't {task}. Use a service that can.")
    deadline = context.clock() + timeout_s
    try:
        response = yield from send_with_retries(
            request, context.retry_policy, deadline, context.clock
        )
    except EmbedError as error:
        if fallback is not None and is_unavailable(error):
            error.args = (f"{error.args[0]} {fallback.model} can't {task} instead.",)
        raise
    return parse(response)


def _fallback_for(model: str | None, context: CallContext) -> Fallback | None:
    """Returns the fallback of a call, unless nothing shows that it has the vectors of its model."""
    fallback = context.fallback
    if fallback is None or fallback.is_exclusive or model == context.model:
        return fallback
    return None if context.space_guard.expected(model) is None else fallback


def _bypass_service(fallback: Fallback, model: str | None) -> Generator[Step, Outcome, bool]:
    """Returns whether to embed locally without a request; probes the service if that is due."""
    route = fallback.route()
    if route == "probe":
        outcome = yield Send(get_request("/health", model), _PROBE_TIMEOUT_S)
        if isinstance(outcome, Response) and outcome.status == 200:
            fallback.record_success()
            return False
        fallback.record_failure()
    return route != "service"


def _embed_locally(
    texts: Sequence[str], params: EmbedParams, context: CallContext, fallback: Fallback
) -> Flow[Vectors]:
    fallback.check_space(context.space_guard.expected(params.model))
    vectors = yield EmbedLocally(texts, params)
    assert isinstance(vectors, Vectors), "The driver sent no vectors for EmbedLocally. A bug."
    context.space_guard.check(vectors.space, params.model)
    return vectors
