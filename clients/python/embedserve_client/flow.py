"""One request for vectors, from texts to checked vectors, wherever they are computed.

A generator like `retry.exchange`, driven by both clients: it says what to send, how long to wait,
or what to compute in this process, and is told what came of it.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from embedserve_client.errors import EmbedError
from embedserve_client.fallback import Fallback, is_away
from embedserve_client.retry import Retry, Send, Wait, exchange
from embedserve_client.space import SpaceGuard
from embedserve_client.vectors import Vectors
from embedserve_client.wire import (
    Encoding,
    Options,
    Reply,
    Request,
    embed_request,
    read_vectors,
)

HEALTH = Request("GET", "/health")
#: Whoever looks whether the service is back doesn't wait long: there is a model at hand.
_PROBE_S = 2.0


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute these in this process."""

    texts: Sequence[str]
    options: Options


Step = Send | Wait | Compute
Answer = Reply | EmbedError | Vectors | None
Flow = Generator[Step, Answer, Vectors]


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all requests of a client."""

    retry: Retry
    encoding: Encoding
    guard: SpaceGuard
    fallback: Fallback | None
    now: Callable[[], float] = time.monotonic


def embed(texts: Sequence[str], options: Options, rules: Rules, timeout_s: float) -> Flow:
    """Vectors of texts that fit into one request, shape (n, dim).

    Raises:
        EmbedError: whatever kept them from coming.
    """
    fallback = rules.fallback
    if fallback is not None and (yield from _is_away_now(fallback)):
        return (yield from _locally(texts, options, rules, fallback))
    try:
        request = embed_request(texts, options, rules.encoding)
        reply = yield from exchange(request, rules.retry, rules.now() + timeout_s, rules.now)
    except EmbedError as error:
        if fallback is None or not is_away(error):
            raise
        fallback.lost()
        return (yield from _locally(texts, options, rules, fallback))
    vectors = read_vectors(reply, len(texts))
    if fallback is not None:
        fallback.back()
    rules.guard.check(vectors.space)
    return vectors


def _is_away_now(fallback: Fallback) -> Generator[Step, Answer, bool]:
    """Whether the service needn't be asked; looks whether it is back when that is due."""
    route = fallback.route()
    if route == "probe":
        answer = yield Send(HEALTH, _PROBE_S)
        if isinstance(answer, Reply) and answer.status == 200:
            fallback.back()
            return False
        fallback.lost()
    return route != "service"


def _locally(texts: Sequence[str], options: Options, rules: Rules, fallback: Fallback) -> Flow:
    fallback.check(rules.guard.expected)
    vectors = yield Compute(texts, options)
    assert isinstance(vectors, Vectors), "A Compute is answered with vectors. This is a bug."
    rules.guard.check(vectors.space)
    return vectors
