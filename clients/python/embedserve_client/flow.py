"""The sans-I/O flow of one embedding request: texts → service or local model → checked vectors.

`embed` is a generator like `retry.send_with_retries`, and both clients drive it: it yields the
request to send, the delay, or the texts to embed locally, and receives the outcome.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from embedserve_client.errors import EmbedError
from embedserve_client.fallback import Fallback, is_unavailable
from embedserve_client.retry import RetryPolicy, Send, Sleep, send_with_retries
from embedserve_client.space import SpaceGuard
from embedserve_client.vectors import Vectors
from embedserve_client.wire import (
    EmbedParams,
    EncodingFormat,
    Request,
    Response,
    embed_request,
    parse_vectors,
)

HEALTH_REQUEST = Request("GET", "/health")
#: Short, because the local model could answer meanwhile.
_PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class EmbedLocally:
    """Step: embed the texts with the local model."""

    texts: Sequence[str]
    params: EmbedParams


Step = Send | Sleep | EmbedLocally
Outcome = Response | EmbedError | Vectors | None
EmbedFlow = Generator[Step, Outcome, Vectors]


@dataclass(frozen=True, slots=True)
class CallContext:
    """The state that all requests of a client share."""

    retry_policy: RetryPolicy
    encoding_format: EncodingFormat
    space_guard: SpaceGuard
    fallback: Fallback | None
    clock: Callable[[], float] = time.monotonic


def embed(
    texts: Sequence[str], params: EmbedParams, context: CallContext, timeout_s: float
) -> EmbedFlow:
    """Embeds the texts of one request; returns shape (n, dim).

    Raises:
        EmbedError: the request failed, and there is no fallback for the failure.
    """
    fallback = context.fallback
    if fallback is not None and (yield from _bypass_service(fallback)):
        return (yield from _embed_locally(texts, params, context, fallback))
    request = embed_request(texts, params, context.encoding_format)
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
    context.space_guard.check(vectors.space)
    return vectors


def _bypass_service(fallback: Fallback) -> Generator[Step, Outcome, bool]:
    """Returns whether to embed locally without a request; probes the service if that is due."""
    route = fallback.route()
    if route == "probe":
        outcome = yield Send(HEALTH_REQUEST, _PROBE_TIMEOUT_S)
        if isinstance(outcome, Response) and outcome.status == 200:
            fallback.record_success()
            return False
        fallback.record_failure()
    return route != "service"


def _embed_locally(
    texts: Sequence[str], params: EmbedParams, context: CallContext, fallback: Fallback
) -> EmbedFlow:
    fallback.check_space(context.space_guard.expected)
    vectors = yield EmbedLocally(texts, params)
    assert isinstance(vectors, Vectors), "The driver sent no vectors for EmbedLocally. A bug."
    context.space_guard.check(vectors.space)
    return vectors
